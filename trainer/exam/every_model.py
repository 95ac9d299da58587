"""The exam over every causal language model of the installed transformers: docs/models.md.

Run: `make exam-models`, or `python -m trainer.exam --all [PAGE [RESULTS]]`: an hour on one core.
Results are kept in RESULTS, one a line, and a later call examines what is lacking there. Each
type is examined in a fork of this process, which has torch and DeepSpeed loaded, for a limited
time: what hangs or crashes there ends nothing else.
"""

import contextlib
import dataclasses
import importlib.metadata
import json
import os
import signal
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from trainer.contract.files import write_atomically
from trainer.contract.json_text import parse_json
from trainer.exam.examine import CHECKS, Examined, examine, load_for_forks

# What the defaults of transformers leave open, as published models say it.
INCOMPLETE: dict[str, dict[str, Any]] = {
    "deepseek_v2": {
        "n_routed_experts": 64,
        "num_experts_per_tok": 6,
        "n_group": 1,
        "topk_group": 1,
    },
    "granitemoehybrid": {"layer_types": (["mamba"] * 5 + ["attention"] + ["mamba"] * 2) * 4},
    "lfm2_moe": {"layer_types": ["conv", "conv", "full_attention", "conv"] * 8},
    "cohere_compass_text": {
        "rope_parameters": {"full_attention": {"rope_type": "default", "rope_theta": 10000.0}}
    },
    "dbrx": {"attn_config": {"clip_qkv": 8, "kv_n_heads": 8, "rope_theta": 500000.0}},
    "dots1": {
        "n_routed_experts": 8,
        "n_shared_experts": 1,
        "n_group": 1,
        "topk_group": 1,
        "num_experts_per_tok": 2,
    },
    "hunyuan_v1_dense": {"head_dim": 128},
    "hunyuan_v1_moe": {"head_dim": 128},
    "ministral": {"head_dim": 128},
    "nemotron": {"num_key_value_heads": 8},
    "reformer": {"is_decoder": True},
    "xmod": {"default_language": "en_XX"},
}

# The page is useful before it is whole: these are examined first.
FINETUNED_MOST = (
    "llama", "mistral", "mixtral", "qwen2", "qwen3", "qwen3_moe", "qwen3_5_text", "qwen3_5",
    "qwen3_5_moe_text", "qwen3_next", "gemma2", "gemma3_text", "gemma3", "gemma4_text", "gemma4",
    "gemma", "phi3", "phi", "olmo2", "gpt_oss", "smollm3", "deepseek_v2", "deepseek_v3", "glm",
    "glm4", "glm4_moe", "falcon", "gpt2", "gptj", "gpt_neox", "gpt_neo",
)  # fmt: skip
LIMIT_SECONDS = 1200.0  # for one type, on a busy core: most take 10 to 40, linear attention minutes

TITLES = {
    "final": "final = base at rate 0",
    "loss": "loss, gradients",
    "causal": "causal",
    "cache": "served",
    "lora": "LoRA merged",
    "processes": "2 processes",
    "resume": "resumed",
    "packed": "packed",
}


def model_types() -> list[str]:
    """Every model type that transformers has a causal language model for."""
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    return sorted(kind for kind in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES if kind in CONFIG_MAPPING)


def default_config(kind: str) -> Any:
    """The configuration that transformers gives the model type."""
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    return CONFIG_MAPPING[kind](**INCOMPLETE.get(kind, {}))


def examine_all(kinds: list[str], results: Path) -> Iterator[Examined]:
    """The results of all kinds, those in the file `results` among them; new ones go there.

    Checks that a result lacks are made now.
    """
    known = _read(results)
    for kind in sorted(kinds, key=_rank):
        there = known.get(kind, Examined(kind))
        lacking = tuple(name for name in CHECKS if name not in there.checks)
        if lacking and not there.not_examined:
            found = examine_apart(kind, lacking)
            known[kind] = dataclasses.replace(found, checks={**there.checks, **found.checks})
            with open(results, "a", encoding="utf-8") as file:
                file.write(json.dumps(dataclasses.asdict(known[kind])) + "\n")
        yield known[kind]


def _rank(kind: str) -> tuple[int, str]:
    first = FINETUNED_MOST.index(kind) if kind in FINETUNED_MOST else len(FINETUNED_MOST)
    return first, kind


def examine_apart(
    kind: str, only: tuple[str, ...] = tuple(CHECKS), limit_seconds: float = LIMIT_SECONDS
) -> Examined:
    """Examine a type in a fork; what was found until it ended, and why it ended.

    Args:
        only: Which of CHECKS to make.
    """
    with tempfile.TemporaryDirectory(prefix="finetune-exam-") as name:
        result = Path(name) / "result.json"
        ended = _in_fork(lambda: _examine_into(kind, only, result), limit_seconds)
        found = Examined(kind)
        if result.exists():
            found = Examined(**parse_json(result.read_text(encoding="utf-8")))
    return found if not ended else dataclasses.replace(found, not_examined=ended)


def _examine_into(kind: str, only: tuple[str, ...], result: Path) -> None:
    """Write what is known after each check, so that a limit leaves the swift ones."""

    def keep(found: Examined) -> None:
        known = dataclasses.replace(found, model_type=kind)
        write_atomically(result, json.dumps(dataclasses.asdict(known)))

    try:
        config = default_config(kind)
    except Exception as error:  # noqa: BLE001  code of a config raises anything
        keep(Examined(kind, not_examined=f"it has no default configuration ({error})"[:200]))
    else:
        keep(examine(config, only=only, after_check=keep))


def _in_fork(work: Callable[[], None], limit_seconds: float) -> str:
    """Do the work in a fork with its children; empty, or how it ended otherwise than well."""
    load_for_forks()
    if (pid := os.fork()) == 0:
        code = 1
        try:
            os.setsid()
            work()
            code = 0
        finally:
            os._exit(code)
    end = time.monotonic() + limit_seconds
    while (ended := os.waitpid(pid, os.WNOHANG)) == (0, 0):
        if time.monotonic() > end:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
            return f"it took more than {limit_seconds:g} s"
        time.sleep(0.05)
    code = os.waitstatus_to_exitcode(ended[1])
    return f"its process ended with {code}" if code else ""


def _read(results: Path) -> dict[str, Examined]:
    if not results.exists():
        return {}
    lines = results.read_text(encoding="utf-8").splitlines()
    return {found.model_type: found for found in (Examined(**parse_json(x)) for x in lines)}


def as_markdown(found: list[Examined]) -> str:
    """The page docs/models.md."""
    version = importlib.metadata.version("transformers")
    found, names = sorted(found, key=lambda e: e.model_type), list(CHECKS)
    right = [e for e in found if e.checks and not any(e.checks.values())]
    whole = [e for e in right if len(e.checks) == len(CHECKS)]
    some = [e for e in found if any(e.checks.values())]
    not_at_all = [e for e in found if not e.checks]
    lines = [
        "# Models",
        "",
        f"Every causal language model of transformers {version}, examined as a small copy "
        "(`make exam-models` writes this page).",
        "",
        f"{len(found)} model types: {len(whole)} pass every check, {len(right) - len(whole)} pass "
        f"those that were made, {len(some)} have a gap, and {len(not_at_all)} were not examined. A "
        "`-` stands for a check that was not made, which says nothing about its result. The fetch "
        "step makes all of them for the model of a run, from the model's own config.",
        "",
        *(f"- **{TITLES[name]}**: {what}." for name, what in CHECKS.items()),
        "",
        "| model type | " + " | ".join(TITLES[name] for name in names) + " |",
        "| --- |" + " --- |" * len(names),
        *(_row(e, names) for e in found if e.checks),
        "",
        "## Gaps",
        "",
        *(
            f"- `{e.model_type}`, {TITLES[name]}: {wrong}"
            for e in some
            for name, wrong in e.checks.items()
            if wrong
        ),
        "",
        "## Not examined",
        "",
        *(f"- `{e.model_type}`: {_why_not(e)}" for e in found if e.not_examined),
    ]
    return "\n".join(lines) + "\n"


def _why_not(examined: Examined) -> str:
    reason = " ".join(examined.not_examined.split())
    without = not examined.checks and not reason.startswith("it ")
    return f"its default config cannot be made small: {reason}" if without else reason


def _row(examined: Examined, names: list[str]) -> str:
    def mark(name: str) -> str:
        return "-" if name not in examined.checks else "**no**" if examined.checks[name] else "yes"

    return f"| `{examined.model_type}` | " + " | ".join(mark(name) for name in names) + " |"
