"""{run_name}/report.html: one file about a run that needs no network."""

from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import jinja2

from trainer.contract import run_files
from trainer.contract.files import write_atomically
from trainer.contract.json_files import read_lines
from trainer.contract.part_losses import forgetting_words
from trainer.contract.run_folder import RunFolder
from trainer.report import facts
from trainer.report.curves import curves_svg

NAME = "report.html"


def write_page(run: RunFolder) -> Path:
    """Make the page of an admitted run anew; where it is."""
    path = run.root / NAME
    write_atomically(path, page(run))
    return path


def write_page_beside(run: RunFolder, folder: Path) -> Path:
    """Make the page in another folder, for a volume that takes no writes; where it is."""
    path = folder / NAME
    write_atomically(path, page(run))
    return path


def write_page_if_possible(run: RunFolder) -> str:
    """Make the page anew; why that was not possible, or nothing. `show --open` makes it again."""
    try:
        write_page(run)
    # Whatever is wrong with the report or with the volume, the step's work is done.
    except Exception as error:  # noqa: BLE001
        return f"{NAME} could not be written ({type(error).__name__}: {error})"
    return ""


def page(run: RunFolder) -> str:
    """The page of an admitted run."""
    record = run.record()
    assert record is not None, "only an admitted run has a report"
    plan = record.get("plan") or {}
    outcomes = [outcome for step in facts.STEPS if (outcome := run.outcome(step))]
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"figure": _figure, "duration": _duration}
    return environment.get_template("page.html").render(
        name=run.root.name,
        record=record,
        made=datetime.now(UTC).isoformat(timespec="seconds"),
        outcomes=outcomes,
        curves=curves_svg(read_lines(run.metrics, run_files.Metric), plan.get("steps")),
        exam=facts.exam(run),
        evaluation=facts.evaluation(run),
        forgot=forgetting_words(facts.evaluation(run).get("parts", [])),
        samples=facts.samples(run),
        data=facts.data(run, record),
        plan=facts.plan_against_fact(run, record),
        times=facts.times(run, plan),
    )


def _figure(value: Any) -> str:
    if value is None or value == "":
        return "-"
    if isinstance(value, dict):
        return ", ".join(f"{name} {_figure(part)}" for name, part in value.items()) or "-"
    if isinstance(value, bool) or not isinstance(value, int | float):
        return str(value)
    return f"{value:,}" if isinstance(value, int) else f"{value:,.4g}"


def _duration(seconds: float) -> str:
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02} h" if hours else f"{minutes}:{rest:02} min"
