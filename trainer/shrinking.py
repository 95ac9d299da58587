"""Make a small copy of a request's volume to rehearse on: the same kinds of things, less of each.

Run: `python -m trainer.shrinking CONFIG FOLDER`: the JSON text of the tokenize step's config
for the real volume, and the volume to make. Writes

    {dataset}/      the first megabytes of the real text, file by file
    models/small/   the model's architecture with few and narrow layers, random weights,
                    its vocabulary and positions; its own tokenizer
    models/tokenizer/   where the request names another one
"""

import json
import shutil
import sys
from itertools import islice
from pathlib import Path
from typing import Any

from trainer.config import TokenizeConfig, load_step_config, path_on_volume
from trainer.errors import EXIT_DONE, RequestError
from trainer.fetch.hub import fetch_from_hub, fetched_before, parse_hub_id
from trainer.tokens.sources import list_sources, open_source

TEXT_BYTES = 2 << 20
MOST_FILES = 64
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


def shrink(config: TokenizeConfig, volume: Path) -> None:
    """Make the small volume.

    Raises:
        RequestError: The architecture can't be made small, or the text can't be read.
    """
    _copy_text(config, volume)
    _make_model(_folder(config, "model"), volume / "models/small")
    if config.tokenizer:
        _copy_small_files(_folder(config, "tokenizer"), volume / "models/tokenizer")


def _folder(config: TokenizeConfig, parameter: str) -> Path:
    """Where the model or tokenizer is; from the hub comes all but the weights."""
    name = getattr(config, parameter)
    folder = path_on_volume(config.volume, parameter, name)
    hub_id = parse_hub_id(name)
    if folder.is_dir() or hub_id is None:
        return folder
    volume = Path(config.volume)
    there = fetched_before(volume, hub_id, tokenizer_only=True)
    return (
        there or fetch_from_hub(volume, parameter, hub_id, tokenizer_only=True, with_code=False)[0]
    )


def _copy_text(config: TokenizeConfig, volume: Path) -> None:
    sources = list_sources(config.volume, config.dataset)
    left = TEXT_BYTES
    for source in islice(sources, MOST_FILES):
        # A compressed or columnar file can't be cut: it comes whole, or not at all.
        cut = source.kind != "parquet" and not source.compression
        if left <= 0 or (source.size > left and not cut):
            continue
        target = volume / "dataset" / source.path
        target.parent.mkdir(parents=True, exist_ok=True)
        with open_source(source.location, source.remote) as file:
            text = file.read(left)
        target.write_bytes(text if len(text) == source.size else text[: text.rfind(b"\n") + 1])
        left -= len(text)
    if left == TEXT_BYTES:
        raise RequestError(
            f"dataset has no file that can be rehearsed with (got {config.dataset!r}). Parquet and "
            f"compressed files come whole: the first {MOST_FILES} are over {TEXT_BYTES:,} bytes."
        )


def _make_model(folder: Path, small: Path) -> None:
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    _copy_small_files(folder, small)
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    (small / "config.json").write_text(json.dumps(shrunken(config)), encoding="utf-8")
    torch.manual_seed(0)
    try:
        made = AutoConfig.from_pretrained(small, local_files_only=True)
        model: Any = AutoModelForCausalLM.from_config(made, dtype=torch.float32)
    except (ValueError, RuntimeError, AttributeError, AssertionError) as error:
        raise RequestError(
            f"model can't be made small to be rehearsed (got {config.get('model_type')!r}: "
            f"{error}). Start it with a small dataset instead."
        ) from error
    model.save_pretrained(small)


def _copy_small_files(folder: Path, target: Path) -> None:
    """The tokenizer and whatever else is no weight."""
    target.mkdir(parents=True)
    for path in folder.iterdir():
        small = path.suffix in (".json", ".txt", ".model", ".jinja")
        if small and path.is_file() and not path.name.endswith(".index.json"):
            shutil.copy(path, target)


def main(arguments: list[str]) -> int:
    text, folder = arguments
    try:
        config = load_step_config("tokenize", text)
        assert isinstance(config, TokenizeConfig)
        shrink(config, Path(folder))
    except RequestError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    return EXIT_DONE


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
