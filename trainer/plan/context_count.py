"""How many contexts a dataset makes: from its store, or estimated from a sample of its text.

For plans: nothing is written. An estimate reads about a megabyte, spread over the
files, encodes it with the model's tokenizer and cuts it by the tokenize step's own
rules, so it knows how long tokens are here and how much text contexts repeat.
Importing this loads nothing heavy; counting loads numpy and tokenizers.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import accumulate, pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trainer.contract.step_configs import TokenizeConfig
from trainer.plan.record_count import (
    estimate_records,
    fitting,
    packed_sample,
    refuse_too_long,
)
from trainer.plan.text_sample import (
    BYTES_PER_TOKEN,
    SAMPLE_BYTES,
    beginnings,
    encoded_sample,
    in_all,
    sampled,
    tokenizer_folder,
)
from trainer.tokens.beginning import before_document
from trainer.tokens.chat.shapes import as_arrays, check_shapes, is_of_records, peeked_shapes

if TYPE_CHECKING:
    from trainer.tokens.store import Manifest
    from trainer.tokens.text.sources import Source, SourceList


@dataclass(frozen=True, kw_only=True)
class ContextCount:
    """Contexts of a dataset under a request."""

    num_contexts: int
    num_train_contexts: int | None
    """Those that are not held out; None where it is not known exactly."""
    estimated: bool
    trained_tokens: int | None = None
    """Of whole records: those of an epoch that are trained; None: of plain text in a stream."""
    padding_share: float | None = None
    """Of whole records: the share of all contexts' ids that is padding; None: not known."""
    left_out_share: float | None = None
    """Of whole records: the share of the text that too_long drops or cuts; None: not known."""
    parts: list[dict[str, Any]] = field(default_factory=list)
    """Of a mixture: what is taken of each folder, see trainer/tokens/mixture/making.py."""


def count_contexts(config: TokenizeConfig, sources: "SourceList | None" = None) -> ContextCount:
    """Count the contexts that the tokenize step makes of `config`, or made.

    Args:
        config: What is asked for.
        sources: The dataset's files, where they were listed already.
    Raises:
        RequestError: The dataset is missing, empty or can't be read.
    """
    from trainer.tokens.pack.reference import count_token_contexts, is_token_file, num_train
    from trainer.tokens.text.kept_listing import list_once

    if config.data.is_mixture:
        return _mixed(config)
    if sources is None:
        arrays = config.data.is_of_records
        sources, _ = list_once(config.volume, config.dataset, config.listing, arrays)
    if is_token_file(config.dataset):
        count = count_token_contexts(config, sources[0])
        train = num_train(config, count)
        return ContextCount(num_contexts=count, num_train_contexts=train, estimated=False)
    some, shapes = peeked_shapes(config.data, sources, config.text_field)
    check_shapes(config.data, config.dataset, some, shapes, sources.left_out)
    manifest, _ = finished_store(config, sources, is_of_records(shapes))
    if manifest is not None:
        return _exact(manifest)
    if is_of_records(shapes):
        return _estimated_records(config, sources, some, shapes)
    if config.data.packing:
        return _packed(config, sources)
    contexts = _estimated(config, sources) * config.sampling / 100
    return ContextCount(
        num_contexts=max(1, round(contexts)), num_train_contexts=None, estimated=True
    )


def _exact(manifest: "Manifest") -> ContextCount:
    return ContextCount(
        num_contexts=manifest.num_contexts,
        num_train_contexts=manifest.num_train_contexts,
        estimated=False,
        trained_tokens=_trained_tokens(manifest),
        padding_share=_padding_share(manifest),
        left_out_share=_left_out_share(manifest),
        parts=manifest.parts,
    )


def _mixed(config: TokenizeConfig) -> ContextCount:
    from trainer.plan.mixture_count import count_mixture

    estimate, manifest = count_mixture(config, count_contexts, _store_of)
    return _exact(manifest) if manifest else ContextCount(**estimate)


def _store_of(config: TokenizeConfig) -> Path | None:
    """The finished store of a request's dataset."""
    from trainer.tokens.text.kept_listing import list_once

    arrays = config.data.is_of_records
    sources, _ = list_once(config.volume, config.dataset, config.listing, arrays)
    _, shapes = peeked_shapes(config.data, sources, config.text_field)
    return finished_store(config, sources, is_of_records(shapes))[1]


def _trained_tokens(manifest: "Manifest") -> int | None:
    if not (manifest.of_records or manifest.parts):
        return None
    totals = manifest.totals
    return totals["trained_tokens"] - totals["held_out_trained_tokens"]


def _padding_share(manifest: "Manifest") -> float | None:
    if not manifest.of_records:
        return None
    return manifest.num_padding / max(1, manifest.num_contexts * manifest.width)


def _left_out_share(manifest: "Manifest") -> float | None:
    if not manifest.of_records:
        return None
    totals = manifest.totals
    left_out: int = totals["dropped_tokens"] + totals["cut_tokens"]
    return left_out / max(1, totals["encoded"])


def _estimated_records(
    config: TokenizeConfig, sources: "list[Source]", some: "list[Source]", shapes: list[str]
) -> ContextCount:
    """Contexts of chats or completions: one each."""
    found = estimate_records(
        config,
        as_arrays(some, shapes),
        shapes,
        sum(source.size for source in sources),
        SAMPLE_BYTES // len(some),
        tokenizer_folder(config) / "tokenizer.json",
    )
    records = max(1, round(found.records * config.sampling / 100))
    contexts, padding, left_out = records, None, None
    if config.data.packing and found.lengths:
        in_contexts, padding = packed_sample(config, found.lengths)
        contexts = max(1, round(records * in_contexts / len(found.lengths)))
        left_out = 1 - sum(fitting(config, found.lengths)) / max(1, sum(found.lengths))
    return ContextCount(
        num_contexts=contexts,
        padding_share=padding,
        left_out_share=left_out,
        num_train_contexts=None,
        estimated=True,
        trained_tokens=round(records * config.train_ratio * found.trained_tokens),
    )


def finished_store(
    config: TokenizeConfig, sources: list["Source"], of_records: bool
) -> "tuple[Manifest, Path] | tuple[None, None]":
    """Manifest and folder of a store of these files and options; sizes are compared alone.

    Raises:
        RequestError: The files are of records, and there is no template to render them with.
    """
    from trainer.contract.errors import DamagedError
    from trainer.tokens.encode.vocabulary import tokenizer_digest
    from trainer.tokens.step import store_key, store_name, store_options
    from trainer.tokens.store import MANIFEST, read_manifest
    from trainer.tokens.text.sources import in_order

    folder = tokenizer_folder(config)
    if not folder.is_dir():
        return None, None
    ordered = in_order(sources, config.reorder, config.random_seed)
    wanted = [(source.path, source.size) for source in ordered]
    shapes = ["chat" if of_records else "text"] * len(sources)  # which of them, a manifest says
    options, digest = store_options(config, sources, shapes, folder), tokenizer_digest(folder)
    pattern = f"tokens/{store_name(config.dataset)}-*/{MANIFEST}"
    for path in sorted(Path(config.volume).glob(pattern)):
        try:
            manifest, _ = read_manifest(path.parent)
        except DamagedError:  # damaged, or of an older format: the tokenize step makes it anew
            continue
        if [(s["path"], s["bytes"]) for s in manifest.sources] != wanted:
            continue
        contents = [source["sha256"] for source in manifest.sources]
        shapes = [source.get("shape", "text") for source in manifest.sources]
        if manifest.key == store_key(ordered, contents, digest, options, shapes):
            return manifest, path.parent
    return None, None


def _estimated(config: TokenizeConfig, sources: list["Source"]) -> float:
    total = sum(source.size for source in sources)
    path = tokenizer_folder(config) / "tokenizer.json"
    if not path.is_file():
        return total / BYTES_PER_TOKEN / config.context
    documents, text = sampled(config, sources)
    return _contexts_of(documents, path, config) * text / max(1, sum(map(len, documents)))


def _contexts_of(documents: list[bytes], tokenizer: Path, config: TokenizeConfig) -> float:
    """Contexts that a stream of these documents makes, the last one as far as it is filled."""
    from trainer.tokens.pack.packing import Rules, plan

    boundary_text = config.boundary_token.replace("\\n", "\n")
    encoded = encoded_sample(documents, tokenizer, config, boundary_text)
    boundary_ids, *ids = encoded.ids
    boundary = boundary_ids[0] if len(boundary_ids) == 1 else None
    stream = list(_stream(ids, _before(config, encoded.before, tokenizer)))
    rules = Rules(context=config.context, boundary=boundary, boundary_index=config.boundary_index)
    at = [place for place, token in enumerate(stream) if token == boundary]
    cut = plan(rules, at, bytes(len(stream)), 0, len(stream), final=True)
    if not cut.ends:
        return 0.0
    return len(cut.ends) - 1 + (cut.ends[-1] - cut.begins[-1]) / config.context


def _packed(config: TokenizeConfig, sources: list["Source"]) -> ContextCount:
    """Contexts of whole documents of plain text."""
    some = beginnings(config, sources)
    lengths = _lengths([text for one in some for text in one.texts], config)
    refuse_too_long(config, [length for length in lengths if length])
    in_contexts = fitting(config, lengths)
    padding = packed_sample(config, lengths)[1]
    edges = [0, *accumulate(len(one.texts) for one in some)]
    kept = [float(sum(in_contexts[a:b])) for a, b in pairwise(edges)]
    whole = [float(sum(lengths[a:b])) for a, b in pairwise(edges)]
    fits = in_all(some, sources, kept)
    tokens = fits * config.sampling / 100
    return ContextCount(
        num_contexts=max(1, round(tokens / (1 - padding) / config.context)),
        num_train_contexts=None,
        estimated=True,
        trained_tokens=round(tokens * config.train_ratio),
        padding_share=padding,
        left_out_share=1 - fits / max(1.0, in_all(some, sources, whole)),
    )


def _lengths(documents: list[bytes], config: TokenizeConfig) -> list[int]:
    """Tokens of each document, 0 of an empty one."""
    path = tokenizer_folder(config) / "tokenizer.json"
    if not path.is_file():
        return [round(len(document) / BYTES_PER_TOKEN) + 1 for document in documents]
    encoded = encoded_sample(documents, path, config)
    before = _before(config, encoded.before, path)
    return [len(before) + len(ids) + 1 if ids else 0 for ids in encoded.ids]


def _before(config: TokenizeConfig, before: Sequence[int], tokenizer: Path) -> list[int]:
    """What each document begins with; the token's id does not matter to a count."""
    return before_document(config.data.bos, before, -2, tokenizer.parent.name)


def _stream(documents: Sequence[Sequence[int]], before: Sequence[int]) -> Iterator[int]:
    """Ids of all documents, with what begins each and one for its end (-1: no boundary)."""
    for ids in documents:
        yield from before
        yield from ids
        yield -1
