"""Small model folders made on the spot: seeded weights, a byte-level tokenizer."""

from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, pre_tokenizers, trainers
from tokenizers.models import BPE
from transformers import (
    GPT2Config,
    GPTJConfig,
    GPTNeoConfig,
    GPTNeoXConfig,
    LlamaConfig,
    MistralConfig,
    PreTrainedTokenizerFast,
)
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING

END_OF_TEXT = "<|endoftext|>"
TEXT = (
    "The sheriff rode into town at noon. Dust rose behind his horse, and nobody spoke. "
    "“Where is he?” asked the café owner’s daughter. Nothing moved but the wind. "
)
CHAT_TEMPLATE = (
    "{% for m in messages %}{% if m.role == 'developer' %}{{ raise_exception('no developer') }}"
    "{% endif %}{% if m.content == 'for ever' %}{% for a in range(99999) %}"
    "{% for b in range(99999) %}{% endfor %}{% endfor %}{% endif %}"
    "{% if m.content == 'zero' %}{{ 1 // 0 }}{% endif %}"
    "{{ m.role }}: {{ m.content }}\n{% endfor %}assistant:"
)
SHARED = {"vocab_size": 300, "bos_token_id": 0, "eos_token_id": 0}
SIZES = {
    "hidden_size": 64,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "intermediate_size": 128,
    "max_position_embeddings": 256,
}
CONFIGS: dict[str, Any] = {
    "gptj": lambda: GPTJConfig(
        **SHARED, n_positions=256, n_embd=64, n_layer=3, n_head=4, rotary_dim=8
    ),
    "gpt_neo": lambda: GPTNeoConfig(
        **SHARED,
        max_position_embeddings=256,
        hidden_size=64,
        num_layers=4,
        attention_types=[[["global", "local"], 2]],
        num_heads=4,
        window_size=8,
    ),
    "gpt_neox": lambda: GPTNeoXConfig(**SHARED, **SIZES),
    "llama": lambda: LlamaConfig(**SHARED, **SIZES, num_key_value_heads=2),
    "mistral": lambda: MistralConfig(**SHARED, **SIZES, num_key_value_heads=2, sliding_window=8),
    "gpt2": lambda: GPT2Config(**SHARED, n_positions=256, n_embd=64, n_layer=3, n_head=4),
}


def tokenizer() -> PreTrainedTokenizerFast:
    """A byte-level BPE with 300 tokens; 0 is end-of-text."""
    bpe = Tokenizer(BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=300,
        special_tokens=[END_OF_TEXT],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    bpe.train_from_iterator([TEXT] * 3, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=bpe, bos_token=END_OF_TEXT, eos_token=END_OF_TEXT
    )


def model(architecture: str, seed: int = 0) -> Any:
    """A model with random weights, large enough to answer something else to each prompt."""
    torch.manual_seed(seed)
    config = CONFIGS[architecture]()
    made = MODEL_FOR_CAUSAL_LM_MAPPING[type(config)](config).eval()
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.mul_(3)
    return made


def save(
    folder: Path, architecture: str = "gptj", seed: int = 0, chat_template: str | None = None
) -> Path:
    """An ordinary Hugging Face folder."""
    model(architecture, seed).save_pretrained(folder)
    saved = tokenizer()
    saved.chat_template = chat_template
    saved.save_pretrained(folder)
    return folder
