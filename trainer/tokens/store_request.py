"""What a store is to be made of: the same for every kind of text."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trainer.contract import events
from trainer.contract.step_configs import TokenizeConfig
from trainer.contract.volume import path_on_volume
from trainer.tokens.encode.vocabulary import Vocabulary, check_embeddings, load_vocabulary
from trainer.tokens.text.sources import Source

CACHE = "cache/tokens"


@dataclass(frozen=True, kw_only=True)
class StoreRequest:
    """A store that is not there yet."""

    config: TokenizeConfig
    key: str
    """What it is named by."""
    options: dict[str, Any]
    """Those that can change a byte."""
    sources: list[Source]
    digests: list[str]
    """Of each file."""
    shapes: list[str]
    """What the records of each file are."""
    tokenizer: Path
    """Its folder."""
    token_digest: str
    left_out: dict[str, dict[str, Any]]
    """Files of the dataset that are not read."""

    @property
    def cache(self) -> Path:
        return Path(self.config.volume) / CACHE

    def load_vocabulary(self) -> Vocabulary:
        """The tokenizer's.

        Raises:
            RequestError: The model has no embeddings for it.
        """
        found = load_vocabulary(self.tokenizer, self.token_digest, self.cache / "tokenizers")
        check_embeddings(found, path_on_volume(self.config.volume, "model", self.config.model))
        return found

    def load_vocabulary_to_encode(self) -> Vocabulary:
        """The same; what it can't encode is said."""
        found = self.load_vocabulary()
        if found.notice:
            events.notice(f"tokenizer: {found.notice}")
        return found
