"""Which distributions pip would install for some requirements under a lock.

pip resolves to the versions of the lock, so no search is needed: the closure is what the
requirements name, what those require, and so on, each in the one version that the lock has.
`make check-images` compares it with what pip installed in a built image.
"""

import tomllib
from collections.abc import Iterable
from dataclasses import dataclass, field
from importlib.metadata import Distribution, PackageNotFoundError, distribution
from pathlib import Path
from typing import Any

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name


@dataclass
class Closure:
    """Names are canonical."""

    found: dict[str, Distribution] = field(default_factory=dict)
    absent: set[str] = field(default_factory=set)  # of a GPU machine: neither locked nor here


def locked_versions(path: Path) -> dict[str, str]:
    """Version of each distribution that a lock file names."""
    lines = (line.partition("#")[0] for line in path.read_text().splitlines())
    pins = (line.removesuffix("\\").strip() for line in lines if "--hash=" not in line)
    return {
        canonicalize_name(name): version
        for name, _, version in (line.partition("==") for line in pins if line)
    }


def project_requirements(pyproject: Path, extras: Iterable[str]) -> list[Requirement]:
    """What the project requires with these extras; an extra may name another one of its own.

    Raises:
        KeyError: It has no such extra.
    """
    project: dict[str, Any] = tomllib.loads(pyproject.read_text())["project"]
    found, left = [Requirement(text) for text in project["dependencies"]], list(extras)
    while left:
        for wanted in map(Requirement, project["optional-dependencies"][left.pop(0)]):
            if wanted.name == project["name"]:
                left += wanted.extras
            else:
                found.append(wanted)
    return found


def closure_of(requirements: Iterable[Requirement], lock: dict[str, str]) -> Closure:
    """Follow the requirements through the metadata of what is installed here.

    Raises:
        ValueError: What is installed here is not what the lock says.
    """
    closure, seen = Closure(), set[tuple[str, str]]()
    left = [(wanted, extra) for wanted in requirements for extra in ("", *wanted.extras)]
    while left:
        wanted, extra = left.pop()
        name = canonicalize_name(wanted.name)
        try:
            installed = distribution(name)
        except PackageNotFoundError:
            if name in lock:
                raise ValueError(
                    f"{name} is in the lock but not installed. Run: make setup"
                ) from None
            closure.absent.add(name)
            continue
        _check(wanted, installed, lock.get(name, ""))
        if (name, extra) in seen:
            continue
        seen.add((name, extra))
        closure.found[name] = installed
        for text in installed.requires or []:
            further = Requirement(text)
            if further.marker is None or further.marker.evaluate({"extra": extra}):
                left += [(further, more) for more in ("", *further.extras)]
    return closure


def _check(wanted: Requirement, installed: Distribution, locked: str) -> None:
    public = installed.version.partition("+")[0]  # a build of torch is named behind the +
    if locked and public != locked:
        raise ValueError(f"{wanted.name} {public} is installed. The lock has {locked}: make setup")
    if not wanted.specifier.contains(installed.version, prereleases=True):
        raise ValueError(f"{wanted} is required. Installed and locked is {installed.version}")
