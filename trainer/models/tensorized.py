"""Base weights from a file of CoreWeave's tensorizer, on the volume or at a URL.

The file holds tensors and their digests, no code: nothing in it is unpickled. It is made
with `TensorSerializer(place).write_module(model)`.
"""

import struct
from typing import Any

import torch

from trainer.contract.addresses import masked
from trainer.contract.errors import DamagedError, RequestError
from trainer.contract.volume import is_url
from trainer.object_store import presigned


def load_tensorized(model: Any, place: str) -> Any:
    """Put the weights at `place` into an empty model, each verified by its digest.

    Args:
        model: With memory for its weights, in the precision to load in.
        place: A file's path, or an http(s):// or s3:// URL. S3 takes credentials and
            endpoint where boto3 does: AWS_ACCESS_KEY_ID, AWS_ENDPOINT_URL, ...
    Raises:
        RequestError: There is no such file, or it is of another model.
        DamagedError: A tensor is not what it was.
    """
    from tensorizer import TensorDeserializer
    from tensorizer.serialization import HashMismatchError

    wanted = {name: tensor.shape for name, tensor in model.state_dict().items()}
    dtype = next(model.parameters()).dtype
    try:
        with (
            _opened(place) as stream,
            TensorDeserializer(
                stream, device="cpu", dtype=dtype, lazy_load=True, verify_hash=True
            ) as tensors,
        ):
            found = set(tensors.keys())
            tensors.load_into_module(model, filter_func=lambda name: name in wanted)
    except HashMismatchError as error:
        raise DamagedError(
            f"tensorizer_uri holds damaged weights ({masked(place)}: {masked(str(error))})"
        ) from error
    except (OSError, ValueError, NotImplementedError, RuntimeError, struct.error) as error:
        raise _unusable(place, f"it can't be read: {' '.join(str(error).split())}") from error
    model.tie_weights()
    _refuse_other_model(model, wanted, found, place)
    return model.requires_grad_(True).eval()


def _refuse_other_model(
    model: Any, wanted: dict[str, torch.Size], found: set[str], place: str
) -> None:
    shapes = {name: tensor.shape for name, tensor in model.state_dict().items()}
    for name, shape in wanted.items():
        if shapes[name] != shape:
            got = f"{name} is {tuple(shapes[name])}, not {tuple(shape)}"
            raise _unusable(place, f"it is of another model: {got}")
    # Tied weights stand in the file once, under one of their names.
    there = {p.data_ptr() for name, p in model.named_parameters() if name in found}
    lacking = [name for name, p in model.named_parameters() if p.data_ptr() not in there]
    if lacking:
        raise _unusable(place, f"it lacks {len(lacking)} of the model's weights, as {lacking[0]}")


def _unusable(place: str, why: str) -> RequestError:
    return RequestError(
        f"tensorizer_uri has no weights for this model (got {masked(place)!r}; {why}). Make it "
        "with tensorizer's TensorSerializer.write_module() from the same model."
    )


def _opened(place: str) -> Any:
    if not is_url(place):
        return open(place, "rb")
    from tensorizer.stream_io import open_stream

    # Tensorizer's own S3 client knows no session tokens, and no virtual hosts but CoreWeave's.
    return open_stream(presigned(place) if place.startswith("s3://") else place, "rb")
