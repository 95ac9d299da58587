"""A dataset of chats from the command line to a server that answers them."""

import json
from pathlib import Path
from typing import Any

import httpx
import pytest

from infra.local.processes import LocalBackend
from tests.flows.small_volume import PVC, finetune, make_volume
from trainer.tokens.store import TokenStore

TEMPLATE = (
    "{% for m in messages %}{{ m.role + ': ' + m.content }}"
    "{% if m.role == 'assistant' %}{{ eos_token }}{% endif %}{{ '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'assistant: ' }}{% endif %}"
)
SYSTEM = "Be kind."
REQUEST: dict[str, Any] = {
    "run_name": "chatting",
    "model": "models/tiny",
    "dataset": "chats",
    "data": json.dumps({"system": SYSTEM}),
    "context": 64,
    "batch_size": 4,
    "gradients": 1,
    "epochs": 2,
    "learn_rate": 1e-3,
    "prompt_file": "prompts.txt",
    "prompt_tokens": 8,
    "prompt_samples": 1,
    "run_inference": "true",
}


@pytest.fixture
def chats(tmp_path: Path) -> Path:
    """A home with 60 chats, and a model without a template."""
    volume = make_volume(tmp_path)
    (volume / "prompts.txt").write_text("Who asked the way?\n", encoding="utf-8")
    records = [
        {
            "messages": [
                {"role": "user", "content": f"Who rode to {place} {number}?"},
                {"role": "assistant", "content": f"The sheriff of {place}."},
            ]
        }
        for number in range(15)
        for place in ("Elkhorn", "Red Bluff", "Mercy", "Lone Pine")
    ]
    (volume / "chats").mkdir()
    (volume / "chats/a.jsonl").write_text("\n".join(map(json.dumps, records)), encoding="utf-8")
    return tmp_path


def said(
    home: Path, environment: dict[str, str], *words: str, code: int = 0, **changed: Any
) -> str:
    given = {**REQUEST, **changed}
    values = [part for name, value in given.items() for part in ("-p", f"{name}={value}")]
    process = finetune(home, environment, *words, *values)
    out, err = process.communicate(timeout=1000)
    assert process.returncode == code, err
    return out + err


def first_trained(store: TokenStore, index: int) -> int:
    trained = store.trained([index])
    assert trained is not None
    return int(trained[0].argmax())


def test_chats_are_planned_trained_compared_and_served(
    chats: Path, environment: dict[str, str]
) -> None:
    home, volume = chats, chats / PVC
    assert "models/tiny has no chat template" in said(home, environment, "plan", code=78).replace(
        "tiny has", "models/tiny has"
    )
    (volume / "models/tiny/chat_template.jinja").write_text(TEMPLATE, encoding="utf-8")
    estimated = json.loads(said(home, environment, "plan", "--json"))
    try:
        said(home, environment, "run")
        store = TokenStore.open(next((volume / "tokens").glob("chats-*")))
        train = store.manifest.num_train_contexts
        trained = store.trained_tokens(range(train))
        exact = json.loads(said(home, environment, "plan", "--json"))
        assert exact["tokens"] == 2 * trained
        assert estimated["num_contexts"] == store.manifest.num_contexts == 60
        assert estimated["tokens"] == pytest.approx(exact["tokens"], rel=0.1)

        run = volume / "chatting"
        lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
        assert [line["tokens"] for line in lines if "loss" in line][-1] == 2 * trained
        report = json.loads((run / "evaluation.json").read_text())
        assert report["tokens"] == store.trained_tokens(range(train, 60))
        assert report["loss"] < report["base_loss"]
        golden = json.loads((run / "final/golden.json").read_text())
        questions = [store.contexts[at, : first_trained(store, at)].tolist() for at in range(60)]
        assert golden["prompts"] and all(p["ids"] in questions for p in golden["prompts"])

        service = json.loads((run / "service.json").read_text())
        turns = [{"role": "user", "content": "Who rode to Mercy 3?"}]
        body = {"model": "final", "messages": turns, "max_tokens": 4}
        answer = httpx.post(f"{service['url']}/v1/chat/completions", json=body, timeout=60)
        assert answer.status_code == 200, answer.text
        assert answer.json()["choices"][0]["message"]["role"] == "assistant"
    finally:
        LocalBackend(home).stop(PVC, "chatting", grace_seconds=1)
        finetune(home, environment, "stop", "chatting").wait()
