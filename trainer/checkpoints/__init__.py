"""Sealed folders: checkpoints and final models that are there whole or not at all.

Imports neither torch nor numpy, so that `finetune verify RUN` answers at once.
"""

from trainer.checkpoints.folder import (
    newest_good,
    sealed_folders,
    set_aside,
    steps_there,
    verify_run,
)
from trainer.checkpoints.seal import Manifest, is_complete, read_manifest, seal, verify

__all__ = [
    "Manifest",
    "is_complete",
    "newest_good",
    "read_manifest",
    "seal",
    "sealed_folders",
    "set_aside",
    "steps_there",
    "verify",
    "verify_run",
]
