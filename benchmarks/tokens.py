"""How fast text becomes a store, against its own encoder, Hugging Face's, and a copy.

    python -m benchmarks.tokens [--megabytes 200] [--kind prose|code|unicode] [--vocabulary N]
                                [--shape files|one-file|one-line|tiny] [--no-peers]

For each kind of text and each vocabulary, as files of 1 MB: MB/s from files to a finished
store (sanitize on), of the chosen encoder alone on all cores, of `tokenizers`' encode_batch
alone, of `datasets.map` with the model's tokenizer as axolotl calls it, and of a copy;
seconds of a second run with nothing changed, and of one with 1 % of the files changed;
peak memory of the step and its processes together (PSS), in a run of its own, since looking
at it takes time. Shapes: one single file, the same without a line break, or files of 1 kB.
Each figure is of this run: compare within it only.
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from importlib.metadata import version
from pathlib import Path
from typing import NamedTuple

from benchmarks.ratios import say_ratio
from benchmarks.token_text import KINDS, SHAPES, tokenizer, write_corpus, write_model

ROOT = Path(__file__).parents[1]
_SAMPLE_BYTES = 64_000_000
_OWN_SAMPLE_BYTES = 8_000_000  # Hugging Face's encoder takes long


class Run(NamedTuple):
    """One run of the step as a process."""

    seconds: float
    cpu_seconds: float  # of all its processes
    peak_mib: int  # of all its processes; 0: not looked at
    result: dict


def tokenize(volume: Path, look: bool = False, **options: object) -> Run:
    """Run the step; `look` at its memory meanwhile."""
    config = {"volume": str(volume), "dataset": "corpus", "model": "model", **options}
    path = volume / "config.json"
    path.write_text(json.dumps(config))
    outcome = volume / "outcome.json"
    environment = {**os.environ, "FINETUNE_TERMINATION_PATH": str(outcome)}
    began, peak = time.perf_counter(), 0
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    step = subprocess.Popen(
        [sys.executable, "-m", "trainer", "tokenize", str(path)],
        env=environment,
        cwd=ROOT,
        stdout=subprocess.DEVNULL,
    )
    while look and step.poll() is None:
        peak = max(peak, _memory_kib(step.pid))
        time.sleep(0.1)
    assert step.wait() == 0, outcome.read_text()
    seconds, used = time.perf_counter() - began, resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = used.ru_utime + used.ru_stime - before.ru_utime - before.ru_stime
    return Run(seconds, cpu, peak // 1024, json.loads(outcome.read_text())["result"])


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


# --- peers, each a process of its own that prints its MB/s --------------------------------

_ENCODER = """
import sys, time
from trainer.tokens.encode.encoder import FastEncoder
encoder = FastEncoder(open(sys.argv[1] + "/model/tokenizer.json", encoding="utf-8").read())
text = open(sys.argv[2], encoding="utf-8", newline="").read()
texts = [text[at : at + 250_000] for at in range(0, len(text), 250_000)]
began = time.perf_counter()
for at in range(0, len(texts), 16):
    encoder.encode(texts[at : at + 16])
print(len(text.encode()) / 1e6 / (time.perf_counter() - began))
"""

_DATASETS = """
import os, sys, time
from transformers import PreTrainedTokenizerFast
import datasets
datasets.disable_progress_bars()
tokenizer = PreTrainedTokenizerFast.from_pretrained(sys.argv[1] + "/model")
began = time.perf_counter()
lines = datasets.load_dataset("text", data_files=sys.argv[2], split="train",
                              cache_dir=sys.argv[1] + "/datasets")
lines.map(lambda batch: tokenizer(batch["text"]), batched=True, num_proc=os.cpu_count(),
          remove_columns=["text"])
print(os.path.getsize(sys.argv[2]) / 1e6 / (time.perf_counter() - began))
"""


def peer(program: str, volume: Path, text: Path) -> float:
    """MB/s that `program` prints for the text file."""
    command = [sys.executable, "-c", program, str(volume), str(text)]
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
    environment |= {"HF_HOME": str(volume / "hf"), "TRANSFORMERS_VERBOSITY": "error"}
    done = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, check=True, env=environment)
    return float(done.stdout.split()[-1])


def own_alone(vocabulary: int, text: Path) -> float:
    """MB/s of Hugging Face's encode_batch on all cores, strings of 4 kB."""
    os.environ["TOKENIZERS_PARALLELISM"] = "true"
    sample = text.read_bytes().decode()
    strings = [sample[at : at + 4096] for at in range(0, len(sample), 4096)]
    encoder = tokenizer(vocabulary)
    began = time.perf_counter()
    encoder.encode_batch(strings)
    return text.stat().st_size / 1e6 / (time.perf_counter() - began)


def copy(corpus: Path, whole: Path) -> float:
    """MB/s of a plain copy of all files into one, synced."""
    began = time.perf_counter()
    with open(whole, "wb") as file:
        for path in sorted(corpus.iterdir()):
            with open(path, "rb") as source:
                while block := source.read(1 << 20):
                    file.write(block)
        os.fsync(file.fileno())
    return whole.stat().st_size / 1e6 / (time.perf_counter() - began)


def _cut(whole: Path, name: str, size: int) -> Path:
    """The beginning of a file, as another."""
    path = whole.with_name(name)
    with open(whole, "rb") as file:
        path.write_text(file.read(size).decode(errors="ignore"), encoding="utf-8", newline="")
    return path


def measure(kind: str, vocabulary: int, asked: argparse.Namespace, volume: Path) -> dict:
    """All figures for one kind of text and one vocabulary."""
    corpus = volume / "corpus"
    size = write_corpus(corpus, kind, asked.megabytes, asked.shape) / 1e6
    write_model(volume / "model", vocabulary)
    # The tokenizer's export by transformers is made once for a model, whatever the text.
    write_corpus(volume / "one", kind, 1, "files")
    tokenize(volume, dataset="one")
    first, again = tokenize(volume), tokenize(volume)
    looked = tokenize(volume, look=True, retokenize=True)
    files = sorted(corpus.iterdir())
    for path in files[: max(1, len(files) // 100)]:
        with open(path, "ab") as file:
            file.write(b"one more line\n")
    changed = tokenize(volume)
    figures = {
        "text": f"{kind}, {size:.0f} MB, {asked.shape}, {vocabulary:,} tokens",
        "store MB/s": round(size / first.seconds, 1),
        "seconds": round(first.seconds, 1),
        "of all cores": round(first.cpu_seconds, 1),
        "again seconds": round(again.seconds, 2),
        "of that work": again.result["seconds"],
        "again over first": round(again.seconds / first.seconds, 3),
        "1 % changed seconds": round(changed.seconds, 1),
        "changed over first": round(changed.seconds / first.seconds, 2),
        "peak MiB": looked.peak_mib,
        "encoder": first.result["encoder"],
    }
    return figures if asked.no_peers else figures | _peers(volume, vocabulary, size / first.seconds)


def _peers(volume: Path, vocabulary: int, speed: float) -> dict:
    """MB/s of the peers over the same text; `speed` is the store's."""
    whole = volume / "whole.txt"
    copied = copy(volume / "corpus", whole)
    sample = _cut(whole, "sample.txt", _SAMPLE_BYTES)
    small = _cut(whole, "small.txt", _OWN_SAMPLE_BYTES)
    alone = peer(_ENCODER, volume, sample)
    return {
        "encoder alone MB/s": round(alone, 1),
        "store over encoder alone": round(speed / alone, 2),
        "encode_batch MB/s": round(own_alone(vocabulary, small), 1),
        "datasets.map MB/s": round(peer(_DATASETS, volume, small), 2),
        "copy MB/s": round(copied),
    }


def _say_ratios(figures: dict, what: str) -> None:
    for name, higher in (("changed over first", False), ("store over encoder alone", True)):
        if name in figures:
            say_ratio(f"{what}: {name}", figures[name], higher=higher)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--megabytes", type=int, default=200)
    parser.add_argument("--kind", choices=KINDS, action="append")
    parser.add_argument("--vocabulary", type=int, action="append")
    parser.add_argument("--shape", choices=SHAPES, default="files")
    parser.add_argument("--no-peers", action="store_true")
    parser.add_argument("--folder", type=Path, help="where to work (default: a temporary one)")
    asked = parser.parse_args(arguments)
    versions = {name: version(name) for name in ("fastokens", "tokenizers", "datasets", "numpy")}
    load = os.getloadavg()[0]
    print(f"{os.cpu_count()} cores, load {load:.1f} before, Python {sys.version[:7]}, {versions}")
    for kind in asked.kind or KINDS:
        for vocabulary in asked.vocabulary or (50_257, 128_000):
            with tempfile.TemporaryDirectory(dir=asked.folder) as folder:
                figures = measure(kind, vocabulary, asked, Path(folder))
                for name, figure in figures.items():
                    print(f"{name:>24}  {figure}", flush=True)
                _say_ratios(figures, f"tokens, {asked.shape}, {kind}, {vocabulary:,} ids")
    return 0


if __name__ == "__main__":
    sys.exit(main())
