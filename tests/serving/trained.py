"""A finished model as the finetune step leaves it: golden answers, sealed."""

import json
from pathlib import Path
from typing import Any

import torch

from tests.serving import tiny_models
from trainer.checkpoints.seal import seal

PROMPTS = ((5, 9, 200, 31, 77, 140), (260, 4, 4, 90), (33, 280))


def save(final: Path, seed: int = 0) -> Path:
    """A GPT-J in `final` with golden.json and manifest.json."""
    part = final.with_name("part")
    tiny_models.save(part, seed=seed)
    model = tiny_models.model("gptj", seed)
    golden = {"format": 1, "dtype": "float32", "prompts": [answer(model, p) for p in PROMPTS]}
    (part / "golden.json").write_text(json.dumps(golden))
    seal(part, final, {"kind": "final", "step": 1})
    return final


@torch.no_grad()
def answer(model: Any, ids: tuple[int, ...]) -> dict[str, Any]:
    scores = model(torch.tensor([ids])).logits[0].log_softmax(-1)
    best = int(scores[-1].argmax())
    return {
        "ids": list(ids),
        "log_probs": [float(scores[i, token]) for i, token in enumerate(ids[1:])],
        "next_id": best,
        "next_log_prob": float(scores[-1, best]),
    }
