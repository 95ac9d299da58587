"""A volume with a model that chats, and the tests' usual ways to make stores on it."""

import shutil
from pathlib import Path
from typing import Any

import pytest

from tests.chat.templates import CHATML, with_turns
from tests.tokens.conftest import Volume
from tests.tokens.models import EOT, PAD, save
from trainer.contract.errors import RequestError
from trainer.contract.topics import DataConfig
from trainer.tokens.store import TokenStore


class Chats(Volume):
    """Makes stores with the model that has a template."""

    def config(self, **options: Any) -> Any:
        data = options.pop("data", {})
        usual = {"model": "models/chat", "context": 64, "data": DataConfig(**data)}
        return super().config(**{**usual, **options})

    def refused(self, files: dict[str, bytes | str], **options: Any) -> str:
        """Why these files are refused."""
        self.write(files)
        with pytest.raises(RequestError) as caught:
            self.run(**options)
        return str(caught.value)


def save_models(root: Path) -> None:
    names = {"eos_token": EOT, "pad_token": PAD}
    save(with_turns(), root / "models/chat", **names, chat_template=CHATML)
    save(with_turns(), root / "models/plain", **names)


@pytest.fixture(scope="session")
def prepared_chats(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A volume whose tokenizers are exported already: transformers takes seconds for each."""
    root = tmp_path_factory.mktemp("prepared-chats")
    save_models(root)
    volume = Chats(root)
    volume.write({"a.jsonl": '{"messages": [{"role": "assistant", "content": "a"}]}'}, "first")
    volume.run(dataset="first")
    (root / "template.jinja").write_text(CHATML, encoding="utf-8")
    volume.run(dataset="first", model="models/plain", data={"template": "template.jinja"})
    return root


@pytest.fixture
def chats(prepared_chats: Path, tmp_path: Path) -> Chats:
    root = tmp_path / "volume"
    shutil.copytree(prepared_chats / "models", root / "models")
    for name in ("tokenizers", "special"):
        shutil.copytree(prepared_chats / "cache/tokens" / name, root / "cache/tokens" / name)
    return Chats(root)


def shown(store: TokenStore, index: int) -> tuple[str, str]:
    """A context's text, and what of it is trained."""
    length = int(store.lengths[index])
    ids, decode = store.contexts[index, :length], with_turns().decode
    trained = store.trained([index])
    marked = ids[trained[0, :length]] if trained is not None else ids[1:]
    return (
        decode(ids.tolist(), skip_special_tokens=False),
        decode(marked.tolist(), skip_special_tokens=False),
    )
