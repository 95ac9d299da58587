"""Load a checkpoint as it is, to ask how far the training had come then."""

import json
import tempfile
from pathlib import Path
from typing import Any

from trainer.contract.errors import RequestError
from trainer.contract.run_folder import RunFolder
from trainer.contract.sealed_folder import verify
from trainer.contract.step_configs import FinetuneConfig, load_step_config
from trainer.contract.volume import path_on_volume
from trainer.models import load_tokenizer
from trainer.models.chat_prompts import as_in_store
from trainer.models.end_of_text import set_end
from trainer.tokens.store import TokenStore
from trainer.training.job import Job
from trainer.training.save.final import checkpointed_model


def is_checkpoint(folder: Path) -> bool:
    """Whether `folder` is one of a run's checkpoints, which hold numbers and no model."""
    return folder.parent.name == "checkpoints" and not (folder / "config.json").exists()


def load_checkpoint(volume: str, folder: Path) -> tuple[Any, Any]:
    """The model of a checkpoint in float32, adapters merged, and the run's tokenizer.

    Raises:
        RequestError: It is damaged, or its run does not say how it was trained.
    """
    if problems := verify(folder):
        raise RequestError(f"--step names a damaged checkpoint: {'; '.join(problems)}.")
    run = RunFolder(volume, folder.parent.parent.relative_to(volume).as_posix())
    recorded = (run.record() or {}).get("config")
    if recorded is None:
        raise RequestError(
            f"{run.root.name} was trained by a version that did not record its configuration, "
            "so its checkpoints can't be served. Serve its final model."
        )
    text = json.dumps({**recorded, "volume": volume, "run_name": run.root.name})
    config = load_step_config("finetune", text)
    assert isinstance(config, FinetuneConfig)
    store = TokenStore.open(path_on_volume(volume, "tokens", config.tokens))
    # Of the job only the paths, the adapters and the number of embeddings matter here.
    job = Job(
        config=config,
        num_contexts=1,
        batch_size=1,
        global_batch=1,
        zero_stage=0,
        num_ids=store.manifest.vocab_size,
    )
    with tempfile.TemporaryDirectory() as adapter:
        model = checkpointed_model(job, folder, Path(adapter))
    set_end(model, job.path("model"), store.manifest.eot_token_id)
    tokenizer = load_tokenizer(job.tokenizer_path, config.trust_remote_code)
    return model.eval(), as_in_store(tokenizer, store.manifest)
