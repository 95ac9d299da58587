"""Token stores for people: what is in one. Loads numpy only when asked."""

import json
from pathlib import Path
from typing import TYPE_CHECKING

from trainer.contract.errors import DamagedError, RequestError
from trainer.contract.volume import can_be_a_path, shortened

if TYPE_CHECKING:
    from trainer.tokens.store import TokenStore


def show(volume: Path, store: str, context: int | None) -> str:
    """The ledger of a store, or one of its contexts as text.

    Args:
        volume: The volume's root.
        store: A folder, or the name of one below the volume's `tokens`.
        context: Number of the context to show; None: the ledger.
    Raises:
        RequestError: There is no such store, or no such context in it.
    """
    from trainer.tokens.show import describe, show_context

    opened = _opened(volume, store)
    return describe(opened) if context is None else show_context(opened, context)


def show_duplicates(volume: Path, store: str, near: float, *, as_skip: bool) -> str:
    """The documents of a store that are the same or nearly, or the `skip` that drops them.

    Raises:
        RequestError: There is no such store, or it lacks some of the text.
    """
    from trainer.tokens import duplicates

    groups = duplicates.duplicates(_opened(volume, store), near)
    if as_skip:
        return json.dumps(duplicates.as_skip(groups))
    return "\n".join(duplicates.describe(groups))


def _opened(volume: Path, store: str) -> "TokenStore":
    from trainer.tokens.store import TokenStore

    folders = (Path(store), volume / store, volume / "tokens" / store)
    known = can_be_a_path(store)
    folder = next((path for path in folders if known and path.is_dir()), None)
    if folder is None:
        names = ", ".join(path.name for path in sorted((volume / "tokens").glob("*-*")))
        raise RequestError(
            f"STORE is not there (got {shortened(store)!r}). There are: {names or 'none'}."
        )
    try:
        return TokenStore.open(folder.resolve())
    except DamagedError as error:
        raise RequestError(f"STORE can't be read (got {store!r}): {error}") from error
