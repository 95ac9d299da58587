"""Token stores for people: what is in one, and which may go. Loads numpy only when asked."""

from pathlib import Path

from trainer.errors import DamagedError, RequestError


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
    from trainer.tokens.store import TokenStore

    folders = (Path(store), volume / store, volume / "tokens" / store)
    folder = next((path for path in folders if path.is_dir()), None)
    if folder is None:
        names = ", ".join(path.name for path in sorted((volume / "tokens").glob("*-*")))
        raise RequestError(f"STORE is not there (got {store!r}). There are: {names or 'none'}.")
    try:
        opened = TokenStore.open(folder.resolve())
    except DamagedError as error:
        raise RequestError(f"STORE can't be read (got {store!r}): {error}") from error
    return describe(opened) if context is None else show_context(opened, context)


def prune(volume: Path, delete: bool) -> str:
    """Delete what no run needs, or say what that would be; one line each, and the sum."""
    from trainer.tokens.prune import prune as prune_tokens

    found = prune_tokens(volume, dry_run=not delete)
    lines = [
        f"{item.size / 1e6:10,.1f} MB  {item.path.relative_to(volume)}  ({item.reason})"
        for item in found
    ]
    size = sum(item.size for item in found)
    done = "freed" if delete else "would be freed (--delete does it)"
    return "\n".join([*lines, f"{size / 1e6:10,.1f} MB  {done}"])
