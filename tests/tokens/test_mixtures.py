"""Stores that are mixed of several folders: shares, repetitions, bytes, ledger."""

import json
from typing import Any

import numpy as np
import pytest

from tests.tokens.conftest import Volume, content, texts
from trainer.contract.errors import RequestError
from trainer.contract.topics import DataConfig
from trainer.tokens.mixture.shares import Wanted, all_taken, interleaved, parts_of
from trainer.tokens.show import describe
from trainer.tokens.store import TokenStore


def lines(word: str, count: int) -> str:
    return "\n".join(json.dumps({"text": f"{word} {at}. " + "rain " * 9}) for at in range(count))


def write_folders(volume: Volume) -> None:
    volume.write({"a.jsonl": lines("river", 40)}, "rivers")
    volume.write({"a.jsonl": lines("stone", 10)}, "stones")
    volume.write({"a.jsonl": lines("general", 80)}, "general")


def mixed(volume: Volume, weights: dict[str, float], **more: Any) -> TokenStore:
    data = DataConfig(weights=weights, **more.pop("data", {}))
    return volume.store(dataset="rivers", data=data, **{"train_ratio": 0.8, "context": 48, **more})


def check(store: TokenStore) -> dict[str, dict[str, Any]]:
    """Shares and ledger of the parts agree with the contexts themselves."""
    manifest = store.manifest
    parts = {part["name"]: part for part in manifest.parts}
    trained = store.trained_of_each(slice(manifest.num_train_contexts))
    names = [span[0].path.split("/")[0] for span in map(store.document_of, range(len(trained)))]
    in_all = trained.sum()
    for name, part in parts.items():
        of_part = trained[[n == name for n in names]]
        assert part["taken"] == of_part.sum() and part["taken_contexts"] == len(of_part)
        assert abs(part["taken"] / in_all - part["share"]) < 1.5 * manifest.context / in_all
        assert part["taken"] == part["tokens"] + part["repeated"] - part["left_out"]
        held = {store.document_of(i)[0].path.split("/")[0] for i in range(*part["held_out"])}
        assert held <= {name}
    assert manifest.parts[-1]["held_out"][1] == manifest.num_contexts
    assert manifest.totals["trained_tokens"] == store.trained_tokens(slice(None))
    return parts


def test_each_folder_has_its_share(volume: Volume) -> None:
    write_folders(volume)
    parts = check(mixed(volume, {"rivers": 1, "stones": 1}))
    assert parts["stones"]["repeated"] > 0 == parts["stones"]["left_out"]
    assert parts["rivers"]["left_out"] > 0 == parts["rivers"]["repeated"]
    whole = sum(part["tokens"] for part in parts.values())
    assert abs(sum(part["taken"] for part in parts.values()) - whole) < 2 * 48


def test_replay_comes_on_top(volume: Volume) -> None:
    write_folders(volume)
    replay = {"replay": "general", "replay_share": 0.25}
    store = mixed(volume, {}, data=replay)
    parts = check(store)
    assert parts["rivers"]["taken"] == parts["rivers"]["tokens"]
    begin, end = parts["general"]["held_out"]
    own = parts["rivers"]["held_out"]
    assert 0 < end - begin == own[1] - own[0]
    assert parts["general"]["replay"] and not parts["rivers"]["replay"]


def test_the_same_bytes_for_any_number_of_processes(volume: Volume) -> None:
    write_folders(volume)
    weights = {"rivers": 0.3, "stones": 0.7}
    once = content(mixed(volume, weights, workers=1))
    again = mixed(volume, weights, workers=2, retokenize=True)
    assert content(again) == once
    asked = DataConfig(weights=weights)
    assert volume.run(dataset="rivers", data=asked, train_ratio=0.8, context=48).reused
    other = mixed(volume, weights, random_seed=7)
    assert sorted(texts(other)) != sorted(texts(again))
    assert other.manifest.key != again.manifest.key


def test_packed_documents_are_mixed_as_well(volume: Volume) -> None:
    write_folders(volume)
    data = {"packing": "documents", "replay": "general", "replay_share": 0.5}
    store = mixed(volume, {"rivers": 1, "stones": 2}, data=data, context=160)
    check(store)
    positions = store.positions(np.arange(3))
    assert positions is not None
    spans = store.document_of(2)
    assert len(spans) > 1 and all(positions[2, span.begin] == 0 for span in spans)


def test_people_see_the_parts(volume: Volume) -> None:
    write_folders(volume)
    store = mixed(volume, {"rivers": 1, "stones": 3})
    stones = store.manifest.parts[1]
    taken = f"{stones['taken']:,} from {stones['tokens']:,}, {stones['repeated']:,} of them again"
    assert f"stones: 75.0 % of the trained tokens: {taken}; " in describe(store)


def test_what_cannot_be_mixed_is_refused_by_name(volume: Volume) -> None:
    write_folders(volume)
    with pytest.raises(RequestError, match=r"data\.weights: dataset is not there \(got 'none'"):
        mixed(volume, {"rivers": 1, "none": 1})
    with pytest.raises(RequestError, match=r"data\.weights gives 'stones' less than half a"):
        mixed(volume, {"rivers": 1, "stones": 0.0001})
    for given, words in (
        ({"replay": "a"}, "replay and replay_share go together"),
        ({"weights": {"a": 1}, "replay": "a", "replay_share": 0.1}, "folder of weights too"),
        ({"weights": {"https://a.org/b?c=d": 1}}, "take no query string"),
    ):
        with pytest.raises(ValueError, match=words):
            DataConfig(**given)


def test_shares_are_met_to_half_a_context() -> None:
    random = np.random.default_rng(1)
    parts = parts_of("a", {"b": 2.0, "a": 1.0}, "r", 0.2)
    assert parts == [
        Wanted("a", 0.8 / 3), Wanted("b", 0.8 * 2 / 3), Wanted("r", 0.2, True)
    ]  # fmt: skip
    tokens = [random.integers(1, 50, count) for count in (300, 40, 1000)]
    taken = all_taken(parts, tokens, 3)
    sums = [int(t[contexts].sum()) for t, contexts in zip(tokens, taken, strict=True)]
    own = tokens[0].sum() + tokens[1].sum()
    assert abs(sum(sums) - own / 0.8) < 75
    for part, count in zip(parts, sums, strict=True):
        assert abs(count - part.share * own / 0.8) <= 25
    times = np.bincount(taken[1], minlength=40)
    assert times.max() - times.min() <= 1
    part, number = interleaved([2, 4])
    assert part.tolist() == [1, 0, 1, 1, 0, 1] and number.tolist() == [0, 0, 1, 2, 1, 3]
