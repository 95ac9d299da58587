"""Make a small copy of a request's volume to rehearse on: the same kinds of things, less of each.

Run: `python -m trainer.rehearse.small_volume CONFIG FOLDER`. CONFIG is the JSON text of the fetch
step's config for the real volume; FOLDER is the volume to make. Writes

    dataset/        the first megabytes of the real text, file by file
    prompts.txt     the first prompts, where the request has some
    models/small/   the model's architecture with few and narrow layers, random weights,
                    its vocabulary and positions; its own tokenizer
    models/tokenizer/   where the request names another one

What comes from the hub is kept there too: the real volume is only read.
"""

import json
import shutil
import sys
from pathlib import Path
from typing import Any

from trainer.contract.errors import EXIT_DONE, RequestError, StepError
from trainer.contract.json_text import parse_json
from trainer.contract.step_configs import FetchConfig, load_step_config
from trainer.contract.volume import path_on_volume
from trainer.fetch.hub import fetch_from_hub, fetched_before, parse_hub_id
from trainer.rehearse.small_text import copy_beginning

PROMPTS = 2  # more of them would only take longer
SMALL_FILES = (".json", ".txt", ".model", ".jinja")
LAYERS, HEADS, HEAD_SIZE = 2, 4, 16
WIDTH = HEADS * HEAD_SIZE
# A config's names for the same thing: GPT-2, J and Neo; Llama, NeoX and most others; Bloom.
SMALL = {
    **dict.fromkeys(("n_layer", "num_layers", "num_hidden_layers"), LAYERS),
    **dict.fromkeys(("n_head", "num_heads", "num_attention_heads"), HEADS),
    **dict.fromkeys(("n_embd", "hidden_size", "d_model", "word_embed_proj_dim"), WIDTH),
    **dict.fromkeys(("intermediate_size", "n_inner", "ffn_dim", "ffn_hidden_size"), 4 * WIDTH),
    "num_key_value_heads": 2,
    "head_dim": HEAD_SIZE,
    "rotary_dim": HEAD_SIZE // 2,
    "attention_types": [[["global", "local"], LAYERS // 2]],
    "num_local_experts": 2,
    "num_experts": 2,
    "num_experts_per_tok": 1,
}


TEMPLATE = "template.jinja"


def shrunken(config: dict[str, Any]) -> dict[str, Any]:
    """A model's config.json with the same architecture and as little of it as there can be."""
    small = {k: SMALL[k] if k in SMALL and v is not None else v for k, v in config.items()}
    if "attention_layers" in config:  # GPT-Neo's, which follow from attention_types
        small["attention_layers"] = ["global", "local"]
    if isinstance(config.get("layer_types"), list):
        small["layer_types"] = config["layer_types"][:LAYERS]
    if isinstance(config.get("text_config"), dict):
        small["text_config"] = shrunken(config["text_config"])
    return {k: v for k, v in small.items() if k != "quantization_config"}


def shrink(config: FetchConfig, volume: Path) -> None:
    """Make the small volume.

    Raises:
        RequestError: The architecture can't be made small, or the text can't be read.
    """
    copy_beginning(config, volume / "dataset")
    code = config.trust_remote_code
    _make_model(_folder(config, "model", volume), volume / "models/small", code)
    if config.tokenizer:
        tokenizer = _folder(config, "tokenizer", volume)
        _copy_small_files(tokenizer, volume / "models/tokenizer", code)
    if config.data.template:
        path = path_on_volume(config.volume, "data.template", config.data.template)
        shutil.copyfile(path, volume / TEMPLATE)
    if config.prompt_file:
        path = path_on_volume(config.volume, "prompt_file", config.prompt_file)
        lines = [line for line in path.read_text("utf-8").splitlines() if line.strip()]
        (volume / "prompts.txt").write_text("\n".join(lines[:PROMPTS]), encoding="utf-8")


def _folder(config: FetchConfig, parameter: str, small: Path) -> Path:
    """Where the model or tokenizer is; from the hub comes all but the weights."""
    name = getattr(config, parameter)
    folder = path_on_volume(config.volume, parameter, name)
    hub_id = parse_hub_id(name)
    if folder.is_dir():
        return folder
    if hub_id is None:
        raise RequestError(
            f"{parameter} is neither a folder on the volume nor a Hugging Face id (got {name!r})."
        )
    there = fetched_before(Path(config.volume), hub_id, tokenizer_only=True)
    code = config.trust_remote_code
    return there or fetch_from_hub(small, parameter, hub_id, tokenizer_only=True, with_code=code)[0]


def _make_model(folder: Path, small: Path, code: bool) -> None:
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    _copy_small_files(folder, small, code)
    config = parse_json((folder / "config.json").read_text(encoding="utf-8"))
    (small / "config.json").write_text(json.dumps(shrunken(config)), encoding="utf-8")
    torch.manual_seed(0)
    try:
        made = AutoConfig.from_pretrained(small, local_files_only=True, trust_remote_code=code)
        model: Any = AutoModelForCausalLM.from_config(
            made, dtype=torch.float32, trust_remote_code=code
        )
    except (ValueError, RuntimeError, AttributeError, AssertionError) as error:
        raise RequestError(
            f"model can't be made small to be rehearsed (got {config.get('model_type')!r}: "
            f"{error}). Start it with a small dataset instead."
        ) from error
    model.save_pretrained(small)


def _copy_small_files(folder: Path, target: Path, code: bool) -> None:
    """The tokenizer and whatever else is no weight; the model's own code where it may run."""
    target.mkdir(parents=True)
    for path in folder.iterdir():
        small = path.suffix in SMALL_FILES or (code and path.suffix == ".py")
        if small and path.is_file() and not path.name.endswith(".index.json"):
            shutil.copy(path, target)


def main(arguments: list[str]) -> int:
    text, folder = arguments
    try:
        config = load_step_config("fetch", text)
        assert isinstance(config, FetchConfig)
        shrink(config, Path(folder))
    except StepError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    return EXIT_DONE


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
