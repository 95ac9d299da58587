"""Whether weights of CoreWeave's tensorizer are where `tensorizer_uri` says; loads no torch."""

from pathlib import Path

from trainer.contract.addresses import masked
from trainer.contract.errors import RequestError
from trainer.contract.volume import place_of
from trainer.object_store import filesystem_of

_MAGIC = b"|TZR|"


def check_tensorized(volume: Path, uri: str) -> int:
    """The size of the file in bytes.

    Raises:
        RequestError: There is none, or it is not one of tensorizer's.
    """
    place = place_of(volume, "tensorizer_uri", uri)
    try:
        filesystem, path = filesystem_of(place)
        with filesystem.open(path, "rb", block_size=2**16) as file:
            begin = file.read(len(_MAGIC))
        size = int(filesystem.size(path) or 0)
    # Each scheme is a library of its own, with errors of its own.
    except Exception as error:
        raise RequestError(
            f"tensorizer_uri can't be read (got {masked(uri)!r}: {masked(str(error))}). It is a "
            "file on the volume, or an s3:// or https:// URL that the step may read. Correct it."
        ) from error
    if begin != _MAGIC:
        raise RequestError(
            f"tensorizer_uri is no file of tensorizer's (got {masked(uri)!r}, which begins with "
            f"{begin!r}). Make it with TensorSerializer(...).write_module(model)."
        )
    return size
