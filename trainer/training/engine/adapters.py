"""LoRA: train low-rank adapters beside frozen weights, by the peft library.

The adapters are put into transformers' own model, so everything else stays as it is:
checkpoints hold what is trained, which is the adapters alone.
"""

import json
import warnings
from pathlib import Path
from typing import Any

import torch
from torch import nn

from trainer.contract.errors import RequestError
from trainer.contract.json_text import parse_json
from trainer.contract.topics import LoraConfig
from trainer.training.engine.four_bits import FourBitLinear

ALL_LINEAR = "all-linear"
# peft 0.21 refuses these layers in these models: their kernels read the weights directly.
_MAMBA = ("mamba", "mamba2", "falcon_mamba", "falcon_h1", "nemotron_h")
_NOT_WITH_MAMBA = ("out_proj", "conv1d")


def add_adapters(model: Any, lora: LoraConfig, base_model: str, seed: int) -> Any:
    """Put adapters into `model` and freeze the rest; their first numbers come from `seed`.

    Returns:
        A peft model that shares the modules of `model`.
    """
    from peft import LoraConfig as PeftConfig
    from peft import get_peft_model

    config = PeftConfig(
        task_type="CAUSAL_LM",
        base_model_name_or_path=base_model,
        r=lora.rank,
        lora_alpha=lora.alpha,  # type: ignore[arg-type] # peft takes fractions too
        lora_dropout=lora.dropout,
        target_modules=_target_modules(model, lora),
        use_rslora=lora.rslora,
        use_dora=lora.dora,
        modules_to_save=list(lora.modules_to_save) or None,
    )
    refuse_unknown_modules(model, lora)
    with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        torch.manual_seed(seed)
        # peft names the base by its folder, to compare its vocabulary on saving: see `merge`.
        warnings.filterwarnings("ignore", message=".*`base_model_name_or_path` was renamed")
        # peft 0.21 asks transformers for an attribute by its old name.
        warnings.filterwarnings("ignore", message="`is_gradient_checkpointing` is deprecated")
        try:
            adapted = get_peft_model(model, config)
        except ValueError as error:
            raise RequestError(
                f"lora can't be added to {base_model} ({error}). "
                "Name layers of the model in lora's target_modules, such as q_proj and v_proj."
            ) from error
    untie_adapted(model)
    return adapted


def refuse_unknown_modules(model: Any, lora: LoraConfig) -> None:
    """Raise RequestError for a module to train whole that the model lacks; peft skips some."""
    names = [name for name, _ in model.named_modules()]
    ends = (model.get_input_embeddings(), model.get_output_embeddings())
    known = [name.rpartition(".")[2] for name, module in model.named_modules() if module in ends]
    problems = [
        f"lora.modules_to_save names no module of the model (got {wanted!r}). Its embeddings and "
        f"head are {' and '.join(known)}. Name these, or others of its modules."
        for wanted in lora.modules_to_save
        if not any(name == wanted or name.endswith(f".{wanted}") for name in names)
    ]
    if problems:
        raise RequestError(*problems)


def _target_modules(model: Any, lora: LoraConfig) -> list[str] | str:
    """What peft is asked to adapt: by default what it knows for this kind of model."""
    from peft.utils import TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING as KNOWN

    kind, asked = model.config.model_type, lora.target_modules
    if asked not in ([], [ALL_LINEAR], ALL_LINEAR):
        return list(asked)
    if not asked and kind in KNOWN:
        known = KNOWN[kind]  # left out, peft 0.21 finds none for Mixtral
        return known if isinstance(known, str) else list(known)
    return all_linear(model) if kind in _MAMBA or _has_routers(model) else ALL_LINEAR


def _has_routers(model: Any) -> bool:
    """Whether a layer that is linear by its class gives more than a product, as Llama 4's router.

    peft 0.21 adapts it with all-linear, and fails on what it gives.
    """
    return any(isinstance(m, nn.Linear) and not _is_plain(m) for m in model.modules())


_PRODUCTS = (nn.Linear.forward, FourBitLinear.forward)


def _is_plain(module: nn.Module) -> bool:
    return isinstance(module, nn.Linear) and type(module).forward in _PRODUCTS


def all_linear(model: Any) -> list[str]:
    """Names of the model's linear layers, less the head and what peft refuses with Mamba."""
    head = model.get_output_embeddings()
    names = {
        name for name, module in model.named_modules() if _is_plain(module) and module is not head
    }
    return sorted(name for name in names if not name.endswith(_NOT_WITH_MAMBA))


def untie_adapted(model: Any) -> None:
    """Give a layer with an adapter weights of its own where another layer shares them.

    The adapter changes this end alone in training, so merging it must not change the other.
    """
    from peft.tuners.tuners_utils import BaseTunerLayer
    from peft.utils import ModulesToSaveWrapper

    wrappers = (BaseTunerLayer, ModulesToSaveWrapper)
    for changed in [m for m in model.modules() if isinstance(m, wrappers)]:
        if isinstance(changed, BaseTunerLayer):
            base: Any = changed.get_base_layer()
        else:
            base = changed.original_module
        weight = _weight_of(base)
        # A wrapper of peft's answers with the weight of the layer in it.
        plain = [m for m in model.modules() if m is not base and not isinstance(m, wrappers)]
        if weight is None or not any(_weight_of(m) is weight for m in plain):
            continue
        base.weight = nn.Parameter(weight.detach().clone(), requires_grad=False)
        for part in (model.config, model.config.get_text_config()):
            part.tie_word_embeddings = False
        model.all_tied_weights_keys = {}


def _weight_of(module: nn.Module) -> nn.Parameter | None:
    """The module's own parameter; a layer in 4 bits has none, and would make its weight anew."""
    return module._parameters.get("weight")


def merge(adapted: Any, folder: Path, base_model: str) -> Any:
    """Save the adapters alone to `folder`; the model with them worked into its weights.

    Args:
        base_model: Its name on the volume, which may be mounted elsewhere later.
    """
    from peft.utils import CONFIG_NAME

    adapted.save_pretrained(folder)
    (folder / "README.md").unlink(missing_ok=True)  # peft's empty form of a model card
    place = folder / CONFIG_NAME
    settings = parse_json(place.read_text(encoding="utf-8"))
    settings["base_model_name_or_path"] = base_model
    place.write_text(json.dumps(settings, indent=2, sort_keys=True), encoding="utf-8")
    return adapted.merge_and_unload()
