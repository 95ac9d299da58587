"""`finetune tokenize`, `tokens` and `prune`: what a user sees of token stores."""

import json
import os
from pathlib import Path

from click.testing import CliRunner

from flows.cli.main import cli
from tests.flows.small_volume import PVC, SENTENCES, finetune

ASKED = ("-p", "model=models/tiny", "-p", "context=64", "-p", "dataset=stories.jsonl")


def said(*arguments: str) -> str:
    """What a command prints that answers at once."""
    done = CliRunner().invoke(cli, arguments, catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return done.output


def tokenized(home: Path, *more: str) -> tuple[Path, str]:
    """The store that `finetune tokenize` names last, and what it told before."""
    process = finetune(home, dict(os.environ), "tokenize", *ASKED, *more)
    out, err = process.communicate(timeout=1000)
    assert process.returncode == 0, err
    return Path(out.splitlines()[-1]), err


def test_from_json_lines_with_a_key_of_their_own_to_a_pruned_store(home: Path) -> None:
    volume = home / PVC
    path = volume / "stories.jsonl"
    lines = [json.dumps({"story": text.format(place="Mercy")}) for text in SENTENCES * 40]
    path.write_text("\n".join(lines))
    os.utime(path, (1e9, 1e9))
    at = ["--home", str(home)]

    store, _ = tokenized(home, "-p", "text_field=story")
    field = ["-p", "text_field=story", *ASKED]
    plan = json.loads(said("plan", *field, *at, "--backend", "local", "--json"))
    manifest = json.loads((store / "manifest.json").read_text())
    assert plan["num_contexts"] == manifest["num_contexts"]
    assert manifest["totals"]["documents"] == 160

    path.write_text(path.read_text().replace("Mercy", "mercy"))  # same size, inode and mtime
    os.utime(path, (1e9, 1e9))
    other, _ = tokenized(home, "--text-field", "story")
    assert other != store
    assert tokenized(home, "--text-field", "story", "--paranoid")[0] == other

    ledger = said("tokens", store.name, *at)
    assert f"{manifest['totals']['encoded']:,} tokens encoded" in ledger
    assert "stories.jsonl" in ledger
    assert "--- stories.jsonl, document 1" in said("tokens", store.name, "--context", "0", *at)

    os.utime(store, (1e9, 1e9))
    freed = said("prune", *at)
    assert f"tokens/{store.name}  (a store that no run names)" in freed
    assert "would be freed (--delete does it)" in freed
    assert store.exists()
    assert said("prune", "--delete", *at).endswith(" MB  freed\n")
    assert not store.exists() and other.exists()
