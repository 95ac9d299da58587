"""SHA-256 of the text of each document of a store, so that a copy under another name is found.

The store has no digests of documents, and its bytes stay as they are: they are computed from the
source files when somebody asks, and kept at `cache/tokens/documents/{store's digest}.bin`.
Two digests each: of the text as the file has it (what `sha256sum` says of a plain text file),
and of the sanitized text, which is the same for copies that differ in white space.
Computing reads the dataset once more; about 300 MB/s of plain text on one core.
"""

import hashlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from trainer.contract.errors import RequestError
from trainer.contract.files import writer_name
from trainer.tokens.encode.progress import Progress
from trainer.tokens.pack.reference import is_token_file
from trainer.tokens.store import TokenStore
from trainer.tokens.text.parts import plan_parts
from trainer.tokens.text.reading import read_texts
from trainer.tokens.text.sanitize import sanitize
from trainer.tokens.text.sources import Source, list_sources, open_source

FOLDER = "cache/tokens/documents"
# `file`: index among the manifest's sources; `number`: of the document in it, from 1.
DIGESTS = np.dtype(
    [("file", "<u4"), ("number", "<u4"), ("text", "u1", (32,)), ("sanitized", "u1", (32,))]
)
_READ_BYTES = 1 << 20
_CHECK_BYTES = 32


def document_digests(volume: Path, store: TokenStore, dataset: str) -> np.ndarray:
    """The digests of every document of the store's sources, records of DIGESTS in their order.

    Args:
        dataset: Where the sources are: as the parameter `dataset` names them.
    Raises:
        RequestError: A source file is not what the store was made from; it is named.
    """
    if store.manifest.parts:
        names = ", ".join(part["name"] for part in store.manifest.parts)
        raise RequestError(
            f"documents of a mixture are not told by their content (got one of {names}), so none "
            "of them can be left out or forgotten. Take them out of the folders, and train again."
        )
    path = _path(volume, store)
    if (kept := _kept(path)) is not None:
        return kept
    found = np.array(list(_computed(volume, store, dataset)), DIGESTS)
    _keep(path, found.tobytes())
    return found


def are_kept(volume: Path, store: TokenStore) -> bool:
    """Whether the digests are there, so that asking for them reads no source."""
    return _path(volume, store).is_file()


def _path(volume: Path, store: TokenStore) -> Path:
    return volume / FOLDER / f"{store.digest}.bin"


def _kept(path: Path) -> np.ndarray | None:
    """What is kept, unless it is missing or damaged."""
    try:
        content = path.read_bytes()
    except OSError:
        return None
    records, check = content[:-_CHECK_BYTES], content[-_CHECK_BYTES:]
    if hashlib.sha256(records).digest() != check or len(records) % DIGESTS.itemsize:
        return None
    return np.frombuffer(records, DIGESTS)


def _keep(path: Path, records: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f".{path.name}.{writer_name()}")
    beside.write_bytes(records + hashlib.sha256(records).digest())
    beside.replace(path)


def _computed(
    volume: Path, store: TokenStore, dataset: str
) -> Iterator[tuple[int, int, list[int], list[int]]]:
    manifest = store.manifest
    if is_token_file(dataset):
        raise RequestError(
            f"skip.sha256 names documents, and {dataset} holds contexts that were made elsewhere. "
            "Nothing says which documents they came from."
        )
    there = {source.path: source for source in list_sources(str(volume), dataset)}
    progress = Progress("digest of documents", sum(s.get("bytes", 0) for s in manifest.sources))
    for index, known in enumerate(manifest.sources):
        source = there.get(known["path"])
        if source is None or _file_digest(source) != known.get("sha256"):
            state = "is gone" if source is None else "has changed"
            raise RequestError(
                f"skip.sha256 can't be looked up: dataset file {known['path']} {state} since "
                f"{store.folder.name} was made. Bring it back, or name documents by path "
                "(skip.documents)."
            )
        field = manifest.options.get("text_field") or "text"
        for number, (text, sanitized) in enumerate(_of_file(source, known["sha256"], field), 1):
            yield index, number, list(text), list(sanitized)
        progress.add(source.size, 0)
    progress.end()


def _of_file(source: Source, digest: str, text_field: str) -> Iterator[tuple[bytes, bytes]]:
    """Both digests of each document of a file; a long one is read in parts, and sanitized so."""
    hashes = hashlib.sha256(), hashlib.sha256()
    for part in plan_parts(source, digest, text_field, True):
        for text in read_texts(part):
            if text is None:  # a blank line of JSONL
                continue
            if text.first:
                hashes = hashlib.sha256(), hashlib.sha256()
            hashes[0].update(text.text)
            hashes[1].update(sanitize(text.text))
            if text.last:
                yield hashes[0].digest(), hashes[1].digest()


def _file_digest(source: Source) -> str:
    digest = hashlib.sha256()
    with open_source(source.location, source.remote) as file:
        while block := file.read(_READ_BYTES):
            digest.update(block)
    return digest.hexdigest()


def rows_with(digests: np.ndarray, wanted: set[bytes], column: str) -> np.ndarray:
    """Which rows have one of the digests `wanted` in `column`; shape (rows,), bool."""
    column_bytes = digests[column]
    first = np.ascontiguousarray(column_bytes[:, :8]).view("<u8")[:, 0]
    likely = np.isin(first, [int.from_bytes(d[:8], "little") for d in wanted])
    for row in np.flatnonzero(likely):
        likely[row] = column_bytes[row].tobytes() in wanted
    return likely
