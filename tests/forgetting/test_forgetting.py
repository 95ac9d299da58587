"""A run without a document, from a checkpoint, is that run from its start; it is certified."""

import hashlib
import json
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.forgetting.small_run import DATASET, as_json, finetune, make_run, repeated, train
from tests.training.forking import Strike, log_of, run_forked, run_step
from tests.training.test_resume import ENGINE, comparable
from tests.training.volume import read_lines
from trainer.contract.checkpoints import steps_there
from trainer.contract.errors import RequestError
from trainer.contract.run_folder import RunFolder
from trainer.forgetting import __main__ as command
from trainer.forgetting import certificate
from trainer.forgetting.begin import begin, plan_forgetting
from trainer.forgetting.finding import Asked
from trainer.forgetting.forgotten import forgotten
from trainer.forgetting.recorded import store_of
from trainer.forgetting.steps import start_before


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return make_run(tmp_path_factory.mktemp("trained"))


@pytest.fixture
def config(trained: dict[str, Any], tmp_path: Path) -> dict[str, Any]:
    """The run in a volume of the test's own."""
    volume = tmp_path / "finetune-data"
    shutil.copytree(trained["volume"], volume)
    return {**trained, "volume": str(volume)}


def planned(config: dict[str, Any], **asked: Any) -> dict[str, Any]:
    volume = Path(config["volume"])
    return plan_forgetting(volume, RunFolder(volume, config["run_name"]), Asked(**asked))


def forget(
    config: dict[str, Any], *strikes: Strike, name: str = "new", **asked: Any
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Plan, begin and train; the plan and the new run's config."""
    made, volume = planned(config, **asked), Path(config["volume"])
    again = repeated(config, name, made)
    begin(volume, RunFolder(volume, config["run_name"]), name, made, again["request"])
    for strike in strikes:
        assert run_step("finetune", again, strike) != 0
    finetune(again)
    return made, again


def said(config: dict[str, Any], *words: str) -> tuple[int, str]:
    """A command of `python -m trainer.forgetting`: its exit code and all it printed."""
    volume = Path(config["volume"])
    name, *more = words
    return run_forked(volume, lambda: command.main([name, str(volume), *more]))


def late_document(config: dict[str, Any]) -> str:
    """One that is first trained on between the checkpoints at steps 8 and 16."""
    volume, run = Path(config["volume"]), RunFolder(config["volume"], config["run_name"])
    for path in [s["path"] for s in store_of(run).manifest.sources if "note" in s["path"]]:
        first = plan_forgetting(volume, run, Asked(documents=[path]))["first_step"]
        if first and 8 < first <= 16:
            return path
    raise AssertionError("none of them is: make more")


def test_it_begins_before_the_first_step_and_is_the_run_from_its_start(
    config: dict[str, Any],
) -> None:
    volume, path = Path(config["volume"]), late_document(config)
    made, again = forget(
        config,
        Strike(f"{ENGINE}:Engine.step", 2, after=True),
        Strike(f"{ENGINE}:Engine.loss", 3, signum=signal.SIGTERM),
        documents=[path],
    )
    assert made["from_step"] == 8 < made["first_step"]
    assert "resumes from step 8" in log_of(again)
    scratch = train(volume, "scratch", skip=made["skip"])
    one, new, whole = (comparable(volume / name) for name in ("one", "new", "scratch"))
    assert new == whole
    assert new["weights"] != one["weights"]
    assert new["metrics"][:8] == one["metrics"][:8]
    left_out = [line["left_out"] for line in new["metrics"] if "left_out" in line]
    assert sum(left_out) == 2 * made["left_out"]["contexts"]
    assert scratch["skip"] == again["skip"]


def test_a_document_that_is_packed_with_others_is_forgotten_as_exactly(
    config: dict[str, Any],
) -> None:
    volume, data = Path(config["volume"]), {"packing": "documents", "too_long": "cut"}
    packed = train(volume, "packed", data=data)
    path = next(s["path"] for s in store_of(RunFolder(volume, "packed")).manifest.sources)
    made, _ = forget(packed, documents=[path])
    assert made["left_out"]["contexts"] >= 1
    train(volume, "scratch", data=data, skip=made["skip"])
    new, whole = (comparable(volume / name) for name in ("new", "scratch"))
    assert new == whole
    code, text = said(packed, "certify", "new")
    assert code == 0, text


def test_the_certificate_verifies_and_a_changed_one_does_not(config: dict[str, Any]) -> None:
    volume, path = Path(config["volume"]), late_document(config)
    forget(config, documents=[path])
    code, text = said(config, "certify", "new")
    assert code == 0, text
    place = volume / "new" / certificate.NAME
    body = json.loads(place.read_text())
    assert body["run"] == "one" and body["started_from"]["step"] == 8
    assert [row["document"] for row in body["documents"]] == [f"{path}#1"]
    assert min(map(int, body["steps"])) == body["first_step"] > 8
    where = {trace["where"] for trace in body["elsewhere"]}
    assert {f"{DATASET}/{path}", config["tokens"], "one/final"} <= where
    assert not any("step-00000008" in place for place in where)
    assert any(place.startswith("one/checkpoints/") for place in where)
    assert forgotten(volume) == [body["documents"][0]["sanitized_sha256"]]
    assert "sheriff" not in place.read_text()
    code, text = said(config, "check", "new")
    assert (code, "new/certificate.json verifies" in text) == (0, True), text

    code, text = run_forked(volume, lambda: _each_field_changed(volume, place, body))
    assert code == 0, text
    place.write_text(json.dumps({**body, "created": "2020-01-01"}))
    code, text = said(config, "check", "new")
    assert code == 1 and "was altered: its digest is not its own" in text


def _each_field_changed(volume: Path, place: Path, body: dict[str, Any]) -> int:
    """Change every field, give the certificate a digest that fits, and check it."""
    computed = certificate.compute(volume, RunFolder(volume, "new"))  # once: it takes a second
    certificate.compute = lambda *_: computed  # type: ignore[assignment]
    for path in _leaves(body):
        if path[0] == "sha256":
            continue
        changed = json.loads(json.dumps(body))
        holder = changed
        for key in path[:-1]:
            holder = holder[key]
        holder[path[-1]] = _other(holder[path[-1]])
        place.write_text(json.dumps(certificate._sealed(changed)))
        found, _ = certificate.check(volume, RunFolder(volume, "new"))
        if not any(phrase.startswith(f"{path[0]} is ") for phrase in found):
            print(f"{path} was changed, and nobody saw: {found}")
            return 1
    return 0


def _leaves(body: dict[str, Any]) -> list[tuple[Any, ...]]:
    """The way to one value of each field, of each part of it that has names, and of listed ones."""
    found: list[tuple[Any, ...]] = []
    for name, value in body.items():
        found += [(name, *rest) for rest in _leaves(value)] if isinstance(value, dict) else []
        listed = value if isinstance(value, list) else []
        for number, each in enumerate(listed):
            if isinstance(each, dict):
                found += [(name, number, *rest) for rest in _leaves(each)]
        if not isinstance(value, dict) or not value:
            found.append((name,))
    return found


def _other(value: Any) -> Any:
    if isinstance(value, bool) or value is None:
        return "other"
    if isinstance(value, int | float):
        return value + 1
    return value[:-1] if isinstance(value, list) and value else f"{value}x"


def test_from_the_start_it_verifies_and_other_weights_do_not(config: dict[str, Any]) -> None:
    volume = Path(config["volume"])
    forget(config, documents=[late_document(config)])
    assert said(config, "certify", "new")[0] == 0
    code, text = said(config, "check", "new", "--from-start")
    assert code == 0 and "verifies, also from the start" in text, text
    # A repetition that began too late: with the checkpoint of a run that had seen the text.
    made = planned(config, documents=[late_document(config)])
    other = repeated(config, "late", made)
    begin(volume, RunFolder(volume, "one"), "late", made, other["request"])
    record = json.loads((volume / "late/run.json").read_text())
    shutil.rmtree(volume / "late/checkpoints")
    last = steps_there(volume / "one/checkpoints")[-1]
    name = f"step-{last:08}"
    shutil.copytree(volume / "one/checkpoints" / name, volume / "late/checkpoints" / name)
    for file in ("metrics.jsonl", "samples.jsonl", "skipped.jsonl"):
        shutil.copy(volume / "one" / file, volume / "late" / file)
    finetune(other)
    assert comparable(volume / "late")["weights"] == comparable(volume / "one")["weights"]
    assert record["forgets"]["step"] == 8
    assert said(config, "certify", "late")[0] == 0
    code, text = said(config, "check", "late", "--from-start")
    assert code == 1 and "weight differs in" in text, text


CASES: list[Callable[[dict[str, Any]], dict[str, Any]]] = [
    lambda config: {"documents": ["part-1/tale-01.txt"]},
    lambda config: {"containing": ["The ferry to 3 leaves"]},
    lambda config: {"sha256": [_file_sha(config, "lines.jsonl")]},
]


FOUND = (["again.txt#1", "part-1/tale-01.txt#1", "part-1/tale-21.txt#1"], ["lines.jsonl#4"], None)


def _file_sha(config: dict[str, Any], path: str) -> str:
    return hashlib.sha256((Path(config["volume"]) / DATASET / path).read_bytes()).hexdigest()


@pytest.mark.parametrize(
    ("case", "documents"),
    list(zip(CASES, FOUND, strict=True)),
    ids=["copy", "sentence", "file"],
)
def test_documents_are_found_with_their_copies(
    config: dict[str, Any], case: Callable[..., dict[str, Any]], documents: list[str] | None
) -> None:
    made = planned(config, **case(config))
    expected = documents or [f"lines.jsonl#{n}" for n in range(1, 7)]
    assert [row["document"] for row in made["documents"]] == expected
    assert made["left_out"]["documents"] == len(expected)


def test_what_names_nothing_is_refused_by_its_option(config: dict[str, Any]) -> None:
    for asked, message in (
        ({"documents": ["none*"]}, r"skip\.documents names no document \(got 'none\*'\)"),
        ({"sha256": ["0" * 64]}, r"--sha256 names no document"),
        ({"containing": ["never written"]}, r"--containing names no document .*never written"),
    ):
        with pytest.raises(RequestError, match=message):
            planned(config, **asked)


def test_purge_removes_text_and_models_and_the_rest_still_verifies(config: dict[str, Any]) -> None:
    volume, path = Path(config["volume"]), late_document(config)
    forget(config, documents=[path])
    code, text = said(config, "certify", "new", "--purge")
    assert code == 0, text
    body = json.loads((volume / "new" / certificate.NAME).read_text())
    assert not (volume / DATASET / path).exists()
    assert not (volume / config["tokens"]).exists()
    assert not (volume / "one/final").exists()
    assert (volume / "one/checkpoints/step-00000008").exists()  # it never saw the text
    assert body["elsewhere"] == []
    assert {f"{DATASET}/{path}", config["tokens"], "one/final"} <= set(body["purged"]["removed"])
    text_left = [p for p in (volume / "cache/tokens/pieces").rglob("*") if p.is_file()]
    assert all(body["documents"][0]["file_sha256"] not in p.name for p in text_left)
    code, text = said(config, "certify", "new", "--purge")  # again, after a kill
    assert code == 0, text
    code, text = said(config, "check", "new")
    assert code == 0 and "the text was purged, so these can't be computed again" in text, text
    (volume / DATASET / path).write_text("back")
    code, text = said(config, "check", "new")
    assert code == 1 and f"{DATASET}/{path} was removed, and is there again" in text


def test_a_run_that_has_no_early_checkpoint_begins_at_the_base_model(
    config: dict[str, Any],
) -> None:
    volume, path = Path(config["volume"]), late_document(config)
    shutil.rmtree(volume / "one/checkpoints/step-00000008")
    made, _ = forget(config, documents=[path])
    assert made["from_step"] == 0
    train(volume, "scratch", skip=made["skip"])
    assert comparable(volume / "new") == comparable(volume / "scratch")
    # And what was forgotten can be forgotten with more.
    other = {**repeated(config, "new", made), "run_name": "new"}
    more, _ = forget(other, name="newer", documents=["part-2/tale-02.txt"])
    assert len(more["skip"]["sha256"]) == 2
    assert said(config, "certify", "newer")[0] == 0
    body = json.loads((volume / "newer" / certificate.NAME).read_text())
    names = [row["document"] for row in body["documents"]]
    assert names == ["part-2/tale-02.txt#1", "part-2/tale-22.txt#1"]
    with pytest.raises(RequestError, match="left these documents out already"):
        planned({**config, "run_name": "newer"}, documents=[path])


def test_the_start_is_before_the_first_step(config: dict[str, Any]) -> None:
    run = RunFolder(config["volume"], "one")
    steps = steps_there(run.checkpoints)
    assert start_before(run, 9).step == 8
    assert start_before(run, 8).step == 0
    assert start_before(run, None).step == steps[-1]
    assert as_json(read_lines(run.metrics))[0]["step"] == 1
