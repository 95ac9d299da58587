"""Encode with a tokenizer.json of a user's in a process of its own, which is stopped in time.

    python -m trainer.tokens.encode.apart FILE SECONDS     texts as JSON on its standard input

A file may make the library crash, or hold a pattern that takes for ever on some text: a pattern
that fails is tried in all ways there are. The process answers with ids, ends with a reason, or is
ended by the system after SECONDS of processor time.
"""

import json
import os
import resource
import signal
import subprocess
import sys
from array import array
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from trainer.contract.errors import RequestError
from trainer.contract.json_text import parse_json

PROBE_SECONDS = 20
ID = "I"
_PROBES = (
    "The sheriff rode in.",
    "a" * 500,
    " " * 500,
    "1" * 500,
    "a b " * 200,
    "é" * 500,
    "!?" * 200,
)
_WALL_SHARE = 30  # of a machine that is busy with others


def probe(tokenizer: Path, parameter: str, text: str = "") -> None:
    """Raise RequestError unless the tokenizer can be loaded and encodes text of many kinds.

    Args:
        tokenizer: Its tokenizer.json.
        parameter: Which parameter named it, for the error.
        text: The beginning of the dataset.
    """
    encode_apart(tokenizer, parameter, [text, *_PROBES], PROBE_SECONDS)


class Encoded(NamedTuple):
    """What a tokenizer makes of some texts."""

    before: Sequence[int]
    """What it puts before a text; see tokens/model_tokenizer.py."""
    ids: Sequence[Sequence[int]]
    """Of each text, without what is put before or after it."""


def encode_apart(tokenizer: Path, parameter: str, texts: Sequence[str], seconds: int) -> Encoded:
    """The ids of each text.

    Args:
        tokenizer: A tokenizer.json.
        parameter: Which parameter named it, for the error.
        seconds: Processor time that it may take.
    Raises:
        RequestError: It can't be loaded, or takes longer.
    """
    name = f"{parameter} {tokenizer.parent.name}"
    command = [sys.executable, "-P", "-m", __name__, str(tokenizer), str(seconds)]
    try:
        done = subprocess.run(
            command,
            input=json.dumps(list(texts)).encode(),
            capture_output=True,
            env={**child_environment(), "RUST_BACKTRACE": "0"},
            timeout=seconds * _WALL_SHARE,
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        raise RequestError(_too_slow(name, seconds)) from error
    if done.returncode in (-signal.SIGXCPU, -signal.SIGKILL):
        raise RequestError(_too_slow(name, seconds))
    if done.returncode:
        last = done.stderr.decode(errors="replace").strip().splitlines()[-1:] or ["no reason given"]
        raise RequestError(
            f"{name} has a damaged tokenizer (its tokenizer.json can't be used: {last[0][:300]}). "
            "Put the files of a whole one there, or set tokenizer."
        )
    before, *ids = _unpacked(done.stdout)
    return Encoded(before, ids)


def _too_slow(name: str, seconds: int) -> str:
    return (
        f"{name} has a tokenizer that does not come to an end (got more than {seconds} s of "
        "processor time for a little text). A pattern in its tokenizer.json tries too many ways. "
        "Correct the pattern, or set tokenizer."
    )


def child_environment() -> dict[str, str]:
    """The environment of a child process that imports this package and goes nowhere else."""
    root = str(Path(__file__).parents[3])
    before = os.environ.get("PYTHONPATH")
    return {
        **os.environ,
        "PYTHONPATH": root + (os.pathsep + before if before else ""),
        "HF_HUB_OFFLINE": "1",
        "TRANSFORMERS_VERBOSITY": "error",
        "TOKENIZERS_PARALLELISM": "false",
    }


def _unpacked(content: bytes) -> "list[array[int]]":
    """The arrays that `_packed` put together."""
    numbers = array(ID, content)
    count, at, found = numbers[0], 1, []
    ends = numbers[1 : 1 + count]
    at += count
    for size in ends:
        found.append(numbers[at : at + size])
        at += size
    return found


def _packed(ids: Sequence[Sequence[int]]) -> bytes:
    """How many texts there are, how many ids each has, and the ids."""
    numbers = array(ID, [len(ids), *map(len, ids)])
    for each in ids:
        numbers.extend(each)
    return numbers.tobytes()


# --- the process ------------------------------------------------------------------------


def main(tokenizer: str, seconds: str) -> int:
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_CPU, (int(seconds), int(seconds) + 1))
    texts = parse_json(sys.stdin.buffer.read())
    try:
        ids = _ids(tokenizer, texts)
    # The library raises plain Exception for a file that it can't load, and what is no Exception
    # where it panics.
    except BaseException as error:  # noqa: BLE001
        print(" ".join(str(error).split()), file=sys.stderr)
        return 1
    sys.stdout.buffer.write(_packed(ids))
    return 0


def _ids(tokenizer: str, texts: Sequence[str]) -> list[list[int]]:
    from tokenizers import Tokenizer

    encoder = Tokenizer.from_file(tokenizer)
    encoder.no_padding()
    encoder.no_truncation()
    ids = [encoder.encode(text, add_special_tokens=False).ids for text in texts]
    return [_before(encoder.encode("a")), *ids]


def _before(whole: Any) -> list[int]:
    return whole.ids[: whole.special_tokens_mask.index(0)] if 0 in whole.special_tokens_mask else []


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
