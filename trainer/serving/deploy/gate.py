"""Whether a server answers with the model that was trained; asked over HTTP, before it counts.

    observed = observe(url, expected)         what the server says
    problems(expected, observed)              pure: one sentence for each check that failed

Loads nothing but the standard library, so the flow that deploys can import it.
"""

import hashlib
import http.client
import json
import os
import urllib.error
import urllib.request
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from trainer.contract.errors import DamagedError
from trainer.contract.json_files import read_object
from trainer.contract.json_text import parse_json
from trainer.contract.run_files import Losses

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
class Greedy:
    """A greedy answer that may not end early: ids and their log-probabilities."""

    ids: tuple[int, ...] = ()
    log_probs: tuple[float, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Golden:
    """One prompt with what the trainer's own model said to it."""

    ids: tuple[int, ...]
    log_probs: tuple[float, ...]  # of each id after the first
    next_id: int
    next_log_prob: float
    answer: Greedy = Greedy()  # empty: a version that recorded none


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
    together: tuple[Greedy, ...] = ()  # answers to all prompts in one request


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
    found += differing_answers(expected, observed)
    if expected.end_id is not None and (observed.end, observed.end_text) != ("stop", ""):
        found.append(
            f"end-of-text: expected an answer to stop at token {expected.end_id}, "
            f"got finish_reason {observed.end!r} and text {observed.end_text!r}."
        )
    return [*found, *_loss_problems(expected)]


def differing_answers(expected: Expected, observed: Observed) -> list[str]:
    """One sentence for each golden prompt that is scored or answered otherwise."""
    return _golden_problems(expected, observed) + _answer_problems(expected, observed)


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


def _answer_problems(expected: Expected, observed: Observed) -> list[str]:
    """Generated tokens: a cache that forgets, a dropped adapter or a wrong end shows there."""
    tolerance = max(TOLERANCES.get(d, 0.2) for d in (expected.dtype, observed.dtype))
    wanted = [golden.answer for golden in expected.prompts]
    alone = [golden.answer for golden in observed.prompts]
    found = []
    for how, answers in (("alone", alone), ("in a batch", list(observed.together))):
        for number, (want, got) in enumerate(zip(wanted, answers, strict=False), 1):
            problem = _answer_problem(want, got, tolerance)
            if problem:
                found.append(f"golden answer {number} {how}: {problem}")
    return found


def _answer_problem(want: Greedy, got: Greedy, tolerance: float) -> str:
    """The first token that is wrong; '' where none is.

    Where two tokens are equally likely, rounding decides between them, and what follows
    cannot be compared.
    """
    if len(got.ids) < len(want.ids):
        return f"expected {len(want.ids)} tokens, got {len(got.ids)}."
    for place, token in enumerate(want.ids):
        score, served = want.log_probs[place], got.log_probs[place]
        if _apart(score, served) > tolerance:
            return (
                f"expected token {token} with log-probability {score:.6f} at place {place + 1}, "
                f"got token {got.ids[place]} with {served:.6f}. At most {tolerance:g} apart."
            )
        if got.ids[place] != token:
            return ""
    return ""


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
    try:
        evaluation = (read_object(report, Losses) if report else None) or {}
    except DamagedError as error:
        raise GateError(f"{error}. Run the run again: its evaluate step makes it anew.") from error
    return Expected(
        prompts=tuple(
            Golden(
                ids=tuple(prompt["ids"]),
                log_probs=tuple(prompt["log_probs"]),
                next_id=prompt["next_id"],
                next_log_prob=prompt["next_log_prob"],
                answer=Greedy(
                    ids=tuple(prompt.get("answer_ids", ())),
                    log_probs=tuple(prompt.get("answer_log_probs", ())),
                ),
            )
            for prompt in golden["prompts"]
        ),
        dtype=golden["dtype"],
        end_id=golden.get("end_id", _end_id(final)),
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
        return parse_json(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None


# --- what is observed -------------------------------------------------------------------


def check(url: str, name: str, expected: Expected, api_key_variable: str = "") -> list[str]:
    """Ask the server at `url` and name what is wrong with it."""
    try:
        return problems(expected, observe(url, name, expected, api_key_variable))
    except GateError as error:
        return [str(error)]


def observe(url: str, name: str, expected: Expected, api_key_variable: str = "") -> Observed:
    """Ask the server what the gate wants to know.

    Args:
        url: The server's address.
        name: The model's name there.
        expected: What to ask for.
        api_key_variable: Environment variable with its API key; empty: it needs none.
    Raises:
        GateError: It refused, did not answer, or is another server.
    """
    try:
        return _observe(_Server(url, _key_in(api_key_variable)), name, expected)
    except (ValueError, LookupError, TypeError, AttributeError) as error:
        raise GateError(
            f"{url} answered with something that no server of ours sends "
            f"({type(error).__name__}: {error}). Check the address, and proxies."
        ) from error


def digest_served(url: str, name: str, api_key_variable: str = "") -> str:
    """Digest of the model that a server answers `name` with; '' where it has none of that name yet.

    Raises:
        GateError: The server is gone, or can't serve it; with its reason.
    """
    server = _Server(url, _key_in(api_key_variable))
    listed = _ask(server, "/v1/models")
    if reason := listed.get("refused", {}).get(name):
        raise GateError(reason)
    return next((m["digests"]["model"] for m in listed["data"] if m["id"] == name), "")


def _observe(server: "_Server", name: str, expected: Expected) -> Observed:
    about = _ask(server, f"/v1/models/{name}")
    end, end_text = "", ""
    if expected.end_id is not None:
        body = {"prompt": [expected.end_id], "logit_bias": {str(expected.end_id): 100}}
        choice = _complete(server, {"model": name, "max_tokens": 4, **body})
        end, end_text = choice["finish_reason"], choice["text"]
    return Observed(
        prompts=tuple(_golden(server, name, golden) for golden in expected.prompts),
        dtype=about["dtype"],
        tokenizer_digest=about["digests"]["tokenizer"],
        end=end,
        end_text=end_text,
        together=_greedy(server, name, expected.prompts),
    )


def _golden(server: "_Server", name: str, golden: Golden) -> Golden:
    asked = {"prompt": list(golden.ids), "echo": True, "logprobs": 0, "return_token_ids": True}
    choice = _complete(server, {"model": name, "max_tokens": 1, **asked})
    scores = choice["logprobs"]["token_logprobs"]
    return Golden(
        ids=tuple(choice["prompt_token_ids"]),
        log_probs=tuple(scores[1:-1]),
        next_id=choice["token_ids"][0],
        next_log_prob=scores[-1],
        answer=answered[0] if (answered := _greedy(server, name, (golden,))) else Greedy(),
    )


def _greedy(server: "_Server", name: str, prompts: tuple[Golden, ...]) -> tuple[Greedy, ...]:
    """The server's greedy answers to prompts asked in one request, as long as those recorded."""
    length = max((len(golden.answer.ids) for golden in prompts), default=0)
    asked = [golden for golden in prompts if len(golden.answer.ids) == length]
    if not length or len(asked) < len(prompts):
        return ()  # none was recorded, or the model has too few positions for all of them
    body = {"max_tokens": length, "min_tokens": length, "logprobs": 0, "return_token_ids": True}
    ids = [list(golden.ids) for golden in prompts]
    asking = {"model": name, "temperature": 0, "prompt": ids, **body}
    choices = _ask(server, "/v1/completions", asking)["choices"]
    return tuple(
        Greedy(
            ids=tuple(choice["token_ids"]),
            log_probs=tuple(choice["logprobs"]["token_logprobs"]),
        )
        for choice in choices
    )


def _complete(server: "_Server", body: dict[str, Any]) -> dict[str, Any]:
    return _ask(server, "/v1/completions", {"temperature": 0, **body})["choices"][0]


@dataclass(frozen=True)
class _Server:
    url: str
    api_key: str = field(repr=False)


def _key_in(variable: str) -> str:
    key = os.environ.get(variable, "").strip() if variable else ""
    if variable and not key:
        raise GateError(
            f"the server wants an API key, and the environment variable with it is not set "
            f"(got {variable!r}). On a cluster the Secret that serving.api_key names must have "
            "an entry of that name."
        )
    return key


def _ask(server: _Server, path: str, body: dict[str, Any] | None = None) -> dict[str, Any]:
    url, sent = f"{server.url}{path}", None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(url, sent, {"Content-Type": "application/json"})
    if server.api_key:
        request.add_unredirected_header("Authorization", f"Bearer {server.api_key}")
    # A service in the cluster or on this machine: no proxy of the environment comes between.
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(request, timeout=TIMEOUT_SECONDS) as response:
            return parse_json(response.read())
    except urllib.error.HTTPError as error:
        raise GateError(
            f"{url} answered {error.code}: {error.read().decode(errors='replace')}"
        ) from error
    except (OSError, http.client.HTTPException) as error:  # it ended, or hangs
        raise GateError(f"{url} does not answer ({error}).") from error
