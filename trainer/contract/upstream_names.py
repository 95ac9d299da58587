"""Parameters of the upstream workflow that have another name here, or no counterpart.

Both `-p NAME=VALUE` and `finetune import-argo` give these hints.
Source: finetuner-workflow/finetune-workflow.yaml and the finetuner's command line, both of
coreweave/kubernetes-cloud.
"""

import re
from typing import Any

ONE_IMAGE = "All steps use one image here: finetuner_image and finetuner_tag."
WITHOUT_COUNTERPART = {
    "download_dataset": (
        "Put the text into the dataset's folder, or name its URL: dataset=s3://..."
    ),
    "hf_key": (
        "The key belongs in a Secret with the key HF_TOKEN: name that Secret in FINETUNE_CLUSTER "
        "(secrets: [NAME]). On this machine: export HF_TOKEN=..."
    ),
    "batch_size_max": "batch_size=-1 takes what fits the memory; batch_size_divisor divides it.",
    "inference_precision": "A GPU serves in the model's own precision, a CPU in 32 bits.",
    "output_path": "A run's folder is named by run_name; pvc names the volume.",
    "cache": "Caches are below cache/ on the volume.",
    "ds_config": "DeepSpeed's settings follow from zero_stage, optimizer, precision and gradients.",
}
# Of the finetuner's command line, which the workflow's own parameters became.
RENAMED = {
    "lr": "learn_rate",
    "bs": "batch_size",
    "bs_divisor": "batch_size_divisor",
    "bs_max": "batch_size_max",
    "seed": "random_seed",
    "eot": "eot_token",
    "pad": "pad_token",
    "boundary": "boundary_token",
    "fp16": "force_fp16",
    "context_size": "context",
    "shuffle": "no_shuffle",
    "gpus": "trainer_gpus",
    "image": "finetuner_image",
    "tag": "finetuner_tag",
}
OTHER_IMAGES = re.compile(
    r"^(model_downloader|tokenizer|dataset_downloader|downloader|finetuner|inference)_(image|tag)$"
)


def hint_for(name: str, known: Any) -> str:
    """What to do instead of the upstream workflow's parameter `name`; empty: not one of these.

    Args:
        known: The parameters' names here.
    """
    plain = name.strip().lower().replace("-", "_")
    plain = RENAMED.get(plain, plain)
    if plain in known:
        return f"Did you mean {plain}?"
    if OTHER_IMAGES.match(plain):
        return ONE_IMAGE
    return WITHOUT_COUNTERPART.get(plain, "")
