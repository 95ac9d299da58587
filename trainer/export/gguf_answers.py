"""What a GGUF file says to the golden prompts, as JSON on standard output.

    python -m trainer.export.gguf_answers FILE.gguf FINAL

A process of its own: llama.cpp ends its process where it can't read a file.
"""

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np

from trainer.contract.json_text import parse_json


def answers(file: Path, final: Path) -> dict[str, Any]:
    """Scores and greedy answers to the prompts of `final/golden.json`, by llama.cpp on the CPU.

    Returns:
        `prompts`, each as golden.json has it, and `tokenized`: how many of their texts llama.cpp
        and the model's own tokenizer split alike, of how many; null where that is not known.
    """
    from llama_cpp import Llama

    golden = parse_json((final / "golden.json").read_text(encoding="utf-8"))
    longest = max(len(p["ids"]) + len(p.get("answer_ids", ())) for p in golden["prompts"])
    model = Llama(str(file), n_ctx=longest + 1, logits_all=True, n_gpu_layers=0, verbose=False)
    ends = _end_ids(final, golden)
    told = [_told(model, prompt, ends) for prompt in golden["prompts"]]
    return {"prompts": told, "tokenized": _tokenized(model, final, golden)}


def _end_ids(final: Path, golden: dict[str, Any]) -> list[int]:
    """Tokens that no golden answer may have: those that end one."""
    ends = [golden["end_id"]] if golden.get("end_id") is not None else []
    path = final / "generation_config.json"
    if path.is_file():
        named = parse_json(path.read_text(encoding="utf-8")).get("eos_token_id")
        ends += named if isinstance(named, list) else [] if named is None else [named]
    return ends


def _told(model: Any, prompt: dict[str, Any], ends: list[int]) -> dict[str, Any]:
    ids = prompt["ids"]
    model.reset()
    model.eval(ids)
    scores = _log_probs(model, 0, len(ids))  # (T, V)
    best = int(scores[-1].argmax())
    given = [float(scores[at, token]) for at, token in enumerate(ids[1:])]
    told = {"ids": ids, "log_probs": given, "next_id": best, "answer_ids": []}
    told |= {"next_log_prob": float(scores[-1, best]), "answer_log_probs": []}
    last = scores[-1]
    for _ in prompt.get("answer_ids", ()):
        allowed = last.copy()
        allowed[ends] = -np.inf
        token = int(allowed.argmax())
        told["answer_ids"].append(token)
        told["answer_log_probs"].append(float(last[token]))
        model.eval([token])
        last = _log_probs(model, model.n_tokens - 1, model.n_tokens)[0]
    return told


def _log_probs(model: Any, begin: int, end: int) -> np.ndarray:
    """Log-probabilities after tokens `begin` to `end`, shape (T, V)."""
    scores = np.asarray(model.scores[begin:end], np.float64)
    scores = scores - scores.max(-1, keepdims=True)
    return scores - np.log(np.exp(scores).sum(-1, keepdims=True))


def _tokenized(model: Any, final: Path, golden: dict[str, Any]) -> list[int] | None:
    from tokenizers import Tokenizer

    if not (final / "tokenizer.json").is_file():
        return None
    own = Tokenizer.from_file(str(final / "tokenizer.json"))
    texts = [own.decode(prompt["ids"]) for prompt in golden["prompts"]]
    alike = [
        own.encode(text, add_special_tokens=False).ids
        == model.tokenize(text.encode(), add_bos=False, special=True)
        for text in texts
    ]
    return [sum(alike), len(alike)]


if __name__ == "__main__":
    print(json.dumps(answers(Path(sys.argv[1]), Path(sys.argv[2]))))
