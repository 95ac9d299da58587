"""How many contexts a dataset makes: from its store, or estimated from a sample of its text.

For plans: nothing is written. An estimate reads about a megabyte, spread over the
files, encodes it with the model's tokenizer and cuts it by the tokenize step's own
rules, so it knows how long tokens are here and how much text contexts repeat.
Importing this loads nothing heavy; counting loads numpy and tokenizers.
"""

from bisect import bisect_right
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trainer.config import TokenizeConfig
from trainer.volume_paths import path_on_volume

if TYPE_CHECKING:
    from trainer.tokens.sources import Source
    from trainer.tokens.store import Manifest

SAMPLE_FILES = 64
SAMPLE_BYTES = 1 << 20
BYTES_PER_TOKEN = 4.0  # of English prose, where there is no tokenizer to ask
PACKED_RATIO = 3.0  # text bytes for one compressed byte, where a file is read in part


@dataclass(frozen=True, kw_only=True)
class ContextCount:
    """Contexts of a dataset under a request."""

    num_contexts: int
    num_train_contexts: int | None
    """Those that are not held out; None where it is not known exactly."""
    estimated: bool


def count_contexts(config: TokenizeConfig, sources: "list[Source] | None" = None) -> ContextCount:
    """Count the contexts that the tokenize step makes of `config`, or made.

    Args:
        config: What is asked for.
        sources: The dataset's files, where they were listed already.
    Raises:
        RequestError: The dataset is missing, empty or can't be read.
    """
    from trainer.tokens.kept_listing import list_once
    from trainer.tokens.reference import count_token_contexts, is_token_file, num_train

    if sources is None:
        sources, _ = list_once(config.volume, config.dataset, config.listing)
    if is_token_file(config.dataset):
        count = count_token_contexts(config, sources[0])
        train = num_train(config, count)
        return ContextCount(num_contexts=count, num_train_contexts=train, estimated=False)
    manifest = _finished(config, sources)
    if manifest is not None:
        return ContextCount(
            num_contexts=manifest.num_contexts,
            num_train_contexts=manifest.num_train_contexts,
            estimated=False,
        )
    contexts = _estimated(config, sources) * config.sampling / 100
    return ContextCount(
        num_contexts=max(1, round(contexts)), num_train_contexts=None, estimated=True
    )


def _tokenizer_folder(config: TokenizeConfig) -> Path:
    parameter = "tokenizer" if config.tokenizer else "model"
    return path_on_volume(config.volume, parameter, config.tokenizer or config.model)


def _finished(config: TokenizeConfig, sources: list["Source"]) -> "Manifest | None":
    """The manifest of a store of these files and options; sizes are compared, not contents."""
    from trainer.errors import DamagedError
    from trainer.tokens.sources import in_order
    from trainer.tokens.step import store_key, store_name, store_options
    from trainer.tokens.store import MANIFEST, read_manifest
    from trainer.tokens.vocabulary import tokenizer_digest

    folder = _tokenizer_folder(config)
    if not folder.is_dir():
        return None
    ordered = in_order(sources, config.reorder, config.random_seed)
    wanted = [(source.path, source.size) for source in ordered]
    options, digest = store_options(config, sources), tokenizer_digest(folder)
    pattern = f"tokens/{store_name(config.dataset)}-*/{MANIFEST}"
    for path in sorted(Path(config.volume).glob(pattern)):
        try:
            manifest, _ = read_manifest(path.parent)
        except DamagedError:  # damaged, or of an older format: the tokenize step makes it anew
            continue
        if [(s["path"], s["bytes"]) for s in manifest.sources] != wanted:
            continue
        contents = [source["sha256"] for source in manifest.sources]
        if manifest.key == store_key(ordered, contents, digest, options):
            return manifest
    return None


def _estimated(config: TokenizeConfig, sources: list["Source"]) -> float:
    total = sum(source.size for source in sources)
    path = _tokenizer_folder(config) / "tokenizer.json"
    if not path.is_file():
        return total / BYTES_PER_TOKEN / config.context
    chosen = _spread(sources)
    beginnings = [_beginning(source, config) for source in chosen]
    # Bytes of text for a stored byte: more in a compressed file, fewer in JSON.
    density = [sum(map(len, texts)) / max(1.0, stored) for stored, texts in beginnings]
    weighed = sum(d * weight for d, weight in zip(density, chosen.values(), strict=True))
    text = total * weighed / max(1, chosen.total())
    documents = [document for _, texts in beginnings for document in texts]
    return _contexts_of(documents, path, config) * text / max(1, sum(map(len, documents)))


def _spread(sources: list["Source"]) -> Counter["Source"]:
    """Files to look into, each with its weight: all, or those at even distances in bytes."""
    if len(sources) <= SAMPLE_FILES:
        return Counter({source: source.size for source in sources})
    ends = list(accumulate(source.size for source in sources))
    places = (ends[-1] * (number + 0.5) / SAMPLE_FILES for number in range(SAMPLE_FILES))
    return Counter(sources[bisect_right(ends, place)] for place in places)


def _beginning(source: "Source", config: TokenizeConfig) -> tuple[float, list[bytes]]:
    """Documents at the beginning of a file, and how many stored bytes they stand for."""
    from trainer.tokens.parts import plan_parts
    from trainer.tokens.reading import read_texts

    parts = list(plan_parts(source, "", config.text_field, True))
    texts: list[bytes] = []
    taken = 0
    for text in read_texts(parts[0], checked=False):
        if text is None:  # a blank line
            continue
        texts.append(text.text)
        taken += len(text.text)
        if taken >= SAMPLE_BYTES // SAMPLE_FILES:
            packed = source.compression or source.kind == "parquet"
            return min(source.size, taken / (PACKED_RATIO if packed else 1.0)), texts
    return source.size / len(parts), texts


def _contexts_of(documents: list[bytes], tokenizer: Path, config: TokenizeConfig) -> float:
    """Contexts that a stream of these documents makes, the last one as far as it is filled."""
    from tokenizers import Tokenizer

    from trainer.tokens.packing import Rules, plan

    encoder = Tokenizer.from_file(str(tokenizer))
    encoder.no_padding()
    encoder.no_truncation()
    boundary_text = config.boundary_token.replace("\\n", "\n")
    boundary_ids = encoder.encode(boundary_text, add_special_tokens=False).ids
    boundary = boundary_ids[0] if len(boundary_ids) == 1 else None
    stream = list(_stream(documents, encoder, config.sanitize))
    rules = Rules(context=config.context, boundary=boundary, boundary_index=config.boundary_index)
    at = [place for place, token in enumerate(stream) if token == boundary]
    cut = plan(rules, at, bytes(len(stream)), 0, len(stream), final=True)
    if not cut.ends:
        return 0.0
    return len(cut.ends) - 1 + (cut.ends[-1] - cut.begins[-1]) / config.context


def _stream(documents: list[bytes], encoder: Any, sanitized: bool) -> Iterator[int]:
    """Ids of all documents, with one more for the end of each (-1: no boundary)."""
    from trainer.tokens.sanitize import sanitize

    for document in documents:
        text = sanitize(document) if sanitized else document
        yield from encoder.encode(text.decode("utf-8", "ignore"), add_special_tokens=False).ids
        yield -1
