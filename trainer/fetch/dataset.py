"""Whether a dataset has text, as the tokenize step will list it; nothing is read."""

from pathlib import Path

from trainer.contract.errors import RequestError
from trainer.tokens.text.kept_listing import list_once
from trainer.tokens.text.sources import SourceList, shown

_NAMED = 3  # files to name in a message


def check_dataset(volume: Path, dataset: str, listing: str, arrays: bool = False) -> SourceList:
    """The dataset's files; RequestError where it is missing, empty or without a file of text."""
    sources, _ = list_once(str(volume), dataset, listing, arrays)
    if any(source.size for source in sources):
        return sources
    names = [source.path for source in sources[:_NAMED]]
    rest = len(sources) - len(names)
    raise RequestError(
        f"dataset has empty files only (got {shown(dataset)!r} with {', '.join(names)}"
        + (f" and {rest} more" if rest else "")
        + "). Text is needed to train on. Copy yours there."
    )
