"""The demo: the same bytes for the same seed, loadable as any model, never over user files."""

import hashlib
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from flows.cli.options import read_parameters
from trainer.contract.errors import RequestError
from trainer.demo.place import DATASET, MARKER, MODEL, place_dataset
from trainer.demo.tales import dataset_files
from trainer.fetch.model_folder import read_model
from trainer.fetch.tokenizer_folder import count_token_ids

ROOT = Path(__file__).parents[2]


def demo(volume: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "trainer.demo", "--volume", str(volume), *arguments],
        capture_output=True,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "true"},
    )


def digests(folder: Path) -> dict[str, str]:
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


@pytest.fixture(scope="module")
def volume(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A volume with the demo on it, made once for this module."""
    volume = tmp_path_factory.mktemp("demo") / "volume"
    made = demo(volume)
    assert made.returncode == 0, made.stderr
    return volume


def test_same_seed_makes_the_same_bytes(volume: Path, tmp_path: Path) -> None:
    assert demo(tmp_path).returncode == 0
    assert digests(tmp_path) == digests(volume)


def test_other_seed_makes_other_tales() -> None:
    assert dict(dataset_files(1)) != dict(dataset_files(2))
    assert dict(dataset_files(1)).keys() == dict(dataset_files(2)).keys()


def test_dataset_has_each_kind_of_file_and_a_few_megabytes(volume: Path) -> None:
    files = [path for path in (volume / DATASET).rglob("*") if path.name != MARKER]
    files = [path for path in files if path.is_file()]
    assert {path.suffix for path in files} == {".txt", ".md", ".jsonl"}
    assert 2_500_000 < sum(path.stat().st_size for path in files) < 5_000_000
    assert any(len(path.relative_to(volume / DATASET).parts) > 2 for path in files)
    lines = (volume / DATASET / "yarns.jsonl").read_text().splitlines()
    assert all(json.loads(line)["text"] for line in lines)


def test_no_slot_of_a_template_is_left_empty(volume: Path) -> None:
    for path in (volume / DATASET).rglob("*.txt"):
        text = path.read_text()
        assert "{" not in text and "}" not in text, path
        assert "  " not in text and ".." not in text, path


def test_model_passes_the_checks_of_the_fetch_step(volume: Path) -> None:
    facts = read_model(volume / MODEL)
    assert facts.context_limit == 256
    assert 2e6 < facts.parameters < 8e6
    assert count_token_ids(volume / MODEL, "model") == facts.embeddings


def test_transformers_loads_model_and_tokenizer(volume: Path) -> None:
    # In a process of its own: torch is slow to load, and no other test here needs it.
    code = """
import sys, torch
from transformers import AutoModelForCausalLM, AutoTokenizer
model = AutoModelForCausalLM.from_pretrained(sys.argv[1])
tokenizer = AutoTokenizer.from_pretrained(sys.argv[1])
text = 'Then Dutch Kessler took the gold.\\n\\n"Caf\u00e9?" asked Smoky Jack.<|endoftext|>'
ids = tokenizer(text, return_tensors="pt")["input_ids"]
assert ids[0, -1] == tokenizer.eos_token_id == model.config.eos_token_id == 0
assert tokenizer.decode(ids[0]) == text
with torch.no_grad():
    loss = model(ids, labels=ids).loss.item()
assert 7.0 < loss < 8.5, loss  # about ln(2048): it knows nothing yet
print(type(model).__name__, len(ids[0]) < len(text) / 2)
"""
    ran = subprocess.run(
        [sys.executable, "-c", code, str(volume / MODEL)], capture_output=True, text=True
    )
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout.split() == ["GPTJForCausalLM", "True"]


def test_second_time_touches_nothing(volume: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in volume.rglob("*")}
    again = demo(volume)
    assert again.returncode == 0
    assert again.stdout.count("cached") == 2
    assert {path: path.stat().st_mtime_ns for path in volume.rglob("*")} == before


def test_second_time_loads_no_torch(volume: Path) -> None:
    code = (
        "import sys; from trainer.demo.__main__ import main; "
        "code = main(sys.argv[1:]); print('torch' in sys.modules); sys.exit(code)"
    )
    ran = subprocess.run(
        [sys.executable, "-c", code, "--volume", str(volume)], capture_output=True, text=True
    )
    assert ran.stdout.splitlines()[-1] == "False", ran.stderr


def test_deleted_file_is_put_back_and_a_changed_one_kept(tmp_path: Path) -> None:
    place_dataset(tmp_path, 42)
    tale, yarns = (tmp_path / DATASET / name for name in list(dict(dataset_files(42)))[::360])
    whole = tale.read_bytes()
    tale.unlink()
    yarns.write_text('{"text": "mine"}\n')
    (tmp_path / DATASET / "mine.txt").write_text("mine")
    assert "1 of them put back" in place_dataset(tmp_path, 42)
    assert tale.read_bytes() == whole
    assert yarns.read_text() == '{"text": "mine"}\n'
    assert (tmp_path / DATASET / "mine.txt").read_text() == "mine"


def test_folder_of_the_users_own_is_never_written_to(tmp_path: Path) -> None:
    (tmp_path / DATASET).mkdir()
    (tmp_path / DATASET / "mine.txt").write_text("mine")
    before = digests(tmp_path)
    ran = demo(tmp_path)
    assert ran.returncode == 78
    assert "--volume has a folder dataset that the demo did not make" in ran.stderr
    assert digests(tmp_path) == before


def test_demo_of_another_seed_is_not_replaced(tmp_path: Path) -> None:
    place_dataset(tmp_path, 1)
    with pytest.raises(RequestError, match="dataset holds another demo"):
        place_dataset(tmp_path, 2)


def test_interrupted_demo_leaves_no_half_dataset(tmp_path: Path) -> None:
    # The disk takes no more after a few files: what a full one does.
    script = 'ulimit -f 8; exec "$0" -m trainer.demo --volume "$1"'
    ran = subprocess.run(
        ["sh", "-c", script, sys.executable, str(tmp_path)],
        capture_output=True,
        text=True,
    )
    assert ran.returncode != 0
    assert list(tmp_path.iterdir()) == []


def test_its_parameters_are_a_request_for_what_the_demo_made() -> None:
    parameters = read_parameters((), ROOT / "demo.yaml")
    assert (parameters.dataset, parameters.model) == (DATASET, MODEL)
    assert parameters.run_name == "demo" and parameters.run_inference


# Stands where `finetune` stands, and writes down what it was asked.
STAND_IN = """#!/bin/sh
echo "$1 $2" >> {told}
if [ "$1" = run ]; then
    [ -z "$WAITS" ] || {{ echo up >> {told}; while [ -e {told}.wait ]; do sleep 0.05; done; }}
    exit ${{CODE:-0}}
fi
"""


@pytest.fixture
def make_demo(tmp_path: Path, volume: Path) -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """`make demo` as it is, with `finetune` and the tools of `make setup` replaced."""
    binaries = tmp_path / "bin"
    binaries.mkdir()
    (tmp_path / "finetune-data").symlink_to(volume)
    stand_in = binaries / "finetune"
    stand_in.write_text(STAND_IN.format(told=tmp_path / "told"))
    stand_in.chmod(0o755)
    (binaries / "python").write_text(f'#!/bin/sh\nexec {sys.executable} "$@"\n')
    (binaries / "python").chmod(0o755)
    (tmp_path / "told").touch()
    shutil.copy(ROOT / "Makefile", tmp_path)  # the lock

    def start(**environment: str) -> subprocess.Popen[str]:
        command = ["make", "-o", "setup", "demo", f"BIN={binaries}"]
        return subprocess.Popen(
            command,
            cwd=tmp_path,
            env={**os.environ, "PYTHONPATH": str(ROOT), **environment},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    yield start
    (tmp_path / "told.wait").unlink(missing_ok=True)


@pytest.mark.parametrize(
    ("code", "told"),
    [
        (0, ["run --params", "ask demo", "stop demo"]),
        (1, ["run --params", "stop demo"]),
        (75, ["run --params", "stop demo"]),
        (78, ["run --params"]),  # refused: what runs was started by somebody else
    ],
)
def test_make_demo_stops_what_it_started_and_nothing_else(
    make_demo: Callable[..., subprocess.Popen[str]], tmp_path: Path, code: int, told: list[str]
) -> None:
    with make_demo(CODE=str(code)) as made:
        made.communicate()
    assert (made.returncode == 0) == (code == 0)
    assert (tmp_path / "told").read_text().splitlines() == told


def test_a_second_make_demo_leaves_the_first_one_alone(
    make_demo: Callable[..., subprocess.Popen[str]], tmp_path: Path
) -> None:
    told = tmp_path / "told"
    (tmp_path / "told.wait").touch()
    with make_demo(WAITS="yes") as first:
        while "up" not in told.read_text():
            time.sleep(0.05)
        with make_demo() as second:
            _, said = second.communicate()
        assert second.returncode != 0
        assert "a demo is running already" in said
        assert told.read_text().splitlines() == ["run --params", "up"]
        (tmp_path / "told.wait").unlink()
        first.communicate()
    assert first.returncode == 0
    assert told.read_text().splitlines()[2:] == ["ask demo", "stop demo"]
    with make_demo() as third:
        third.communicate()
    assert third.returncode == 0
