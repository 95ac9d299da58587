"""A store for people: its ledger, and a context as text with its sources marked."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from trainer.contract.errors import RequestError
from trainer.contract.json_text import parse_json
from trainer.contract.wording import part_words
from trainer.tokens.store import SIDES, Manifest, TokenStore

BOUNDARY_MARK = "¶"
TRAINED_MARKS = "⟦", "⟧"
"""Around what is trained of a chat or completion."""
_LONGEST_TABLE = 200


def describe(store: TokenStore) -> str:
    """The ledger of a store: what each file gave, and that it adds up."""
    manifest = store.manifest
    held_out = manifest.num_contexts - manifest.num_train_contexts
    what = f"{'pairs of 2 x' if manifest.of_pairs else 'contexts of'} {manifest.context:,}"
    lines = [
        f"{store.folder.name}  {store.digest}",
        f"{manifest.num_contexts:,} {what} ids "
        f"({manifest.num_train_contexts:,} to train on, {held_out:,} held out), "
        f"{manifest.dtype}, by {manifest.encoder}",
        f"padding {manifest.num_padding:,} ids, end of text {manifest.eot_token_id}, "
        f"pad {manifest.pad_token_id}, boundary {manifest.boundary_token_id}",
        "",
        *_table(store),
        "",
        *_sums_of_manifest(manifest),
    ]
    return "\n".join(lines)


def _sums_of_manifest(manifest: Manifest) -> list[str]:
    if manifest.parts:
        return [_part(part) for part in manifest.parts]
    return (_sums_of_records if manifest.of_records else _sums)(manifest.totals)


def _part(part: dict[str, Any]) -> str:
    """What a mixture takes of a folder."""
    begin, end = part["held_out"]
    return f"{part['name']}: {part_words(part)}; {end - begin:,} contexts held out"


def _sums(totals: dict[str, int]) -> list[str]:
    return [
        f"{totals['encoded']:,} tokens encoded + {totals['repeated']:,} repeated by overlap "
        f"= {totals['in_contexts']:,} in contexts + {totals['boundaries']:,} boundaries "
        f"between two + {totals['sampled_out']:,} sampled out",
        f"{totals['empty_documents']:,} documents were empty, "
        f"{totals['blank_lines']:,} lines of JSONL blank",
    ]


def _sums_of_records(totals: dict[str, int]) -> list[str]:
    return [
        f"{totals['encoded']:,} tokens encoded = {totals['in_contexts']:,} in contexts "
        f"+ {totals['sampled_out']:,} sampled out + {totals['dropped_tokens']:,} in dropped "
        f"records + {totals['cut_tokens']:,} cut off",
        f"{totals['in_contexts']:,} in contexts = {totals['trained_tokens']:,} trained "
        f"+ {totals['masked_tokens']:,} masked",
        f"of {totals['documents']:,} records {totals['too_long']:,} were too long, "
        f"{totals['cut']:,} cut, {totals['cut_before_answer']:,} dropped because a cut left no "
        f"answer; {totals['blank_lines']:,} lines of JSONL blank",
    ]


def _table(store: TokenStore) -> list[str]:
    alike = all("trained_tokens" in source for source in store.manifest.sources)
    repeated = "trained_tokens" if alike else "repeated"
    columns = ("bytes", "documents", "tokens", "held_out_tokens", "contexts", repeated)
    last = (repeated.removesuffix("_tokens"), "dropped", "file")
    names = ("bytes", "documents", "tokens", "held out", "contexts", *last)
    sources = store.manifest.sources
    rows = [names]
    for source in sources[:_LONGEST_TABLE]:
        reasons = ("boundaries", "sampled_out", "dropped_tokens", "cut_tokens")
        dropped = sum(source["dropped"].get(reason, 0) for reason in reasons)
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

    Boundary tokens, after which the next context may begin, have a mark before them. What is
    trained of a chat or completion stands between marks.

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
    sides = SIDES if manifest.of_pairs else [""] * len(spans)
    for side, span in zip(sides, spans, strict=True):
        name = f"{span.path}, document {span.number}" + (f", {side}" if side else "")
        lines.append(f"--- {name}: ids {span.begin} to {span.end - 1}")
        if (trained := store.trained([index])) is not None:
            marked = trained[0, span.begin : span.end].tolist()
            lines.append(_with_trained(decode, ids[span.begin : span.end], marked))
            continue
        lines.append(_marked(decode, ids[span.begin : span.end], manifest.boundary_token_id))
    if length < manifest.width:
        lines.append(f"--- padding: ids {length} to {manifest.width - 1}")
    return "\n".join(lines)


def _with_trained(decode: Callable[..., str], ids: list[int], trained: list[bool]) -> str:
    """The text of `ids`, with marks around each stretch that is trained."""
    texts = []
    for is_trained, begin, end in _stretches(trained):
        text = decode(ids[begin:end], skip_special_tokens=False)
        texts.append(text.join(TRAINED_MARKS) if is_trained else text)
    return "".join(texts)


def _stretches(trained: list[bool]) -> Iterator[tuple[bool, int, int]]:
    """Stretches of one kind, from where to where."""
    begin = 0
    for at in range(1, len(trained) + 1):
        if at == len(trained) or trained[at] != trained[begin]:
            yield trained[begin], begin, at
            begin = at


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
        exported = parse_json(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise RequestError(
            f"tokenizer of this store is not in the volume's cache any more (got {error}). "
            "Text needs it. Tokenize the dataset again: the store is found, or made anew."
        ) from error
    return Tokenizer.from_str(exported["tokenizer_json"]).decode
