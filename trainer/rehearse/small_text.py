"""The first of a dataset's text, file by file, each file of its own kind: to rehearse on."""

import gzip
import json
from itertools import islice
from pathlib import Path

from trainer.contract.errors import RequestError
from trainer.contract.step_configs import FetchConfig
from trainer.tokens.chat.records import first_shape, read_records
from trainer.tokens.text.documents import Part, whole_part
from trainer.tokens.text.reading import first_bytes
from trainer.tokens.text.records import first_rows
from trainer.tokens.text.sources import ARRAY, Source, list_sources, open_source

TEXT_BYTES = 2 << 20
MOST_FILES = 64
CONTEXTS = 24  # of a file that holds contexts already
ID_BYTES = 2


def copy_beginning(config: FetchConfig, folder: Path) -> None:
    """Put the dataset's first megabytes into `folder`.

    Raises:
        RequestError: There is no text, or it can't be read.
    """
    left = TEXT_BYTES
    arrays = config.data.is_of_records
    for source in islice(list_sources(config.volume, config.dataset, arrays), MOST_FILES):
        if left > 0:
            target = folder / source.path
            target.parent.mkdir(parents=True, exist_ok=True)
            left -= _copy(source, target, left, config.context)
    if left == TEXT_BYTES:
        raise RequestError(
            f"dataset has no text to rehearse with (got {config.dataset!r}). Its first "
            f"{MOST_FILES} files are empty, or of one line of more than {TEXT_BYTES:,} bytes. "
            "Start it with a small dataset instead."
        )


def _copy(source: Source, target: Path, most_bytes: int, context: int) -> int:
    """Copy the beginning of a file; returns how many bytes of text it holds."""
    part = whole_part(source, "", "text")
    if source.kind == "parquet":
        return _copy_rows(part, target, most_bytes)
    if source.kind == ARRAY or (source.path.endswith(".json") and first_shape(source) != "text"):
        return _copy_records(part, target, most_bytes)
    if source.kind == "tokens":
        with open_source(source.location, source.remote) as file:
            return target.write_bytes(file.read(CONTEXTS * context * ID_BYTES))
    text = first_bytes(part, most_bytes + 1)
    if len(text) > most_bytes:
        text = _up_to(text[:most_bytes], source.kind)
    target.write_bytes(_packed(text, source.compression))
    return len(text)


def _copy_records(part: Part, target: Path, most_bytes: int) -> int:
    """The first records of a JSON array, as one."""
    found: list[str] = []
    size = 0
    for record in read_records(part._replace(kind=ARRAY)):
        text = json.dumps(record.value if record else None)
        size += len(text)
        if found and size > most_bytes:
            break
        found.append(text)
    text = f"[{','.join(found)}]"
    target.write_bytes(_packed(text.encode(), part.compression))
    return len(text)


def _copy_rows(part: Part, target: Path, most_bytes: int) -> int:
    import pyarrow.parquet

    rows = first_rows(part, most_bytes)
    pyarrow.parquet.write_table(rows, target)
    return int(rows.nbytes)


def _up_to(text: bytes, kind: str) -> bytes:
    """The whole lines of a beginning; of text without line ends, its whole characters."""
    lines = text[: text.rfind(b"\n") + 1]
    return lines if lines or kind == "jsonl" else text.decode("utf-8", "ignore").encode()


def _packed(text: bytes, compression: str) -> bytes:
    if compression == "gzip":
        return gzip.compress(text, compresslevel=1)
    if compression == "zstd":
        import zstandard

        return zstandard.ZstdCompressor().compress(text)
    return text
