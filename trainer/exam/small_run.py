"""Short runs of a small model on a scratch volume, by the training step's own code.

Each process of a run is a fork of this one, which has torch and DeepSpeed loaded: so a run
takes a second, and a process that ends badly ends nothing else.
"""

import contextlib
import dataclasses
import hashlib
import os
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from trainer.contract.json_text import parse_json
from trainer.contract.run_folder import RunFolder
from trainer.contract.step_configs import FinetuneConfig
from trainer.contract.topics import CheckpointsConfig, LoraConfig
from trainer.tokens.store import DOCUMENT, FILES, FORMAT, Manifest
from trainer.training.job import Job

STEPS, SAVE_STEPS = 4, 2
GLOBAL_BATCH, HELD_OUT, CONTEXT = 2, 1, 48


def made_up_tokenizer(vocabulary: int) -> Any:
    """A tokenizer with a word for each id: w0, w1, ..."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = {f"w{number}": number for number in range(vocabulary)}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="w0"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="w0", pad_token="w0")


def make_volume(volume: Path, model: Any) -> None:
    """A volume with the model, a tokenizer and a store of random ids for it."""
    vocabulary = model.config.get_text_config().vocab_size
    model.save_pretrained(volume / "models/small")
    made_up_tokenizer(vocabulary).save_pretrained(volume / "models/small")
    count = STEPS * GLOBAL_BATCH + HELD_OUT
    rng = np.random.default_rng(1)
    ids = rng.integers(2, vocabulary, (count, CONTEXT)).astype("<u2")
    lengths = rng.integers(CONTEXT // 2, CONTEXT + 1, count).astype("<u4")
    ids[np.arange(CONTEXT) >= lengths[:, None]] = 0
    _write_store(volume / "tokens/small", ids, lengths, vocabulary)


def _write_store(folder: Path, ids: np.ndarray, lengths: np.ndarray, vocabulary: int) -> None:
    folder.mkdir(parents=True)
    begins = np.concatenate(([0], np.cumsum(lengths[:-1], dtype="<u8"))).astype("<u8")
    documents = np.array([(int(b), 0, n) for n, b in enumerate(begins, 1)], dtype=DOCUMENT)
    for name, array in zip(FILES, (ids, lengths, begins, documents), strict=True):
        (folder / name).write_bytes(array.tobytes())
    known: dict[str, Any] = {
        "format": FORMAT,
        "key": "small",
        "dtype": "uint16",
        "context": CONTEXT,
        "num_contexts": len(ids),
        "num_train_contexts": len(ids) - HELD_OUT,
        "num_tokens": int(lengths.sum()),
        "num_padding": int(ids.size - lengths.sum()),
        "vocab_size": vocabulary,
        "tokenizer_digest": "0" * 64,
        "added_tokens": [],
        "encoder": "made up",
        "options": {},
        "totals": {},
        "sources": [{"path": "dataset/made-up.txt"}],
        "digests": {
            name: {
                "bytes": (folder / name).stat().st_size,
                "sha256": hashlib.sha256((folder / name).read_bytes()).hexdigest(),
            }
            for name in FILES
        },
    }
    empty = dict.fromkeys((f.name for f in dataclasses.fields(Manifest)), 0)
    manifest = Manifest(**{**empty, **known})  # type: ignore[arg-type]
    (folder / "manifest.json").write_text(manifest.to_json(), encoding="utf-8")


def train_small(
    volume: Path,
    name: str,
    *,
    learn_rate: float,
    processes: int = 1,
    zero_stage: int = 0,
    lora: LoraConfig | None = None,
    trust_remote_code: bool = False,
    begin: Callable[[RunFolder], int] | None = None,
) -> RunFolder:
    """Train the volume's model from start to `final`; the run's folder.

    Args:
        begin: Puts a checkpoint into the run's folder, and says of which step it is.
    Raises:
        RuntimeError: A process failed; with what it said last.
    """
    run = RunFolder(volume, name)
    run.checkpoints.mkdir(parents=True)
    step = begin(run) if begin else 0
    config = FinetuneConfig(
        volume=str(volume),
        run_name=name,
        model="models/small",
        tokens="tokens/small",
        learn_rate=learn_rate,
        batch_size=GLOBAL_BATCH // processes,
        gradients=1,
        save_steps=SAVE_STEPS,
        zero_stage=zero_stage,  # type: ignore[arg-type]
        processes=processes,
        precision="fp32",
        lora=lora,
        trust_remote_code=trust_remote_code,
        checkpoints=CheckpointsConfig(keep_last=STEPS),
    )
    job = Job(
        config=config,
        num_contexts=STEPS * GLOBAL_BATCH,
        batch_size=config.batch_size,
        global_batch=GLOBAL_BATCH,
        zero_stage=zero_stage,
        from_step=step,
    )
    _in_forks(job, processes, volume / f"{name}.log")
    return run


def losses(run: RunFolder) -> list[float]:
    """Training and held-out losses in the order of the run."""
    lines = [parse_json(line) for line in run.metrics.read_text(encoding="utf-8").splitlines()]
    return [line[key] for line in lines for key in ("loss", "eval_loss") if key in line]


def _in_forks(job: Job, processes: int, log: Path) -> None:
    from trainer.training.processes.launch import how_to_meet

    folder = log.with_suffix("")
    folder.with_name(folder.name + "-meeting").mkdir()
    meeting = folder.with_name(folder.name + "-meeting")
    children = [
        _fork(job, rank, processes, log, how_to_meet(meeting, rank, processes, processes))
        for rank in range(processes)
    ]
    codes = [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in children]
    if any(codes):
        said = [line for line in log.read_text(encoding="utf-8").splitlines() if line.strip()]
        raise RuntimeError(said[-1] if said else f"a process ended with {codes}")


def _fork(job: Job, rank: int, world: int, log: Path, environment: dict[str, str]) -> int:
    sys.stdout.flush()
    if (pid := os.fork()) != 0:
        return pid
    code = 1
    with contextlib.suppress(BaseException), open(log, "a", encoding="utf-8") as file:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        os.dup2(1, 2)
        os.environ.update(environment)
        try:
            from trainer.training.process import train

            train(job, rank, world)
            code = 0
        except BaseException as error:  # noqa: BLE001  whatever it is, the parent is told
            traceback.print_exc(file=file)
            file.write(f"{type(error).__name__}: {' '.join(str(error).split())}\n")
            file.flush()
    os._exit(code)
