"""What a `pip install` of a Dockerfile leaves in the image's Python environment.

Files are hard-linked from this machine's environment, by the records that pip keeps of them:
what no distribution of the closure has is not there. Scripts start the image's own Python.
"""

import fnmatch
import os
import re
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterable
from importlib.metadata import Distribution, distributions
from pathlib import Path
from typing import Any

from packaging.requirements import Requirement

from tests.images.closure import closure_of, locked_versions, project_requirements
from tests.images.dockerfile import Install

SITE = f"lib/python{sys.version_info.major}.{sys.version_info.minor}/site-packages"
LOCAL = re.compile(r"(?P<folder>[./][^\[]*)(?:\[(?P<extras>[^]]*)\])?")
LAUNCHER = "#!{prefix}/bin/python\nimport sys\nfrom {module} import {name}\nsys.exit({name}())\n"


def install(action: Install, image: Path, prefix: str) -> set[str]:
    """Install into the image's environment at `prefix`.

    Returns:
        Distributions of GPU machines, which are not here to be installed.
    Raises:
        ValueError: Something required is not installed here as the lock says.
    """
    environment = Path(f"{image}{prefix}")
    if not (environment / "bin/python").exists():
        command = [sys.executable, "-m", "venv", "--without-pip", str(environment)]
        subprocess.run(command, check=True)
    wanted: list[Requirement] = []
    for text in action.requirements:
        if local := LOCAL.fullmatch(text):
            source = Path(f"{image}{local['folder']}")
            extras = [extra.strip() for extra in (local["extras"] or "").split(",") if extra]
            wanted += project_requirements(source / "pyproject.toml", extras)
            _install_project(source, environment, prefix)
        else:
            wanted.append(Requirement(text))
    if not action.with_dependencies:
        return set()
    lock = locked_versions(Path(f"{image}{action.constraint}")) if action.constraint else {}
    closure = closure_of(wanted, lock)
    _link(closure.found.values(), environment, prefix)
    return closure.absent


def frozen(image: Path, prefix: str, without: str) -> str:
    """The lines of `pip freeze` in the image's environment at `prefix`."""
    installed = distributions(path=[f"{image}{prefix}/{SITE}"])
    pins = ((found.metadata["Name"], found.version.partition("+")[0]) for found in installed)
    return "".join(f"{name}=={version}\n" for name, version in sorted(pins) if name != without)


def _link(found: Iterable[Distribution], environment: Path, prefix: str) -> None:
    here = Path(sys.prefix, SITE)
    made: set[str] = set()
    for distribution in found:
        for recorded in distribution.files or []:
            source = Path(os.path.normpath(here / recorded))
            target = environment / source.relative_to(sys.prefix)
            if str(target.parent) not in made:
                target.parent.mkdir(parents=True, exist_ok=True)
                made.add(str(target.parent))
            if target.parent.name == "bin" and target.parent.parent == environment:
                _copy_script(source, target, prefix)
            else:
                _link_file(source, target)


def _link_file(source: Path, target: Path) -> None:
    try:
        os.link(source, target)
    except FileExistsError:
        pass  # two distributions may have one file
    except FileNotFoundError:
        if "__pycache__" not in source.parts:
            raise ValueError(f"{source} is missing. Set .venv up again: make clean setup") from None
    except OSError:  # another file system
        shutil.copy2(source, target)


def _copy_script(source: Path, target: Path, prefix: str) -> None:
    """A script with the image's Python in its first line."""
    content = source.read_bytes()
    if content.startswith(b"#!"):
        content = f"#!{prefix}/bin/python\n".encode() + content.partition(b"\n")[2]
    target.write_bytes(content)
    target.chmod(0o755)


def _install_project(source: Path, environment: Path, prefix: str) -> None:
    """The project's metadata and scripts, and whatever packages its folder holds."""
    document = tomllib.loads((source / "pyproject.toml").read_text())
    project: dict[str, Any] = document["project"]
    name = f"{project['name'].replace('-', '_')}-{project['version']}"
    about = environment / SITE / f"{name}.dist-info"
    about.mkdir(parents=True, exist_ok=True)
    lines = ["Metadata-Version: 2.4", f"Name: {project['name']}", f"Version: {project['version']}"]
    (about / "METADATA").write_text("\n".join(lines) + "\n")
    scripts = project.get("scripts", {})
    entries = "".join(f"{script} = {entry}\n" for script, entry in scripts.items())
    (about / "entry_points.txt").write_text(f"[console_scripts]\n{entries}")
    for script, entry in scripts.items():
        module, _, function = entry.partition(":")
        launcher = environment / "bin" / script
        launcher.write_text(LAUNCHER.format(prefix=prefix, module=module, name=function))
        launcher.chmod(0o755)
    tools = document["tool"]["setuptools"]
    included = tools["packages"]["find"]["include"]
    for folder in (path for path in source.iterdir() if path.is_dir()):
        if any(fnmatch.fnmatch(folder.name, pattern) for pattern in included):
            data = tools.get("package-data", {}).get(folder.name, [])
            _copy_package(folder, environment / SITE / folder.name, data)


def _copy_package(source: Path, target: Path, data: list[str]) -> None:
    """Its modules and its package data, as setuptools chooses them."""
    chosen = {*source.rglob("*.py"), *(path for pattern in data for path in source.glob(pattern))}
    for path in chosen:
        place = target / path.relative_to(source)
        place.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, place)
