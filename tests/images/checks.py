"""Run inside an image: whether it holds what its code needs, and nothing that it must not hold.

    python checks.py steps|orchestrator

Standard library only, as nothing of the tests is in an image. Prints one line for each fault and
ends with 1 if there is any. What is imported only where it is used is seen by running the steps.
"""

import importlib
import importlib.metadata
import importlib.util
import os
import pkgutil
import sys
from collections.abc import Iterator
from pathlib import Path

PACKAGES = {"steps": ["trainer"], "orchestrator": ["flows", "tasks", "infra"]}
NEVER = {
    "steps": ["prefect", "kubernetes_asyncio", "flows", "tasks", "infra", "pytest"],
    "orchestrator": ["torch", "transformers", "deepspeed", "numpy", "pytest"],
}


def main() -> int:
    [name] = sys.argv[1:]
    faults = [*machine(), *metadata(), *present_though_never(name), *modules(name)]
    if name == "orchestrator":
        faults += [*entrypoints(), *commands()]
    print("\n".join(faults) or f"{name}: no fault")
    return 1 if faults else 0


def machine() -> Iterator[str]:
    """The user and the file system of a restricted pod."""
    if os.getuid() == 0:
        yield "the image runs as root"
    for folder in {*sys.path, os.getcwd(), sys.prefix} - {""}:
        if os.path.isdir(folder) and not os.statvfs(folder).f_flag & os.ST_RDONLY:
            yield f"{folder} is writable"


def metadata() -> Iterator[str]:
    try:
        importlib.metadata.version("finetune-pipeline")
    except importlib.metadata.PackageNotFoundError as error:
        yield f"the project's metadata: {error}"


def present_though_never(name: str) -> Iterator[str]:
    for module in NEVER[name]:
        if importlib.util.find_spec(module):
            yield f"{module} is in the image of the {name}"


def modules(name: str) -> Iterator[str]:
    """Import every module of the packages."""
    for package in PACKAGES[name]:
        if importlib.util.find_spec(package) is None:
            yield f"{package} is missing"
            continue
        folder = importlib.import_module(package).__path__
        for found in pkgutil.walk_packages(folder, f"{package}.", onerror=lambda _: None):
            if not found.name.endswith("__main__"):
                yield from fault_of_import(found.name)


def fault_of_import(module: str) -> Iterator[str]:
    try:
        importlib.import_module(module)
    # Whatever it is, it is the fault to report.
    except Exception as error:  # noqa: BLE001
        yield f"import {module}: {type(error).__name__}: {error}"


def entrypoints() -> Iterator[str]:
    """Load every deployment's flow as a worker's pod does."""
    import yaml
    from prefect.flows import load_flow_from_entrypoint

    deployments = yaml.safe_load(Path("prefect.yaml").read_text())["deployments"]
    for entrypoint in sorted({deployment["entrypoint"] for deployment in deployments}):
        try:
            load_flow_from_entrypoint(entrypoint, use_placeholder_flow=False)
        except Exception as error:  # noqa: BLE001 - reported, as above
            yield f"the flow {entrypoint}: {type(error).__name__}: {error}"


def commands() -> Iterator[str]:
    """Ask every command of `finetune` for its help."""
    import click
    from click.testing import CliRunner

    [script] = importlib.metadata.entry_points(group="console_scripts", name="finetune")
    members = vars(importlib.import_module(script.module)).values()
    finetune = next(member for member in members if isinstance(member, click.Group))
    for words in ([], *([name] for name in finetune.commands)):
        done = CliRunner().invoke(finetune, [*words, "--help"])
        if done.exit_code:
            yield f"finetune {' '.join(words)} --help: {done.exception!r}"


if __name__ == "__main__":
    sys.exit(main())
