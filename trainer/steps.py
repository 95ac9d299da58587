"""Which module does which step, and what it hands back.

Each module has `run(config) -> StepResult`; it is imported only when its step runs.
"""

from dataclasses import dataclass, field
from typing import Any

STEP_MODULES = {
    "plan": "trainer.plan.step",
    "fetch": "trainer.fetch",
    "tokenize": "trainer.tokens.step",
    "finetune": "trainer.training.step",
    "evaluate": "trainer.evaluation.step",
    "serve": "trainer.serving.step",
    "deploy": "trainer.serving.deploy.deploy",
    "champion": "trainer.retraining.step",
    "again": "trainer.replaying.step",
}


@dataclass(frozen=True, kw_only=True)
class StepResult:
    """What a step made: see Outcome for the fields."""

    result: dict[str, Any] = field(default_factory=dict)
    message: str = ""
    reused: bool = False
