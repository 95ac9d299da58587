"""Topics and keys that came after the first release: left out of records where at their defaults.

So a request that names none of them has the digests, keys and run.json that it always had, and
an older run.json, which lacks them, says the same as one with their defaults.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

from trainer.contract.topics import (
    CheckpointsConfig,
    DataConfig,
    EvaluationConfig,
    KernelsConfig,
    LoraConfig,
    OptimizerConfig,
    PreferenceConfig,
    RetentionConfig,
    ScheduleConfig,
    ServingConfig,
    SkipConfig,
)

# Of each topic the keys that were there before; the others came later.
FIRST_KEYS: Mapping[Any, tuple[str, ...]] = {
    DataConfig: (),
    PreferenceConfig: (),
    SkipConfig: (),
    CheckpointsConfig: ("keep_last", "keep_best", "max_gib", "every_minutes"),
    KernelsConfig: ("compile", "liger"),
    RetentionConfig: (),
    EvaluationConfig: (),
    ScheduleConfig: (),
    OptimizerConfig: ("offload", "adam_bits"),
    LoraConfig: ("rank", "alpha", "dropout", "target_modules"),
    ServingConfig: tuple(
        f.name
        for f in dataclasses.fields(ServingConfig)  # type: ignore[arg-type]
        if f.name != "adapters"
    ),
}
NAMES = {
    "data": DataConfig,
    "preference": PreferenceConfig,
    "skip": SkipConfig,
    "checkpoints": CheckpointsConfig,
    "kernels": KernelsConfig,
    "retention": RetentionConfig,
    "evaluation": EvaluationConfig,
    "schedule": ScheduleConfig,
    "optimizer": OptimizerConfig,
    "lora": LoraConfig,
    "serving": ServingConfig,
}


def _defaults(topic: Any) -> dict[str, Any]:
    """The later keys of a topic, with their defaults."""
    usual = dataclasses.asdict(topic())
    return {name: usual[name] for name in usual if name not in FIRST_KEYS[topic]}


LATER = {name: _defaults(topic) for name, topic in NAMES.items()}
LATER_FIELDS = {"replaced": ""}  # of configs, not of a topic
NEW_TOPICS = frozenset(name for name, topic in NAMES.items() if not FIRST_KEYS[topic])


def without_later_defaults(values: Mapping[str, Any]) -> dict[str, Any]:
    """The values without later keys that are at their defaults, and without topics left empty.

    Args:
        values: A request's, or a step's config's; topics as objects of names and values.
    """
    kept = {name: _kept(name, value) for name, value in values.items()}
    empty = {**LATER_FIELDS, **{name: {} for name in NEW_TOPICS}}
    return {n: value for n, value in kept.items() if n not in empty or value != empty[n]}


def _kept(name: str, value: Any) -> Any:
    if name not in LATER or not isinstance(value, Mapping):
        return value
    usual = LATER[name]
    return {key: v for key, v in value.items() if key not in usual or v != usual[key]}


def with_new_topics(values: Mapping[str, Any]) -> dict[str, Any]:
    """The values with an empty object for each new topic that they lack: all its defaults."""
    return {**{name: {} for name in sorted(NEW_TOPICS)}, **values}
