"""A finished model as the finetune step leaves it: golden answers, sealed."""

import json
from pathlib import Path
from typing import Any

from tests.serving import tiny_models
from trainer.contract.sealed_folder import seal
from trainer.training.save.final import golden_answers

PROMPTS = ((5, 9, 200, 31, 77, 140), (260, 4, 4, 90), (33, 280))


def save(final: Path, seed: int = 0) -> Path:
    """A GPT-J in `final` with golden.json and manifest.json."""
    part = final.with_name("part")
    tiny_models.save(part, seed=seed)
    return seal_with_golden(part, final, tiny_models.model("gptj", seed))


def seal_with_golden(part: Path, final: Path, model: Any) -> Path:
    """The folder of a model in `part`, sealed as `final` with what the model says itself."""
    golden = golden_answers(model, [list(prompt) for prompt in PROMPTS], end_ids=[0])
    (part / "golden.json").write_text(json.dumps(golden))
    seal(part, final, {"kind": "final", "step": 1})
    return final
