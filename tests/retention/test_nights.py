"""Nights of a retraining: what stays of them, what goes, and how long the disk lasts."""

import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest

from tests.flows.small_volume import make_volume
from tests.retention.small_runs import days_go_by, make_run, serve
from trainer.contract.checkpoints import steps_there, verify
from trainer.contract.run_folder import RunFolder, run_names
from trainer.contract.service_history import model_of, previous, read_history
from trainer.contract.step_configs import ChampionConfig, TokenizeConfig
from trainer.contract.topics import RetentionConfig
from trainer.retention import nights, removal, space
from trainer.retention.removal import bytes_of
from trainer.retraining import step as champion
from trainer.retraining.series import Series
from trainer.tokens import step as tokenize

SERIES = "nightly"
KEEP = RetentionConfig()


class Volume:
    """A volume on which nights are decided on by the real champion step, without training."""

    def __init__(self, root: Path) -> None:
        self.root, self.night_count = root, 0
        usual = {"dataset": "dataset", "model": "models/tiny", "context": 64}
        self.store = tokenize.run(TokenizeConfig(volume=str(root), **usual)).result["store"]
        self.template = shutil.copytree(root / self.store, root.parent / f"{root.name}-store")
        self.series = Series(root, SERIES)

    def step(self, action: str, tokens: str, **more: Any) -> dict[str, Any]:
        config = ChampionConfig(
            volume=str(self.root),
            series=SERIES,
            action=action,  # type: ignore[arg-type]
            model="models/tiny",
            tokens=tokens,
            request={"night": self.night_count},
            **more,
        )
        return champion.run(config).result

    def begin(self, days: float = 1.0, **more: Any) -> tuple[dict[str, Any], str]:
        """Look, with tokens of this night's own; what was found, and the store."""
        self.night_count += 1
        days_go_by(self.root, days)
        tokens = f"tokens/dataset-{self.night_count:016x}"
        shutil.copytree(self.template, self.root / tokens)
        return self.step("look", tokens, **more), tokens

    def night(
        self, promoted: bool = True, days: float = 1.0, config: Any = None, **more: Any
    ) -> RunFolder:
        look, tokens = self.begin(days, **more)
        record = {"config": config} if config else {}
        run = make_run(self.root, look["run"], model=look["model"], tokens=tokens, **record)
        replaced = ""
        if promoted:
            serve(run)
            replaced = look["champion"]
        verdict = {"decision": "promoted" if promoted else "kept"}
        decided = {"candidate": run.root.name, "verdict": verdict, "replaced": replaced}
        self.step("record", tokens, **decided, **more)
        return run

    def runs(self) -> set[str]:
        return set(run_names(self.root))


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    volume = make_volume(tmp_path_factory.mktemp("prepared"))
    Volume(volume)
    return volume


@pytest.fixture
def volume(prepared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Volume:
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)  # no power is cut in these tests
    return Volume(shutil.copytree(prepared, tmp_path / "volume"))


def test_two_hundred_nights_take_no_more_than_twenty_and_what_is_needed_stays(
    volume: Volume,
) -> None:
    sizes = {}
    forgot = volume.night()
    make_run(volume.root, "certified", forgets={"run": forgot.root.name, "step": 10})
    by_hand = volume.night()  # somebody serves it apart from the series, and forked another
    forked = volume.night()
    make_run(volume.root, "a-fork", forked_from={"run": forked.root.name, "step": 5})
    for night in range(200):
        volume.night(promoted=night % 3 == 0)
        if night == 0:
            serve(by_hand, revision=2)  # replaced by then, and served again
        sizes[night] = bytes_of(volume.root)
    # A line for each decision is all that grows.
    assert sizes[199] - sizes[20] < 200 * 500
    assert max(sizes.values()) - sizes[20] < 200 * 500
    named = volume.series.champion()
    assert named is not None
    before = volume.series.promoted()[-2]["run"]
    newest = [d["run"] for d in volume.series.decisions()][-3:]
    by_others = {by_hand.root.name, forked.root.name, forgot.root.name, "a-fork", "certified"}
    stay = {named["run"], before, *newest, *by_others}
    assert volume.runs() == stay
    for name in stay:
        assert not verify(RunFolder(volume.root, name).final)
    # Of the run of a fork or certificate, the checkpoint that it began from; of the others, the
    # newest one's.
    assert steps_there(forked.checkpoints) == [5]
    assert steps_there(forgot.checkpoints) == [10]
    assert [len(steps_there(RunFolder(volume.root, n).checkpoints)) for n in newest] == [0, 0, 2]
    assert {p.name for p in (volume.root / "logs").iterdir() if "nightly-" in p.name} == {
        name for name in stay if "nightly-" in name
    }
    # The stores that records name, and those of the last week.
    assert len([*(volume.root / "tokens").iterdir()]) <= len(stay) + 8


def test_checkpoints_for_replays_stay_as_long_as_their_run(volume: Volume) -> None:
    run = volume.night(config={"logs": "logs", "checkpoints": {"keep_every": 10}})
    plain = volume.night()
    volume.night()
    assert (steps_there(run.checkpoints), steps_there(plain.checkpoints)) == ([10], [])


def test_a_rollback_finds_what_served_before(volume: Volume) -> None:
    run = volume.night()
    earlier = shutil.copytree(run.final, run.root / "replaced/then/final")
    (earlier / "more").write_text("x")
    serve(run, revision=2)
    first = read_history(run)[0]["model_digest"]
    for _ in range(3):
        volume.night(promoted=False)
    assert run.root.is_dir()
    assert model_of(run, first).is_dir()
    with pytest.raises(Exception, match="no earlier revision"):
        previous(run)


def test_from_last_it_keeps_the_base_of_what_stays_and_not_every_night(volume: Volume) -> None:
    made = [volume.night(start_from="last").root.name for _ in range(8)]
    assert volume.runs() == set(made[-4:])  # three, and what the oldest of them was trained from
    record = RunFolder(volume.root, made[-3]).record()
    assert record is not None
    assert record["model"] == f"{made[-4]}/final"


def test_a_night_that_was_given_up_goes_once_nobody_writes_to_it(volume: Volume) -> None:
    volume.night()
    look, _ = volume.begin()
    abandoned = make_run(volume.root, look["run"])
    shutil.rmtree(abandoned.final)
    after = volume.night(days=0.9)  # for other text
    assert abandoned.root.is_dir()  # it was written to within a day
    assert after.root.name != look["run"]
    days_go_by(volume.root)
    volume.night()
    assert not abandoned.root.exists()
    assert [d["decision"] for d in volume.series.decisions()].count("abandoned") == 1
    # What it was begun for is new again if it comes back: nothing was trained for it.
    volume.night_count = 2
    assert volume.step("look", f"tokens/dataset-{4:016x}")["decision"] == "train"


def test_nothing_is_removed_while_a_record_is_damaged(volume: Volume) -> None:
    first = volume.night()
    broken = make_run(volume.root, "broken")
    for path in (broken.record_path, broken.record_copy):
        path.write_text("{")
    for _ in range(6):
        volume.night()
    assert first.root.is_dir()
    shutil.rmtree(broken.root)
    volume.night()
    assert not first.root.exists()


def test_an_unchanged_night_completes_a_removal_that_was_cut_off(volume: Volume) -> None:
    old = volume.night()
    volume.night()
    name = old.root.name
    old.root.rename(volume.root / f".{name}.removed.part")
    assert name not in volume.runs()
    tokens = f"tokens/dataset-{volume.night_count:016x}"
    assert volume.step("look", tokens)["decision"] == "unchanged"
    assert not [*volume.root.glob(f".{name}*")]
    assert not (volume.root / "logs" / name).exists()


def test_keep_counts_are_followed(volume: Volume) -> None:
    keep = {"keep_finals": 5, "keep_checkpoints_of": 2}
    made = [volume.night(retention=RetentionConfig(**keep)).root.name for _ in range(7)]
    assert volume.runs() == set(made[-5:])
    counts = [len(steps_there(RunFolder(volume.root, n).checkpoints)) for n in made[-5:]]
    assert counts == [0, 0, 0, 2, 2]


def test_a_dry_run_says_what_goes_and_removes_nothing(volume: Volume) -> None:
    lenient = RetentionConfig(keep_finals=9, keep_checkpoints_of=9)
    made = [volume.night(retention=lenient).root.name for _ in range(5)]
    found = nights.retain(volume.series, KEEP, dry_run=True)
    assert volume.runs() == set(made)
    assert {item.path.name for item in found if item.path.parent == volume.root} == {*made[:2]}
    before = bytes_of(volume.root)
    gone = nights.retain(volume.series, KEEP)
    assert gone == found
    assert before - bytes_of(volume.root) == sum(item.size for item in gone)


def line(free: int, series: int, finals: int = 3) -> space.Space:
    return {
        "time": "2026-11-30T00:00:00+00:00",
        "free_bytes": free,
        "series_bytes": series,
        "night_bytes": 100,
        "final_bytes": 20,
        "finals": finals,
    }


@pytest.mark.parametrize(
    ("lines", "nights_left"),
    [
        ([], None),
        ([line(1000, 60)], None),  # nothing grows any more
        ([line(99, 60)], 0),
        # Two more finals come, and then nothing grows: 40 of 135 bytes, and a night needs 100.
        ([line(135, 20, finals=1)], 2),
        ([line(140, 20, finals=1)], None),
        # Something else grows by 50 a night: 300, 250, 200, 150, 100.
        ([line(400, 60), line(350, 60), line(300, 60)], 5),
        # What the series itself grew by is not counted twice.
        ([line(400, 20, finals=1), line(380, 40, finals=2), line(360, 60)], None),
    ],
)
def test_nights_left_by_what_nights_took(lines: list[space.Space], nights_left: int | None) -> None:
    assert space.nights_left(lines, keep_finals=3) == nights_left


def test_each_night_leaves_a_line_and_old_lines_go(volume: Volume) -> None:
    volume.night()
    kept = [json.loads(text) for text in volume.series.space_path.read_text().splitlines()]
    assert kept[0]["night_bytes"] > 2 * 40_000 + 10_000
    assert kept[0]["series_bytes"] == kept[0]["final_bytes"]
    for _ in range(space.MOST_LINES + 5):
        space.keep_line(volume.series, line(1, 1))
    assert len(volume.series.space_path.read_text().splitlines()) == space.MOST_LINES


def test_logs_of_a_run_that_is_gone_go_after_a_month(volume: Volume) -> None:
    run = make_run(volume.root, "gone")
    shutil.rmtree(run.root)
    mine = volume.root / "logs/notes"
    mine.mkdir()
    (mine / "mine.txt").write_text("kept")
    days_go_by(volume.root, 29)
    assert nights.old_logs(volume.root) == []
    days_go_by(volume.root, 2)
    assert [item.path.name for item in nights.old_logs(volume.root)] == ["gone"]
    assert [path.name for path in (volume.root / "logs").iterdir()] == ["notes"]


def test_a_removal_that_is_killed_anywhere_leaves_the_run_whole_or_is_completed(
    volume: Volume, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed before each call that changes the volume, one after the other."""

    class KilledError(BaseException):
        pass

    def killing(after: int, function: Any) -> Any:
        def call(*args: Any, **kwargs: Any) -> Any:
            nonlocal calls
            calls += 1
            if calls > after:
                raise KilledError
            return function(*args, **kwargs)

        return call

    for after in range(20):
        run, calls = make_run(volume.root, "run"), 0
        with monkeypatch.context() as patched:
            patched.setattr(removal, "remove", killing(after, removal.remove))
            patched.setattr(removal.shutil, "rmtree", killing(after, shutil.rmtree))
            patched.setattr(Path, "rename", killing(after, Path.rename))
            try:
                removal.remove_run(volume.root, "run")
            except KilledError:
                is_whole = run.record() is not None and not verify(run.final)
                assert is_whole or "run" not in volume.runs()
            else:
                break
        if not run.root.exists():
            removal.finish_removals(volume.root)
        else:
            removal.remove_run(volume.root, "run")
        assert not [*volume.root.glob("run"), *volume.root.glob(".run.*")]
        assert not (volume.root / "logs/run").exists()
    assert after > 5
