"""Before the first engine: DeepSpeed is imported, and the processes of the run have met."""

import functools
import logging
import os
import warnings
from typing import Any

import torch
import torch.distributed as dist


def import_deepspeed() -> Any:
    """DeepSpeed on this machine's accelerator, silent unless something is wrong."""
    # The engine's choice, whatever the environment says: DeepSpeed must not make another one.
    os.environ["DS_ACCELERATOR"] = "cuda" if torch.cuda.is_available() else "cpu"
    # DeepSpeed 0.19.8 calls functions by names that torch 2.13 is about to drop, at every step.
    warnings.filterwarnings("ignore", category=FutureWarning, module="torch.distributed")
    logging.disable(logging.WARNING)  # it greets while it is imported
    try:
        import deepspeed
    finally:
        logging.disable(logging.NOTSET)
    for name in ("DeepSpeed", "deepspeed"):
        logging.getLogger(name).setLevel(logging.ERROR)
    # It would compile an all-reduce for CPU processes with g++, whose processes wait forever
    # for one that died; gloo is there already and notices.
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    _import_muon()
    return deepspeed


def _import_muon() -> None:
    """Import DeepSpeed's Muon uncompiled; DeepSpeed imports it for any optimizer that it splits.

    The decorators of its functions load torch's compiler, 700 modules: 3 s of processor time
    in each process of a run, and no run here uses Muon.
    """
    from deepspeed.runtime import compiler

    theirs, compiler.compile = compiler.compile, lambda: lambda function: function
    try:
        import deepspeed.runtime.zero.muon.muon_optimizer  # noqa: F401
    finally:
        compiler.compile = theirs


def join_processes(rank: int, world: int) -> None:
    """Make torch's process group of a run: alone, or through the store that the launcher named."""
    # DeepSpeed insists on knowing which of its machine's processes this is.
    os.environ.setdefault("LOCAL_RANK", str(rank))
    if dist.is_initialized():
        return
    backend = "nccl" if torch.cuda.is_available() else "gloo"
    if world == 1:
        dist.init_process_group(backend, store=dist.HashStore(), rank=0, world_size=1)
    else:
        dist.init_process_group(
            backend, init_method=os.environ["FINETUNE_RENDEZVOUS"], rank=rank, world_size=world
        )


@functools.cache
def host_group() -> Any:
    """A group for numbers in host memory, whatever the engine's processes speak otherwise."""
    return dist.group.WORLD if dist.get_backend() == "gloo" else dist.new_group(backend="gloo")
