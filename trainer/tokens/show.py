"""A store for people: its ledger, and a context as text with its sources marked."""

import json
from pathlib import Path

from trainer.errors import RequestError
from trainer.tokens.store import TokenStore

BOUNDARY_MARK = "¶"
_LONGEST_TABLE = 200


def describe(store: TokenStore) -> str:
    """The ledger of a store: what each file gave, and that it adds up."""
    manifest, totals = store.manifest, store.manifest.totals
    held_out = manifest.num_contexts - manifest.num_train_contexts
    lines = [
        f"{store.folder.name}  {store.digest}",
        f"{manifest.num_contexts:,} contexts of {manifest.context:,} ids "
        f"({manifest.num_train_contexts:,} to train on, {held_out:,} held out), "
        f"{manifest.dtype}, by {manifest.encoder}",
        f"padding {manifest.num_padding:,} ids, end of text {manifest.eot_token_id}, "
        f"pad {manifest.pad_token_id}, boundary {manifest.boundary_token_id}",
        "",
        *_table(store),
        "",
        f"{totals['encoded']:,} tokens encoded + {totals['repeated']:,} repeated by overlap "
        f"= {totals['in_contexts']:,} in contexts + {totals['boundaries']:,} boundaries "
        f"between two + {totals['sampled_out']:,} sampled out",
        f"{totals['empty_documents']:,} documents were empty, "
        f"{totals['blank_lines']:,} lines of JSONL blank",
    ]
    return "\n".join(lines)


def _table(store: TokenStore) -> list[str]:
    columns = ("bytes", "documents", "tokens", "held_out_tokens", "contexts", "repeated")
    names = ("bytes", "documents", "tokens", "held out", "contexts", "repeated", "dropped", "file")
    sources = store.manifest.sources
    rows = [names]
    for source in sources[:_LONGEST_TABLE]:
        dropped = source["dropped"]["boundaries"] + source["dropped"]["sampled_out"]
        figures = [*(source[column] for column in columns), dropped]
        rows.append((*(f"{figure:,}" for figure in figures), source["path"]))
    widths = [max(len(row[at]) for row in rows) for at in range(len(names) - 1)]
    lines = []
    for row in rows:
        figures = [cell.rjust(width) for cell, width in zip(row, widths, strict=False)]
        lines.append("  ".join([*figures, row[-1]]))
    if len(sources) > _LONGEST_TABLE:
        lines.append(f"... and {len(sources) - _LONGEST_TABLE:,} files more, all in manifest.json")
    return lines


def show_context(store: TokenStore, index: int) -> str:
    """Context `index` as text, each part under its file and document.

    Boundary tokens, after which the next context may begin, have a mark before them.

    Raises:
        RequestError: There is no such context, or the tokenizer's export was deleted.
    """
    manifest = store.manifest
    try:
        spans = store.document_of(index)
    except ValueError as error:
        raise RequestError(str(error)) from error
    length = int(store.lengths[index])
    ids = store.contexts[index, :length].tolist()
    side = "to train on" if index < manifest.num_train_contexts else "held out"
    lines = [f"context {index:,} of {manifest.num_contexts:,}, {side}: {length:,} ids"]
    decode = _decoder(store)
    for span in spans:
        lines.append(f"--- {span.path}, document {span.number}: ids {span.begin} to {span.end - 1}")
        lines.append(_marked(decode, ids[span.begin : span.end], manifest.boundary_token_id))
    if length < manifest.context:
        lines.append(f"--- padding: ids {length} to {manifest.context - 1}")
    return "\n".join(lines)


def _marked(decode, ids: list[int], boundary: int | None) -> str:  # type: ignore[no-untyped-def]
    """The text of `ids`, a mark before each boundary token."""
    text, begin = [], 0
    for at in [*(at for at, token in enumerate(ids) if token == boundary), len(ids)]:
        text.append(decode(ids[begin:at], skip_special_tokens=False))
        begin = at
    return BOUNDARY_MARK.join(text)


def _decoder(store: TokenStore):  # type: ignore[no-untyped-def]
    from tokenizers import Tokenizer

    volume = store.folder.parents[1]
    path = volume / "cache/tokens/tokenizers" / f"{store.manifest.tokenizer_digest}.json"
    try:
        exported = json.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise RequestError(
            f"tokenizer of this store is not in the volume's cache any more (got {error}). "
            "Text needs it. Tokenize the dataset again: the store is found, or made anew."
        ) from error
    return Tokenizer.from_str(exported["tokenizer_json"]).decode
