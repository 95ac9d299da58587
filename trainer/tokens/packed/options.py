"""What the key of a store of packed documents is made from."""

from typing import Any

from trainer.contract.topics import DataConfig

PACKED_FORMAT = "documents 1"
"""In the key of such a store: raised when the same documents would give another one."""
_OF_STREAMS = ("boundary_token", "boundary_index")


def packed_options(options: dict[str, Any], data: DataConfig) -> dict[str, Any]:
    """The options of plain text, for whole documents."""
    kept = {name: value for name, value in options.items() if name not in _OF_STREAMS}
    return {**kept, "too_long": data.too_long, "packing": PACKED_FORMAT}
