"""How fast text becomes a store, against its own encoder, Hugging Face's, and a copy.

    python -m benchmarks.tokens [--megabytes 200] [--model FOLDER] [--kind prose|code|unicode]

For each kind of text, as files of 1 MB: MB/s from files to a finished store (sanitize
on), of the chosen encoder alone on all cores, of `tokenizers`' encode_batch alone, and of
a copy; seconds of a second run with nothing changed, and of one with 1 % of the files
changed; peak memory of the step and its processes together (PSS). `--one-file` does the
same with one single file. Without `--model` a byte-level tokenizer of `--vocabulary`
tokens is trained on the text. Each figure is of this run: compare within it only.
"""

import argparse
import itertools
import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from importlib.metadata import version
from pathlib import Path

from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from tokenizers.trainers import BpeTrainer

ROOT = Path(__file__).parents[1]
FILE_BYTES = 1_000_000
_OWN_SAMPLE_BYTES = 8_000_000  # Hugging Face's encoder takes long


# --- text -------------------------------------------------------------------------------


def prose(draw: random.Random) -> Iterator[str]:
    """Paragraphs of invented words, as often used as words are (Zipf)."""
    parts = "an be ri dor ten ly wes sto ma kin gre pa fol tra sen hi ver do un ing er".split()
    words = ["".join(draw.choices(parts, k=draw.randint(1, 4))) for _ in range(40_000)]
    weights = list(itertools.accumulate(1 / (rank + 3) for rank in range(len(words))))
    while True:
        chosen = draw.choices(words, cum_weights=weights, k=draw.randint(20, 120))
        text = " ".join(chosen).capitalize()
        yield text.replace(" an ", ", “an” ").replace(" be ", ": ") + ".\n"


def code(draw: random.Random) -> Iterator[str]:
    """The standard library's sources, in a drawn order."""
    paths = sorted(Path(os.__file__).parent.rglob("*.py"))
    while True:
        draw.shuffle(paths)
        for path in paths:
            yield path.read_text(encoding="utf-8", errors="ignore")


def unicode(draw: random.Random) -> Iterator[str]:
    """Words of many scripts, Chinese without spaces among them."""
    scripts = [(0xC0, 0x24F), (0x391, 0x3C9), (0x410, 0x44F), (0x5D0, 0x5EA), (0x621, 0x64A)]
    scripts += [(0x905, 0x939), (0xE01, 0xE2E), (0x4E00, 0x9FA5), (0xAC00, 0xD7A3)]
    scripts += [(0x1F600, 0x1F64F)]
    while True:
        low, high = draw.choice(scripts)
        words = ("".join(map(chr, draw.choices(range(low, high), k=5))) for _ in range(30))
        yield draw.choice([" ", " ", "，"]).join(words) + draw.choice(["\n", "\r\n", "\n\n"])


KINDS: dict[str, Callable[[random.Random], Iterator[str]]] = {
    "prose": prose,
    "code": code,
    "unicode": unicode,
}


def write_corpus(folder: Path, kind: str, megabytes: int, one_file: bool) -> int:
    """Write the corpus; returns its bytes. Text repeats after 64 MB, never within a file."""
    folder.mkdir(parents=True)
    lines = KINDS[kind](random.Random(kind))
    blocks: list[bytes] = []
    for _ in range(min(megabytes, 64)):
        block = bytearray()
        while len(block) < FILE_BYTES:
            block += next(lines).encode()
        blocks.append(bytes(block))
    total = 0
    for number in range(megabytes):
        name = "all.txt" if one_file else f"{number:05}.txt"
        with open(folder / name, "ab") as file:
            total += file.write(b"%d\n" % number + blocks[number % len(blocks)])
    return total


def write_model(folder: Path, corpus: Path, vocabulary: int) -> None:
    """A byte-level tokenizer trained on 20 MB of the corpus."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=["<|endoftext|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train([str(path) for path in sorted(corpus.iterdir())[:20]], trainer)
    folder.mkdir(parents=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    fields = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": "<|endoftext|>"}
    (folder / "tokenizer_config.json").write_text(json.dumps(fields))


# --- measuring --------------------------------------------------------------------------


def tokenize(volume: Path, **options: object) -> tuple[float, int, dict]:
    """Run the step as a process: seconds, peak MiB of it and its children, its outcome."""
    config = {"volume": str(volume), "dataset": "corpus", "model": "model", **options}
    path = volume / "config.json"
    path.write_text(json.dumps(config))
    outcome = volume / "outcome.json"
    environment = {**os.environ, "FINETUNE_TERMINATION_PATH": str(outcome)}
    began, peak = time.perf_counter(), 0
    step = subprocess.Popen(
        [sys.executable, "-m", "trainer", "tokenize", str(path)],
        env=environment,
        cwd=ROOT,
        stdout=subprocess.DEVNULL,
    )
    while step.poll() is None:
        peak = max(peak, _memory_kib(step.pid))
        time.sleep(0.05)
    assert step.returncode == 0, outcome.read_text()
    return time.perf_counter() - began, peak // 1024, json.loads(outcome.read_text())


def _memory_kib(pid: int) -> int:
    """Proportional memory of a process and those it started."""
    total = 0
    try:
        for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
            if line.startswith("Pss:"):
                total += int(line.split()[1])
        for task in Path(f"/proc/{pid}/task").iterdir():
            total += sum(_memory_kib(int(c)) for c in (task / "children").read_text().split())
    except (OSError, ProcessLookupError):
        pass  # it ended meanwhile
    return total


_ENCODER = """
import sys, time, json, glob
from trainer.tokens.encoder import FastEncoder
exported = json.load(open(glob.glob(sys.argv[1] + "/cache/tokens/tokenizers/*.json")[0]))
encoder = FastEncoder(exported["tokenizer_json"])
text = open(sys.argv[2], encoding="utf-8", newline="").read(64_000_000)
texts = [text[at : at + 250_000] for at in range(0, len(text), 250_000)]
began = time.perf_counter()
for at in range(0, len(texts), 16):
    encoder.encode(texts[at : at + 16])
print(len(text.encode()) / 1e6 / (time.perf_counter() - began))
"""


def encoder_alone(volume: Path, text: Path) -> float:
    """MB/s of the fast encoder on all cores, text in memory."""
    command = [sys.executable, "-c", _ENCODER, str(volume), str(text)]
    return float(subprocess.run(command, cwd=ROOT, capture_output=True, check=True).stdout)


def own_alone(volume: Path, text: Path) -> float:
    """MB/s of Hugging Face's encode_batch on all cores, strings of 4 kB."""
    os.environ["TOKENIZERS_PARALLELISM"] = "true"
    tokenizer = Tokenizer.from_file(str(volume / "model/tokenizer.json"))
    sample = text.read_bytes()[:_OWN_SAMPLE_BYTES].decode(errors="ignore")
    strings = [sample[at : at + 4096] for at in range(0, len(sample), 4096)]
    began = time.perf_counter()
    tokenizer.encode_batch(strings)
    return len(sample.encode()) / 1e6 / (time.perf_counter() - began)


def measure(kind: str, asked: argparse.Namespace, volume: Path) -> dict[str, object]:
    """All figures for one kind of text."""
    corpus = volume / "corpus"
    size = write_corpus(corpus, kind, asked.megabytes, asked.one_file) / 1e6
    if asked.model:
        shutil.copytree(asked.model, volume / "model")
    else:
        write_model(volume / "model", corpus, asked.vocabulary)
    whole = volume / "whole.txt"
    began = time.perf_counter()
    with open(whole, "wb") as file:
        for path in sorted(corpus.iterdir()):
            file.write(path.read_bytes()[: 64_000_000 if asked.one_file else None])
        os.fsync(file.fileno())
    copied = whole.stat().st_size / 1e6 / (time.perf_counter() - began)
    seconds, memory, outcome = tokenize(volume)
    again, _, second = tokenize(volume)
    assert second["reused"]
    for path in sorted(corpus.iterdir())[: max(1, asked.megabytes // 100)]:
        path.write_bytes(path.read_bytes() + b"one more line\n")
    changed, _, _ = tokenize(volume)
    return {
        "kind": kind,
        "MB": round(size),
        "MB/s": round(size / seconds, 1),
        "encoder alone MB/s": round(encoder_alone(volume, whole), 1),
        "encode_batch alone MB/s": round(own_alone(volume, whole), 1),
        "copy MB/s": round(copied),
        "seconds": round(seconds, 1),
        "again seconds": round(again, 2),
        "of that work": second["seconds"],
        "1 % changed seconds": round(changed, 1),
        "peak MiB": memory,
        "encoder": outcome["result"]["encoder"],
    }


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--megabytes", type=int, default=200)
    parser.add_argument("--kind", choices=KINDS, action="append")
    parser.add_argument("--model", type=Path, help="a Hugging Face folder with a tokenizer")
    parser.add_argument("--vocabulary", type=int, default=50_257)
    parser.add_argument("--one-file", action="store_true")
    parser.add_argument("--folder", type=Path, help="where to work (default: a temporary one)")
    asked = parser.parse_args(arguments)
    versions = {name: version(name) for name in ("fastokens", "tokenizers", "numpy")}
    load = os.getloadavg()[0]
    print(f"{os.cpu_count()} cores, load {load:.1f} before, Python {sys.version[:7]}, {versions}")
    for kind in asked.kind or KINDS:
        with tempfile.TemporaryDirectory(dir=asked.folder) as folder:
            for name, figure in measure(kind, asked, Path(folder)).items():
                print(f"{name:>24}  {figure}", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
