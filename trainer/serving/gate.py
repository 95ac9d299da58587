"""Whether a server answers with the model that was trained; asked over HTTP, before it counts.

    observed = observe(url, expected)         what the server says
    problems(expected, observed)              pure: one sentence for each check that failed

Loads nothing but the standard library, so whoever deploys can import it.
"""

import hashlib
import http.client
import json
import urllib.error
import urllib.request
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

# Largest difference of a log-probability, by the coarser of the precisions it was recorded and
# is served in. Between kernels of one precision: float32 1e-5, measured with GPT-J, GPT-NeoX and
# Llama; half precisions round logits of about 10 to steps of 0.008 (float16) and 0.06 (bfloat16).
TOLERANCES = {"float32": 1e-3, "float16": 0.03, "bfloat16": 0.2}
TOKENIZER_FILES = (
    "added_tokens.json",
    "merges.txt",
    "special_tokens_map.json",
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
    "vocab.json",
)
TIMEOUT_SECONDS = 120.0


@dataclass(frozen=True, kw_only=True)
class Golden:
    """One prompt with what the trainer's own model said to it."""

    ids: tuple[int, ...]
    log_probs: tuple[float, ...]  # of each id after the first
    next_id: int
    next_log_prob: float


@dataclass(frozen=True, kw_only=True)
class Expected:
    """What a server of the trained model must say; None: not known, so not checked."""

    prompts: tuple[Golden, ...]
    dtype: str
    end_id: int | None
    tokenizer_digest: str | None
    loss: float | None = None
    base_loss: float | None = None
    serving_loss: float | None = None  # of the revision that serves now
    max_regression: float = 0.0


@dataclass(frozen=True, kw_only=True)
class Observed:
    """What the server said."""

    prompts: tuple[Golden, ...]
    dtype: str
    tokenizer_digest: str
    end: str  # how an answer ended whose first token was forced to be end-of-text
    end_text: str = ""


class GateError(Exception):
    """The server refused or did not answer what the gate asked."""


def problems(expected: Expected, observed: Observed) -> list[str]:
    """One sentence for each check that failed; none: the server may take over."""
    found = []
    if expected.tokenizer_digest not in (None, observed.tokenizer_digest):
        found.append(
            f"tokenizer: expected digest {expected.tokenizer_digest}, "
            f"got {observed.tokenizer_digest}. It is not the one the model was trained with."
        )
    found += _golden_problems(expected, observed)
    if expected.end_id is not None and (observed.end, observed.end_text) != ("stop", ""):
        found.append(
            f"end-of-text: expected an answer to stop at token {expected.end_id}, "
            f"got finish_reason {observed.end!r} and text {observed.end_text!r}."
        )
    return [*found, *_loss_problems(expected)]


def _golden_problems(expected: Expected, observed: Observed) -> list[str]:
    tolerance = max(TOLERANCES.get(d, 0.2) for d in (expected.dtype, observed.dtype))
    found = []
    for number, (want, got) in enumerate(zip(expected.prompts, observed.prompts, strict=True), 1):
        if got.ids != want.ids:
            found.append(f"golden prompt {number}: expected ids {want.ids}, got {got.ids}.")
            continue
        pairs = [
            *zip(want.log_probs, got.log_probs, strict=True),
            (want.next_log_prob, got.next_log_prob),
        ]
        worst = max(pairs, key=lambda pair: _apart(*pair))
        if not _apart(*worst) <= tolerance:
            found.append(
                f"golden prompt {number}: expected log-probability {worst[0]:.6f}, "
                f"got {worst[1]:.6f}. In {observed.dtype} at most {tolerance:g} apart."
            )
        elif got.next_id != want.next_id and want.next_log_prob - got.next_log_prob > tolerance:
            found.append(
                f"golden prompt {number}: expected next token {want.next_id}, got {got.next_id}."
            )
    return found


def _apart(one: float, other: float) -> float:
    distance = abs(one - other)
    return distance if distance == distance else float("inf")  # NaN is as far as can be


def _loss_problems(expected: Expected) -> list[str]:
    loss, found = expected.loss, []
    if loss is None:
        return []
    if expected.base_loss is not None and not loss <= expected.base_loss:
        found.append(
            f"validation loss: expected at most the base model's {expected.base_loss:.4f}, "
            f"got {loss:.4f}."
        )
    serving = expected.serving_loss
    if serving is not None and not loss <= serving + expected.max_regression:
        found.append(
            f"validation loss: expected at most {serving:.4f} of the revision that serves now "
            f"plus max_regression {expected.max_regression:g}, got {loss:.4f}."
        )
    return found


# --- what is expected -------------------------------------------------------------------


def expected_of(
    final: Path,
    *,
    report: Path | None = None,
    serving_loss: float | None = None,
    max_regression: float = 0.0,
) -> Expected:
    """What the finetune and evaluate steps left about the model in `final`.

    Args:
        final: The model's folder, with golden.json and manifest.json.
        report: The run's evaluation.json.
        serving_loss: Validation loss of the revision that serves now.
        max_regression: How much worse than that the new one may be.
    Raises:
        GateError: There is no golden.json, or it is of another format.
    """
    golden = _read(final / "golden.json")
    if golden is None or golden.get("format") != 1:
        raise GateError(f"{final} has no golden.json of format 1. Finetune it with this version.")
    manifest = _read(final / "manifest.json")
    evaluation = (_read(report) if report else None) or {}
    return Expected(
        prompts=tuple(
            Golden(
                ids=tuple(prompt["ids"]),
                log_probs=tuple(prompt["log_probs"]),
                next_id=prompt["next_id"],
                next_log_prob=prompt["next_log_prob"],
            )
            for prompt in golden["prompts"]
        ),
        dtype=golden["dtype"],
        end_id=_end_id(final),
        tokenizer_digest=tokenizer_digest(manifest["files"]) if manifest else None,
        loss=evaluation.get("loss"),
        base_loss=evaluation.get("base_loss"),
        serving_loss=serving_loss,
        max_regression=max_regression,
    )


def tokenizer_digest(files: Mapping[str, Mapping[str, Any]]) -> str:
    """One digest of a folder's tokenizer files, from a manifest's `files`."""
    lines = [f"{files[n]['sha256']}  {n}\n" for n in TOKENIZER_FILES if n in files]
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def _end_id(final: Path) -> int | None:
    """End-of-text as the tokenizer of the folder writes it."""
    tokenizer, settings = _read(final / "tokenizer.json"), _read(final / "tokenizer_config.json")
    end = (settings or {}).get("eos_token")
    name = end["content"] if isinstance(end, dict) else end
    for token in (tokenizer or {}).get("added_tokens", []):
        if token["content"] == name:
            return token["id"]
    return None


def _read(path: Path) -> dict[str, Any] | None:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None


# --- what is observed -------------------------------------------------------------------


def check(url: str, name: str, expected: Expected) -> list[str]:
    """Ask the server at `url` and name what is wrong with it."""
    try:
        return problems(expected, observe(url, name, expected))
    except GateError as error:
        return [str(error)]


def observe(url: str, name: str, expected: Expected) -> Observed:
    """Ask the server what the gate wants to know.

    Raises:
        GateError: It refused or did not answer.
    """
    about = _ask(f"{url}/v1/models/{name}")
    end, end_text = "", ""
    if expected.end_id is not None:
        body = {"prompt": [expected.end_id], "logit_bias": {str(expected.end_id): 100}}
        choice = _complete(url, {"model": name, "max_tokens": 4, **body})
        end, end_text = choice["finish_reason"], choice["text"]
    return Observed(
        prompts=tuple(_golden(url, name, golden) for golden in expected.prompts),
        dtype=about["dtype"],
        tokenizer_digest=about["digests"]["tokenizer"],
        end=end,
        end_text=end_text,
    )


def _golden(url: str, name: str, golden: Golden) -> Golden:
    asked = {"prompt": list(golden.ids), "echo": True, "logprobs": 0, "return_token_ids": True}
    choice = _complete(url, {"model": name, "max_tokens": 1, **asked})
    scores = choice["logprobs"]["token_logprobs"]
    return Golden(
        ids=tuple(choice["prompt_token_ids"]),
        log_probs=tuple(scores[1:-1]),
        next_id=choice["token_ids"][0],
        next_log_prob=scores[-1],
    )


def _complete(url: str, body: dict[str, Any]) -> dict[str, Any]:
    return _ask(f"{url}/v1/completions", {"temperature": 0, **body})["choices"][0]


def _ask(url: str, body: dict[str, Any] | None = None) -> dict[str, Any]:
    sent = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(url, sent, {"Content-Type": "application/json"})
    # A service in the cluster or on this machine: no proxy of the environment comes between.
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(request, timeout=TIMEOUT_SECONDS) as response:
            return json.load(response)
    except urllib.error.HTTPError as error:
        raise GateError(f"{url} answered {error.code}: {error.read().decode()}") from error
    except (OSError, http.client.HTTPException) as error:  # it ended, or hangs
        raise GateError(f"{url} does not answer ({error}).") from error
