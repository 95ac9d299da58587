"""docs/gpu.md, made from the results."""

from collections.abc import Iterator, Mapping
from pathlib import Path

from benchmarks.gpu import results
from benchmarks.gpu.parts import PARTS
from benchmarks.gpu.results import PartResult

PAGE = Path(__file__).parents[2] / "docs" / "gpu.md"
HEAD = """# On a GPU

<!-- written by `python -m benchmarks.gpu table`: do not edit -->

`make exam-gpu` measures all of this; `python -m benchmarks.gpu PART` measures one part.
Each part takes less than nine minutes and resumes where it was interrupted; a finished part is
measured again only with `--again`. Results are JSON files in a folder (`--results`, default
gpu-results). `python -m benchmarks.gpu table` writes this page from them.

On a machine whose torch is older than this project's (for example 2.11), install DeepSpeed with
`DS_BUILD_OPS=0`, which compiles nothing. The versions that were used stand beside the figures.
"""
NOTHING = (
    "**Nothing was run on a GPU yet.** What is below names what will be measured, and the aims."
)


def write(folder: Path, page: Path = PAGE) -> None:
    found = {part: results.read(folder, part, small=False) for part in PARTS}
    page.write_text("\n".join(lines(found)) + "\n", encoding="utf-8")


def lines(found: Mapping[str, PartResult]) -> Iterator[str]:
    """The page. A result that is not of a GPU is not shown."""
    yield HEAD
    measured = {part: result for part, result in found.items() if _on_gpu(result)}
    if not measured:
        yield NOTHING
    for machine in {str(result.machine): result.machine for result in measured.values()}.values():
        yield "Measured on: " + ", ".join(f"{name} {said}" for name, said in machine.items()) + "."
    for part, about in PARTS.items():
        yield f"\n## {part}\n\n{about.title}. Aim: {about.aim}.\n"
        yield "| case | found |\n| --- | --- |"
        cases = measured[part].cases if part in measured else {}
        for name in about.cases:
            yield f"| {name} | {_cell(cases.get(name, {}))} |"


def _on_gpu(result: PartResult) -> bool:
    device = str(result.machine.get("device", "CPU"))
    return bool(result.cases) and not device.startswith("CPU")


def _cell(case: Mapping[str, object]) -> str:
    if "found" in case:
        assert isinstance(case["found"], Mapping)
        said = results.cells(case["found"])
    elif "not_run" in case:
        said = f"not run: {case['not_run']}"
    elif "failed" in case:
        said = f"failed: {case['failed']}"
    else:
        said = "not run: no GPU was available"
    return said.replace("|", "\\|").replace("\n", " ")
