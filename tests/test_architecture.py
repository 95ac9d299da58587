"""The house: who may import whom, and what must not be loaded at start."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGES = ("flows", "tasks", "infra", "trainer")
HEAVY = ("torch", "transformers", "deepspeed")

NEVER = {
    "trainer": {"flows", "tasks", "infra", "prefect", "kubernetes_asyncio", "kubernetes"},
    "infra": {"flows", "tasks", "trainer", "prefect", *HEAVY},
    "tasks": {"flows", *HEAVY, "kubernetes_asyncio", "kubernetes"},
    "flows": {*HEAVY, "kubernetes_asyncio", "kubernetes"},
}
# Modules of the trainer that load nothing heavier than pydantic; others may use these.
LIGHT = (
    "trainer.config trainer.parameter_types trainer.parsing trainer.topics trainer.volume_paths "
    "trainer.errors trainer.events trainer.durable trainer.outcome trainer.run_folder "
    "trainer.checkpoints trainer.memory_choice trainer.memory_model trainer.model_shape "
    "trainer.context_count trainer.setting_problems trainer.plan_facts trainer.journal "
    "trainer.report trainer.serving.gate trainer.serving.deploy trainer.serving.history"
).split()
# What a command that shows tokens or manifests loads when it is called, and nothing else does.
WHEN_CALLED = ("trainer.tokens", "trainer.fetch.hub")


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


@pytest.mark.parametrize("package", PACKAGES)
def test_a_package_imports_only_what_the_design_allows(package: str) -> None:
    wrong = {
        f"{path.relative_to(ROOT)}: {name}"
        for path in modules(package)
        for name in imported(path)
        if name.split(".")[0] in NEVER[package]
    }
    assert not wrong


@pytest.mark.parametrize("package", ["tasks", "flows"])
def test_of_the_trainer_only_light_modules_are_used(package: str) -> None:
    wrong = {
        f"{path.relative_to(ROOT)}: {name}"
        for path in modules(package)
        for at_once, allowed in ((True, LIGHT), (False, (*LIGHT, *WHEN_CALLED)))
        for name in imported(path, at_once=at_once)
        if name.startswith("trainer.")
        and not any(name == light or name.startswith(f"{light}.") for light in allowed)
    }
    assert not wrong


def loaded_by(statement: str) -> set[str]:
    """Top-level modules that a fresh interpreter has loaded after `statement`."""
    code = f"import sys\n{statement}\nprint(*{{name.split('.')[0] for name in sys.modules}})"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT
    )
    return set(done.stdout.split())


@pytest.mark.parametrize("module", LIGHT)
def test_light_modules_load_nothing_heavy(module: str) -> None:
    assert not loaded_by(f"import {module}") & {*HEAVY, "numpy", "prefect", "fsspec"}


def test_a_flow_loads_no_torch_and_no_kubernetes_client() -> None:
    loaded = loaded_by("import flows.finetune")
    assert "prefect" in loaded
    assert not loaded & {*HEAVY, "kubernetes_asyncio", "kubernetes"}


def test_the_command_line_loads_no_prefect() -> None:
    assert not loaded_by("import flows.cli") & {*HEAVY, "prefect", "numpy"}


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
