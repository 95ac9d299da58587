"""A volume with a little text and a very small GPT-J: a whole run on it takes seconds."""

import subprocess
import sys
from pathlib import Path

import psutil
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import GPTJConfig, GPTJForCausalLM, PreTrainedTokenizerFast

PVC = "finetune-data"
SENTENCES = (
    "The sheriff rode into {place} at noon.",
    "Nobody in {place} slept that night.",
    "A stranger asked the way to {place}, and paid in silver.",
    "They buried the gold behind the church of {place}.",
)
PLACES = ("Dry Creek", "Elkhorn", "Red Bluff", "Mercy", "Lone Pine")


def make_volume(home: Path) -> Path:
    """Make `{home}/finetune-data` with `dataset/` (40 small files) and `models/tiny`."""
    volume = home / PVC
    texts = []
    for number in range(40):
        place = PLACES[number % len(PLACES)]
        lines = [SENTENCES[(number + i) % len(SENTENCES)].format(place=place) for i in range(30)]
        texts.append("\n".join(lines) + "\n")
        path = volume / "dataset" / f"part-{number % 4}" / f"tale-{number:02}.txt"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(texts[-1], encoding="utf-8")
    _make_model(volume / "models/tiny", texts)
    return volume


def _make_model(folder: Path, texts: list[str]) -> None:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.train_from_iterator(
        texts,
        trainers.BpeTrainer(
            vocab_size=400,
            special_tokens=["<|endoftext|>"],
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        ),
    )
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<|endoftext|>")
    fast.save_pretrained(folder)
    torch.manual_seed(1)
    config = GPTJConfig(
        vocab_size=len(fast),
        n_positions=64,
        n_embd=32,
        n_layer=2,
        n_head=2,
        rotary_dim=8,
        bos_token_id=fast.eos_token_id,
        eos_token_id=fast.eos_token_id,
    )
    GPTJForCausalLM(config).save_pretrained(folder)


def finetune(home: Path, environment: dict[str, str], *arguments: str) -> subprocess.Popen[str]:
    """The command line as a process of its own, its output kept apart."""
    return subprocess.Popen(
        [sys.executable, "-m", "flows.cli", *arguments, "--home", str(home)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
    )


def give_way(mark: str) -> None:
    """Have the training with `mark` in its config's path or text go behind everything else.

    One that does not end within a test would take a core from all that the test waits for.
    """
    for process in psutil.process_iter(["cmdline"]):
        words = process.info["cmdline"] or []
        if "trainer" in words and "finetune" in words and mark in words[-1]:
            process.nice(min(19, process.nice() + 10))
