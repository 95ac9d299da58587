"""The config.json of models that people finetune, as far as a plan reads it."""

from typing import Any

GPT_J_6B: dict[str, Any] = {
    "model_type": "gptj",
    "n_embd": 4096,
    "n_layer": 28,
    "n_head": 16,
    "n_positions": 2048,
    "rotary_dim": 64,
    "vocab_size": 50400,
    "activation_function": "gelu_new",
    "tie_word_embeddings": False,
}
GPT_NEO_2_7B: dict[str, Any] = {
    "model_type": "gpt_neo",
    "hidden_size": 2560,
    "num_layers": 32,
    "num_heads": 20,
    "max_position_embeddings": 2048,
    "vocab_size": 50257,
    "attention_types": [[["global", "local"], 16]],
    "activation_function": "gelu_new",
}
GPT_2: dict[str, Any] = {
    "model_type": "gpt2",
    "n_embd": 768,
    "n_layer": 12,
    "n_head": 12,
    "n_positions": 1024,
    "vocab_size": 50257,
    "activation_function": "gelu_new",
}
PYTHIA_12B: dict[str, Any] = {
    "model_type": "gpt_neox",
    "hidden_size": 5120,
    "intermediate_size": 20480,
    "num_hidden_layers": 36,
    "num_attention_heads": 40,
    "max_position_embeddings": 2048,
    "vocab_size": 50688,
    "hidden_act": "gelu",
    "tie_word_embeddings": False,
}
LLAMA_3_8B: dict[str, Any] = {
    "model_type": "llama",
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "max_position_embeddings": 8192,
    "vocab_size": 128256,
    "hidden_act": "silu",
    "tie_word_embeddings": False,
}
OPT_1_3B: dict[str, Any] = {
    "model_type": "opt",
    "hidden_size": 2048,
    "ffn_dim": 8192,
    "num_hidden_layers": 24,
    "num_attention_heads": 32,
    "max_position_embeddings": 2048,
    "vocab_size": 50272,
    "word_embed_proj_dim": 2048,
    "activation_function": "relu",
}
BLOOM_560M: dict[str, Any] = {
    "model_type": "bloom",
    "hidden_size": 1024,
    "n_layer": 24,
    "n_head": 16,
    "vocab_size": 250880,
}
DEMO: dict[str, Any] = {  # 2.6 M weights; what `make demo` trains
    "model_type": "gptj",
    "n_embd": 192,
    "n_layer": 4,
    "n_head": 4,
    "n_positions": 256,
    "rotary_dim": 32,
    "vocab_size": 2048,
    "activation_function": "gelu_new",
    "tie_word_embeddings": False,
    "dtype": "float32",
}
MODELS = {
    "gptj": GPT_J_6B,
    "gpt_neo": GPT_NEO_2_7B,
    "gpt2": GPT_2,
    "gpt_neox": PYTHIA_12B,
    "llama": LLAMA_3_8B,
    "opt": OPT_1_3B,
    "bloom": BLOOM_560M,
}
