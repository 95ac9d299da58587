"""The house: who may import whom, and what must not be loaded at start."""

import ast
import re
import runpy
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGES = ("flows", "tasks", "infra", "trainer")
HEAVY = ("torch", "transformers", "deepspeed")

# Each package's floor: it imports its own floor and lower ones, and of its own floor only itself.
FLOORS = {
    "trainer.contract": 1,
    "trainer.planning": 2,
    "infra": 2,
    "trainer": 3,
    "tasks": 4,
    "flows": 5,
    "flows.cli": 6,
}
NEVER = {
    "trainer.contract": {*HEAVY, "prefect", "kubernetes_asyncio", "numpy", "fsspec"},
    "trainer.planning": {*HEAVY, "prefect", "kubernetes_asyncio", "numpy", "fsspec"},
    "infra": {*HEAVY, "prefect"},
    "trainer": {"prefect", "kubernetes_asyncio", "kubernetes"},
    "tasks": {*HEAVY, "kubernetes_asyncio", "kubernetes"},
    "flows": {*HEAVY, "kubernetes_asyncio", "kubernetes"},
    "flows.cli": {*HEAVY, "kubernetes_asyncio", "kubernetes"},
}
# Rooms of the trainer that load nothing heavier than pydantic; tasks and flows may import them.
LIGHT_ROOMS = (
    "trainer.devices",
    "trainer.exam.kept",
    "trainer.parameter_counts",
    "trainer.report",
    "trainer.retention",
    "trainer.retraining.series",
    "trainer.plan.facts",
    "trainer.serving.deploy",
)
# What a command that shows tokens or manifests loads when it is called, and nothing else does.
WHEN_CALLED = ("trainer.tokens", "trainer.fetch.hub", "trainer.export")


def within(module: str, places: Iterable[str]) -> str:
    """The innermost of `places` that holds a module; '' if none does."""
    return max((p for p in places if f"{module}.".startswith(f"{p}.")), key=len, default="")


def modules(package: str) -> list[Path]:
    return sorted((ROOT / package).rglob("*.py"))


def imported(path: Path, *, at_once: bool = False) -> set[str]:
    """Dotted names of all modules that `path` imports, or that loading it imports `at_once`."""
    names: set[str] = set()
    tree = ast.parse(path.read_text())
    for node in tree.body if at_once else ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        if isinstance(node, ast.ImportFrom) and node.module:
            names |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def name_of(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def arrows(package: str) -> list[tuple[str, str]]:
    """(module, module that it imports), for the modules on `package`'s floor."""
    paths = [p for p in modules(package.split(".")[0]) if within(name_of(p), FLOORS) == package]
    return [(name_of(path), name) for path in paths for name in sorted(imported(path))]


@pytest.mark.parametrize("package", FLOORS)
def test_no_import_points_up_or_to_a_neighbour(package: str) -> None:
    wrong = [
        f"{module} imports {name}"
        for module, name in arrows(package)
        if (other := within(name, FLOORS)) and name not in PACKAGES and other != package
        if FLOORS[other] >= FLOORS[package] or {package, other} == {"infra", "trainer"}
    ]
    assert not wrong


@pytest.mark.parametrize("package", FLOORS)
def test_a_package_imports_only_what_the_design_allows(package: str) -> None:
    wrong = [a for a in arrows(package) if a[1].split(".")[0] in NEVER[package]]
    assert not wrong


@pytest.mark.parametrize("package", ["infra", "tasks", "flows"])
def test_of_the_trainer_only_light_rooms_are_used(package: str) -> None:
    light = ("trainer.contract", "trainer.planning", *(() if package == "infra" else LIGHT_ROOMS))
    wrong = {
        f"{path.relative_to(ROOT)}: {name}"
        for path in modules(package)
        for at_once, allowed in ((True, light), (False, (*light, *WHEN_CALLED)))
        for name in imported(path, at_once=at_once)
        if name.startswith("trainer.") and not within(name, allowed)
    }
    assert not wrong - {f"flows/plan_request.py: {name}" for name in ("trainer.plan",)}


def loaded_by(statement: str) -> set[str]:
    """Top-level modules that a fresh interpreter has loaded after `statement`."""
    code = f"import sys\n{statement}\nprint(*{{name.split('.')[0] for name in sys.modules}})"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT
    )
    return set(done.stdout.split())


def test_light_rooms_load_nothing_heavy() -> None:
    places = ("trainer.contract", "trainer.planning", *LIGHT_ROOMS)
    light = [name for path in modules("trainer") if within(name := name_of(path), places)]
    assert len(light) > 30
    loaded = loaded_by("\n".join(f"import {module}" for module in light))
    assert not loaded & {*HEAVY, "numpy", "prefect", "fsspec", "kubernetes_asyncio"}


def test_a_flow_loads_no_torch_and_no_kubernetes_client() -> None:
    loaded = loaded_by("import flows.finetune")
    assert "prefect" in loaded
    assert not loaded & {*HEAVY, "kubernetes_asyncio", "kubernetes"}


def test_the_command_line_loads_no_prefect() -> None:
    assert not loaded_by("import flows.cli.main") & {*HEAVY, "prefect", "numpy"}


def test_the_trainers_help_answers_without_torch() -> None:
    code = (
        "import sys, trainer.__main__\n"
        "try: trainer.__main__.main(['--help'])\n"
        "except SystemExit as end: assert end.code == 0\n"
        f"assert not set(sys.modules) & {set(HEAVY)!r}"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    assert "finetune" in done.stdout


def test_no_file_is_named_after_a_module_that_others_import() -> None:
    taken = set(sys.stdlib_module_names) | {"prefect", "kubernetes", "deepspeed", "kserve", *HEAVY}
    named = {path for package in PACKAGES for path in modules(package) if path.stem in taken}
    assert not named


def test_the_picture_of_the_architecture_is_current() -> None:
    path = ROOT / "docs/draw_architecture.py"
    drawing = runpy.run_path(str(path))
    assert drawing["PAGE"].read_text(encoding="utf-8") == drawing["page"](), (
        "run: python docs/draw_architecture.py"
    )


def test_json_text_has_one_reader() -> None:
    """Elsewhere a file that is nested without end would be a traceback."""
    own = {  # they take pairs or refuse numbers, and say themselves what is too deep
        "trainer/contract/json_text.py",
        "trainer/serving/api/bodies.py",
        "trainer/tokens/text/records.py",
    }
    paths = {path for package in PACKAGES for path in modules(package)}
    found = {
        str(path.relative_to(ROOT))
        for path in paths
        if re.search(r"\bjson\.loads?\b", path.read_text(encoding="utf-8"))
    }
    assert found == own
