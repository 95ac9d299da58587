"""Give the command line random words for as long as you like: `make fuzz MINUTES=60`.

Each command runs in a fork of this process, on a small volume with damaged runs. Ends with 1 at
a traceback, an exit code that the help does not name, or ten seconds of processor time.
"""

import argparse
import contextlib
import json
import os
import random
import resource
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

from tests.fetch.conftest import model_files, write
from trainer.contract.parameters import Parameters

CODES = (0, 1, 75, 78)
HANG_SECONDS = 10  # of a processor: the machine may be busy with others
WALL_SECONDS = 180
DEEP = "[" * 40_000 + "]" * 40_000
WORDS = [
    *["", " ", "0", "-0", "-1", "1", "1e400", "-1e-400", "nan", "inf", "true", "null", "None"],
    *["[]", "{}", "0x10", "1_000", "1,5", "٣", str(2**31), str(2**62), str(-(2**63)), "9" * 5000],
    *["0." + "3" * 400, "dataset", "models/tiny", "tokens", "run", "cut", "deep", "..", "/", "."],
    *["~", "a/../b", "//", "\\", "-", "--", "-p", "--help", "%s", "{x}", "$(id)", "`id`", "a\nb"],
    *["\t", "\r", "\x1b[31m", "a" * 3000, "é", "中文", "😀", "\u202e", "\ufeff", "\udcff"],
    *["e\u0301", "İ", "ſ", "foo://x", "http://127.0.0.1:9/a.txt?x=1", "zip::none.zip", "file://"],
    *["memory://x", "::", "s3://", "org/name", "org/name@main", "org/name@", "@", "a@b@c", DEEP],
    *['{"a": ' + DEEP + "}", '"', "'", "{", "[1", '{"rank": 4}', '{"rank": -1}', '{"rank": "x"}'],
    *['{"max_dollars": 1e400}', '{"keep_last": 0}', '{"engine": "vllm"}', '{"api_key": "KEY"}'],
    *['{"nodes": 2}', '{"secrets": [1]}', '{"a": {"b": 1}}'],
]
YAMLS = [
    *["!!bool x", "!!int x", "!!float x", "!!timestamp x", "!!binary x", "!!python/name:os.sep x"],
    *["[a]: 1", "? {a: 1}\n: 2", "a: &a [*a]", "a: *b", "<<: 1", "!!set {a, b}", "a: !!omap [1]"],
    *[
        "a: !!bool x",
        "a: !!timestamp x",
        "lora: {rank: !!int x}",
        "- a",
        "---\n---",
        "%YAML 9",
        "a: |",
    ],
]
Make = Callable[[random.Random, Path], list[str]]


def made_home(home: Path) -> None:
    """A small volume, with runs that are damaged in several ways."""
    volume = home / "finetune-data"
    write(volume / "dataset", {"a.txt": b"Once upon a time.\n" * 300})
    write(volume / "models/tiny", model_files())
    record = {"format": 1, "created": "2026-01-01T00:00:00", "request": {"model": "models/tiny"}}
    write(volume / "run", {"run.json": json.dumps(record).encode(), "metrics.jsonl": b'{"step": 1'})
    write(volume / "cut", {"run.json": b'{"format": 1, "cre'})
    write(volume / "deep", {"run.json": DEEP.encode(), "metrics.jsonl": DEEP.encode() + b"\n"})
    write(volume / "tokens/odd-0123456789abcdef", {"manifest.json": b"[1]", "tokens.bin": b"\0"})


def word(rng: random.Random) -> str:
    """One of the odd words, or two of them together."""
    one = rng.choice(WORDS)
    return one + rng.choice(WORDS) if rng.random() < 0.1 and len(one) < 100 else one


def parameters(rng: random.Random) -> list[str]:
    """Some parameters with odd values, mostly below what makes a request complete."""
    names = list(Parameters.model_fields)
    given = {} if rng.random() < 0.2 else {"model": "models/tiny", "context": "16"}
    for _ in range(rng.randint(1, 4)):
        name = rng.choice(names) if rng.random() < 0.95 else word(rng)
        given[name] = word(rng)
    return [part for name, value in given.items() for part in ("-p", f"{name}={value}")]


def parameter_file(rng: random.Random, home: Path) -> list[str]:
    """The same in a file, as JSON, YAML or neither."""
    path = home / "params.yaml"
    values = {rng.choice(list(Parameters.model_fields)): word(rng) for _ in range(3)}
    text = rng.choice(
        [
            json.dumps(values),
            word(rng),
            rng.choice(YAMLS),
            f"model: {word(rng)}\ncontext: {word(rng)}\n",
        ]
    )
    path.write_bytes(text.encode(errors="surrogateescape"))
    return ["--params", str(path)]


def asked(rng: random.Random, home: Path) -> list[str]:
    return parameter_file(rng, home) if rng.random() < 0.2 else parameters(rng)


def plan(rng: random.Random, home: Path) -> list[str]:
    options: list[list[str]] = [[], ["--json"], ["--contexts", word(rng)], ["--contexts", "1000"]]
    return ["plan", *asked(rng, home), *rng.choice(options)]


def render(rng: random.Random, home: Path) -> list[str]:
    return ["render", "-p", "run_name=run", *asked(rng, home), "--tokens", word(rng)]


def refused_run(rng: random.Random, home: Path) -> list[str]:
    """A run that is refused in any case: one that is not would take its time."""
    return ["run", *asked(rng, home), "-p", "run_name=x", "-p", "prompt_file=none/at/all"]


def of_a_run(rng: random.Random, home: Path) -> list[str]:
    commands = [
        *(["show"], ["verify"], ["tokens"], ["diff", word(rng)], ["export-run"], ["reproduce"]),
        *(["stop"], ["rollback"], ["forget"], ["ask", word(rng)], ["adopt"], ["import-argo"]),
    ]
    command, *more = rng.choice(commands)
    if rng.random() < 0.2:
        more += [rng.choice(["--pvc", "--step", "--as", "--max-tokens", "--context"]), word(rng)]
    run = word(rng) if rng.random() < 0.7 else rng.choice(["run", "cut", "deep"])
    return [command, run, *more]


def plain(rng: random.Random, home: Path) -> list[str]:
    return rng.choice([["runs"], ["runs", "--json"], ["parameters"], ["prune"], ["--version"]])


def any_words(rng: random.Random, home: Path) -> list[str]:
    return [word(rng) for _ in range(rng.randint(0, 4))]


COMMANDS: dict[Make, float] = {
    plan: 5,
    render: 3,
    of_a_run: 3,
    plain: 1,
    any_words: 1,
    refused_run: 0.2,
}


def ended(arguments: list[str], home: Path) -> tuple[int, str]:
    """The exit code of the command line, negative for a signal, and what it printed."""
    with tempfile.TemporaryFile() as output:
        child = os.fork()
        if not child:
            with contextlib.suppress(BaseException):
                _be_the_command(arguments, home, output.fileno())
            os._exit(99)
        status = _waited(child)
        output.seek(0)
        return os.waitstatus_to_exitcode(status), output.read().decode(errors="replace")


def _be_the_command(arguments: list[str], home: Path, output: int) -> None:
    from flows.cli.main import main

    for stream in (1, 2):
        os.dup2(output, stream)
    os.setsid()
    os.chdir(home)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_CPU, (HANG_SECONDS, HANG_SECONDS + 1))
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    sys.argv = ["finetune", *arguments]
    code: int | str | None = 0
    try:
        main()
    except SystemExit as end:
        code = end.code
    except BaseException:  # noqa: BLE001 - Python would print it
        import traceback

        traceback.print_exc()
        code = 1
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    os._exit(code if isinstance(code, int) else 0 if code is None else 1)


def _waited(child: int) -> int:
    """The status of a process that ends, or is ended."""
    until = time.monotonic() + WALL_SECONDS
    while time.monotonic() < until:
        pid, status = os.waitpid(child, os.WNOHANG)
        if pid:
            return status
        time.sleep(0.01)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(child, signal.SIGKILL)
    return os.waitpid(child, 0)[1]


def problem_of(code: int, output: str) -> str:
    """What is wrong with how a command ended; empty: nothing."""
    if code in (-signal.SIGXCPU, -signal.SIGKILL):
        return f"it took more than {HANG_SECONDS} s of a processor, or {WALL_SECONDS} s"
    if "Traceback (most recent call last)" in output:
        return "a traceback"
    return "" if code in CODES else f"exit code {code}"


def fuzz(home: Path, rng: random.Random, *, seconds: float = 0, cases: int = 0) -> int:
    """Run commands until the time or the number is over; the exit code."""
    os.environ |= {
        "FINETUNE_EXAMS": "off", "HF_HUB_OFFLINE": "1", "FINETUNE_HOME": str(home),
        "HF_ENDPOINT": "http://127.0.0.1:9", "AWS_EC2_METADATA_DISABLED": "true",
    }  # fmt: skip
    import flows.cli.main  # noqa: F401 - once, for all forks

    made_home(home)
    codes: Counter[tuple[str, int]] = Counter()
    problems, until = 0, time.monotonic() + seconds
    while time.monotonic() < until or codes.total() < cases:
        [make] = rng.choices(list(COMMANDS), list(COMMANDS.values()))
        arguments = make(rng, home)
        code, output = ended(arguments, home)
        codes[make.__name__, code] += 1
        if problem := problem_of(code, output):
            problems += 1
            shown = [argument[:200] for argument in arguments]
            print(f"{problem}: finetune {shown}\n{output[-1500:]}\n", flush=True)
            shutil.rmtree(home / "finetune-data")
            made_home(home)
    print(f"{codes.total():,} commands, {problems} problems; exit codes by kind of command:")
    print(", ".join(f"{kind} {code}: {count:,}" for (kind, code), count in sorted(codes.items())))
    return 1 if problems else 0


def main() -> int:
    parser = argparse.ArgumentParser(description="Fuzz the command line.")
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as home:
        return fuzz(Path(home), random.Random(given.seed), seconds=60 * given.minutes)


if __name__ == "__main__":
    sys.exit(main())
