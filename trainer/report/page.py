"""{run_name}/report.html: one file about a run that needs no network."""

from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import jinja2

from trainer.durable import write_atomically
from trainer.report import facts
from trainer.report.curves import curves_svg
from trainer.run_folder import RunFolder

NAME = "report.html"


def write_page(run: RunFolder) -> Path:
    """Make the page of an admitted run anew; where it is."""
    path = run.root / NAME
    write_atomically(path, page(run))
    return path


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
        curves=curves_svg(facts.read_lines(run.metrics), plan.get("steps")),
        evaluation=facts.evaluation(run),
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
