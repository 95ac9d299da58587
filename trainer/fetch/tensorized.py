"""Whether weights of CoreWeave's tensorizer are where `tensorizer_uri` says; loads no torch."""

from pathlib import Path

from trainer.errors import RequestError
from trainer.volume_paths import place_of

_MAGIC = b"|TZR|"


def check_tensorized(volume: Path, uri: str) -> int:
    """The size of the file in bytes.

    Raises:
        RequestError: There is none, or it is not one of tensorizer's.
    """
    import fsspec

    place = place_of(volume, "tensorizer_uri", uri)
    try:
        filesystem, path = fsspec.core.url_to_fs(place)
        with filesystem.open(path, "rb", block_size=2**16) as file:
            begin = file.read(len(_MAGIC))
        size = int(filesystem.size(path) or 0)
    except (OSError, ValueError, ImportError) as error:
        raise RequestError(
            f"tensorizer_uri can't be read (got {uri!r}: {error}). It is a file on the volume, or "
            "an s3:// or https:// URL that the step may read. Correct it."
        ) from error
    if begin != _MAGIC:
        raise RequestError(
            f"tensorizer_uri is no file of tensorizer's (got {uri!r}, which begins with "
            f"{begin!r}). Make it with TensorSerializer(...).write_module(model)."
        )
    return size
