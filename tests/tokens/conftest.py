"""A volume with small models, and a way to run the step on files given as literals."""

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.object_store import s3_server
from tests.tokens.models import EOT, LLAMA, PAD, beginning, byte_level, letters, save
from trainer.contract.step_configs import TokenizeConfig
from trainer.steps import StepResult
from trainer.tokens import step
from trainer.tokens.store import TokenStore


class Volume:
    """One volume: write a dataset, make its store."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def write(self, files: dict[str, bytes | str], dataset: str = "tales") -> Path:
        """Make `files` the dataset, and nothing else."""
        folder = self.root / dataset
        shutil.rmtree(folder, ignore_errors=True)
        for name, content in files.items():
            path = folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content.encode() if isinstance(content, str) else content)
        return folder

    def config(self, **options: object) -> TokenizeConfig:
        """A config with the tests' usual values."""
        usual = {"dataset": "tales", "model": "models/bytes", "context": 32, "train_ratio": 1.0}
        return TokenizeConfig(volume=str(self.root), **{**usual, **options})  # type: ignore[arg-type]

    def run(self, **options: object) -> StepResult:
        """Run the step."""
        return step.run(self.config(**options))

    def store(self, files: dict[str, bytes | str] | None = None, **options: object) -> TokenStore:
        """Make the store of `files` and open it, every digest compared."""
        if files is not None:
            self.write(files)
        result = self.run(**options)
        return TokenStore.open(self.root / result.result["store"], verify=True)


def texts(store: TokenStore) -> list[list[int]]:
    """Each context's ids without its padding."""
    pairs = zip(np.array(store.contexts), store.lengths, strict=True)
    return [row[:length].tolist() for row, length in pairs]


def content(store: TokenStore) -> dict[str, bytes]:
    """Every byte of a store."""
    return {path.name: path.read_bytes() for path in sorted(store.folder.iterdir())}


def save_models(root: Path) -> None:
    """Write the tests' models to a volume."""
    names = {"eos_token": EOT, "pad_token": PAD}
    save(byte_level(), root / "models/bytes", **names)
    save(byte_level(LLAMA), root / "models/llama", **names)
    save(beginning(), root / "models/begins", **names)
    save(letters(), root / "models/letters", eos_token="#", pad_token="_")
    save(letters(70_000), root / "models/many", eos_token="#", pad_token="_")


@pytest.fixture(scope="session")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A volume whose tokenizers are exported already: transformers takes seconds for each."""
    root = tmp_path_factory.mktemp("prepared")
    save_models(root)
    volume = Volume(root)
    volume.write({"a.txt": "a"}, "first")
    for model in ("bytes", "llama", "begins", "letters", "many"):
        volume.run(dataset="first", model=f"models/{model}", boundary_token="")
    return root


@pytest.fixture
def volume(prepared: Path, tmp_path: Path) -> Volume:
    """A volume of the test's own, with the session's models and exported tokenizers."""
    root = tmp_path / "volume"
    shutil.copytree(prepared / "models", root / "models")
    shutil.copytree(prepared / "cache/tokens/tokenizers", root / "cache/tokens/tokenizers")
    return Volume(root)


@pytest.fixture
def bucket(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """An empty bucket `corpus` on an S3 server of the test's own; yields a client for it."""
    import boto3
    import s3fs

    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "test")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "test")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    with s3_server() as url:
        monkeypatch.setenv("AWS_ENDPOINT_URL", url)
        s3fs.S3FileSystem.clear_instance_cache()
        client = boto3.client("s3")
        client.create_bucket(Bucket="corpus")
        yield client
        s3fs.S3FileSystem.clear_instance_cache()
