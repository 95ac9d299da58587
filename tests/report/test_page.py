"""The report of a run: what it shows of what is in the folder, in one safe file."""

import json
import re
import xml.etree.ElementTree as ElementTree
from pathlib import Path
from typing import Any

import pytest

from trainer.contract.outcome import Outcome
from trainer.contract.run_folder import RunFolder
from trainer.report.curves import MOST_POINTS, curves_svg
from trainer.report.page import page

SVG = "{http://www.w3.org/2000/svg}"
PLAN = {
    "num_contexts": 10,
    "num_train_contexts": 9,
    "steps": 12,
    "batch_size": 2,
    "seconds_per_step": 1.5,
    "hours": 0.5,
    "gpu": "A40",
    "gpu_memory_gib": 30.0,
    "gpu_memory_parts_gib": {"weights": 25.0, "allocator": 4.0, "CUDA": 1.0},
    "host_memory_gib": 100.0,
    "checkpoint_gib": 3.0,
    "dollars": 1.0,
    "dollars_per_hour": 2.0,
}


def curve(steps: int) -> list[dict[str, Any]]:
    return [
        {"step": s, "loss": 5 - s / steps, "learning_rate": 1e-4, "seconds": 2.0 * s}
        for s in range(1, steps + 1)
    ]


def polylines(svg: str) -> list[list[str]]:
    lines = ElementTree.fromstring(svg).iter(f"{SVG}polyline")
    return [line.attrib["points"].split() for line in lines]


@pytest.fixture
def run(tmp_path: Path) -> RunFolder:
    folder = RunFolder(tmp_path, "tales")
    folder.times.mkdir(parents=True)
    record = {"created": "2026-01-01", "request": {"model": "m", "batch_size": 2}, "plan": PLAN}
    folder.record_path.write_text(json.dumps({**record, "tokens": "tokens/t"}))
    metrics = [*curve(12), {"step": 12, "eval_loss": 4.5}]
    folder.metrics.write_text("".join(json.dumps(line) + "\n" for line in metrics))
    sample = {"step": 12, "prompt": "The <b>sheriff", "texts": ["rode <script>alert(1)</script>"]}
    folder.samples.write_text(json.dumps(sample) + "\n" + '{"step": 13, "pro')
    times = {"step": "finetune", "flow_began": 0, "asked": 90.0, "began": 100.0, "seen": 3700.0}
    times |= {"status": "done", "from_step": 0, "saves": []}
    times["parts"] = {"load": 600.0, "compute": 3000.0}
    (folder.times / "1-finetune.json").write_text(json.dumps(times))
    manifest = {"num_contexts": 11, "num_train_contexts": 10, "num_tokens": 99, "num_padding": 1}
    dropped = {"empty_documents": 0, "boundaries": 3, "sampled_out": 1200}
    source = {"documents": 1, "tokens": 99, "contexts": 11, "repeated": 5, "dropped": dropped}
    manifest["sources"] = [{"path": "a & b.txt", "bytes": 12345, **source}]
    (tmp_path / "tokens/t").mkdir(parents=True)
    (tmp_path / "tokens/t/manifest.json").write_text(json.dumps(manifest))
    folder.record_outcome(Outcome(step="finetune", status="done", message="done it", seconds=3600))
    return folder


def rows(html: str) -> dict[str, list[str]]:
    """Cells of each table row by the first one, tags taken away."""
    found = {}
    for row in re.findall(r"<tr>(.*?)</tr>", html, re.S):
        first, *rest = (re.sub(r"<[^>]*>", "", cell).strip() for cell in row.split("</td>"))
        found[first] = rest
    return found


def test_plan_stands_beside_fact(run: RunFolder) -> None:
    table = rows(page(run))
    assert table["steps"][:2] == ["12", "12"]
    assert table["contexts"][:2] == ["10", "11"]
    assert table["seconds a step"][:2] == ["1.5", "2"]
    assert table["dollars"][:2] == ["1", "2"]  # an hour at 2.00
    assert table["hours of training and evaluating"][:2] == ["0.5", "1"]
    assert table["hours in all"][:2] == ["-", "1.003"]  # it waited for 10 s


def test_memory_stands_beside_what_was_measured_in_the_same_way(run: RunFolder) -> None:
    with open(run.metrics, "a", encoding="utf-8") as metrics:
        line = {"step": 13, "loss": 1, "seconds": 26, "gpu_memory_gib": 24, "host_memory_gib": 9}
        metrics.write(json.dumps(line) + "\n")
    (run.checkpoints / "step-00000012").mkdir(parents=True)
    (run.checkpoints / "step-00000012/weights").write_bytes(bytes(2**20))
    table = rows(page(run))
    # Of a GPU torch counts tensors alone, not CUDA's part and what the allocator keeps.
    assert table["memory of each GPU, tensors, GiB"][:2] == ["25", "24"]
    assert table["host memory of each node, GiB"][:2] == ["100", "9"]
    assert table["a checkpoint, GiB"][:2] == ["3", "0.0009766"]


def test_time_and_money_are_shown_by_part(run: RunFolder) -> None:
    table = rows(page(run))
    assert table["compute"][:3] == ["50:00 min", "83.1 %", "$1.67"]
    assert table["queue"][:3] == ["10.0 s", "0.3 %", ""]


def test_where_the_text_of_each_file_went_is_shown(run: RunFolder) -> None:
    cells = ["12,345", "1", "99", "11", "5", "3 boundaries, 1,200 sampled out", ""]
    assert rows(page(run))["a &amp; b.txt"] == cells


def test_it_needs_no_network_and_runs_nothing_of_the_text(run: RunFolder) -> None:
    html = page(run)
    assert "<script" not in html and "&lt;script&gt;alert(1)" in html
    assert "The &lt;b&gt;sheriff" in html and "a &amp; b.txt" in html
    assert not re.search(r"""(src|href)\s*=|url\(|@import""", html)


def test_a_run_that_only_began_has_a_page(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path, "new")
    folder.root.mkdir()
    folder.record_path.write_text(json.dumps({"created": "now", "request": {}}))
    assert "no step is done yet" in page(folder)


def test_curves_go_from_the_first_to_the_last_step() -> None:
    training, validation, rate = polylines(
        curves_svg([*curve(10), {"step": 10, "eval_loss": 4.0}], total_steps=20)
    )
    assert len(training) == len(rate) == 10 and len(validation) == 1
    heights = [float(point.split(",")[1]) for point in training]
    assert heights == sorted(heights)  # a falling loss goes down the picture
    half = (60 + 790) / 2
    assert float(training[-1].split(",")[0]) == pytest.approx(half)


def test_a_long_run_makes_no_larger_picture() -> None:
    training, _, _ = polylines(curves_svg(curve(50_000)))
    assert MOST_POINTS / 2 < len(training) <= MOST_POINTS + 1


def test_steps_whose_loss_was_not_a_number_are_left_out() -> None:
    lines = curve(5)
    lines[2]["loss"] = None
    assert len(polylines(curves_svg(lines))[0]) == 4
