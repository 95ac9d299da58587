"""The demo's base model: an ordinary Hugging Face folder with random weights.

A byte-level BPE tokenizer trained on the tales and a GPT-J small enough that a few
minutes on two CPU cores teach it to tell one. Loads torch.
"""

from collections.abc import Iterable
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import GPTJConfig, GPTJForCausalLM, PreTrainedTokenizerFast
from transformers.utils.logging import disable_progress_bar

END_OF_TEXT = "<|endoftext|>"
VOCABULARY = 2048  # tokens, the end of text with them; at most, if the tales have fewer
CONTEXT = 256  # tokens
WIDTH = 192
LAYERS = 4
HEADS = 4
ROTARY = 32  # of the 48 dimensions of a head


def train_tokenizer(texts: Iterable[str]) -> Tokenizer:
    """GPT-2's kind of tokenizer with VOCABULARY tokens; END_OF_TEXT is number 0."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=False)
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=[END_OF_TEXT],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


def save_base_model(folder: Path, texts: Iterable[str], seed: int) -> None:
    """Train the tokenizer, draw the weights, and write both into `folder`."""
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=train_tokenizer(texts),
        bos_token=END_OF_TEXT,
        eos_token=END_OF_TEXT,
        unk_token=END_OF_TEXT,
        model_max_length=CONTEXT,
        clean_up_tokenization_spaces=False,
    )
    config = GPTJConfig(
        vocab_size=len(tokenizer),
        n_positions=CONTEXT,
        n_embd=WIDTH,
        n_layer=LAYERS,
        n_head=HEADS,
        rotary_dim=ROTARY,
        resid_pdrop=0.0,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    torch.manual_seed(seed)
    disable_progress_bar()
    GPTJForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    # safetensors makes its file readable by its owner alone.
    for path in folder.iterdir():
        path.chmod(0o644)
