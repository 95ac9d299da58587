"""What a Dockerfile installs, copies and sets, read from its own lines.

    recipe_of(path)    every instruction in order, as plain data

Only what infra/images uses is understood. Any other line is refused by name: a test that skips
a line would accept an image that it has not seen.
"""

import re
import shlex
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

# Where the environment of python:3.11-slim is here: its own /usr/local is this machine's.
BASE_PREFIX = "/opt/python"
BASE_PATH = f"{BASE_PREFIX}/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
FROM_THE_BASE = ("apt-get", "rm")  # system packages: this machine's own stand for them
PIP_SWITCHES = ("--no-cache-dir", "--no-deps")


@dataclass(frozen=True, kw_only=True)
class Install:
    """One `pip install`."""

    requirements: tuple[str, ...]
    constraint: str  # path in the image; empty: none
    with_dependencies: bool


@dataclass(frozen=True, kw_only=True)
class Copy:
    """One COPY."""

    sources: tuple[str, ...]  # relative to the build's folder
    target: str  # absolute; ends with / where it is a folder for the sources


@dataclass(frozen=True, kw_only=True)
class Execute:
    """A command that is run in the image as it is."""

    command: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class Edit:
    """One `sed SCRIPT SOURCE > TARGET`, of files in the image."""

    script: str
    source: str
    target: str


@dataclass(frozen=True, kw_only=True)
class Freeze:
    """One `pip freeze --exclude NAME > TARGET`."""

    without: str
    target: str


Action = Install | Copy | Execute | Edit | Freeze


@dataclass
class Recipe:
    """An image as its Dockerfile describes it."""

    base: str = ""
    prefix: str = BASE_PREFIX  # the folder of its Python environment
    environment: dict[str, str] = field(default_factory=lambda: {"PATH": BASE_PATH})
    workdir: str = "/"
    user: str = "0:0"
    command: tuple[str, ...] = ()
    actions: list[tuple[str, Action]] = field(default_factory=list)  # (workdir then, action)


def recipe_of(path: Path) -> Recipe:
    """Read a Dockerfile.

    Raises:
        ValueError: A line is not understood.
    """
    text = re.sub(r"^\s*#.*\n", "", path.read_text(), flags=re.MULTILINE)
    recipe = Recipe()
    for line in filter(None, map(str.strip, text.replace("\\\n", " ").splitlines())):
        name, _, rest = line.partition(" ")
        try:
            _READERS[name](recipe, rest.strip())
        except (KeyError, ValueError) as error:
            raise ValueError(f"{path.name}: cannot interpret (got {line!r}): {error}") from error
    return recipe


def _from(recipe: Recipe, rest: str) -> None:
    recipe.base = rest


def _arg(recipe: Recipe, rest: str) -> None:
    """Build arguments only say where pip looks; the packages here come from this machine."""


def _env(recipe: Recipe, rest: str) -> None:
    for word in shlex.split(rest):
        name, _, value = word.partition("=")
        known = re.sub(r"\$(\w+)", lambda found: recipe.environment[found[1]], value)
        recipe.environment[name] = known


def _workdir(recipe: Recipe, rest: str) -> None:
    recipe.workdir = rest
    recipe.actions.append((recipe.workdir, Copy(sources=(), target=f"{rest}/")))


def _user(recipe: Recipe, rest: str) -> None:
    recipe.user = rest


def _cmd(recipe: Recipe, rest: str) -> None:
    recipe.command = tuple(re.findall(r'"([^"]*)"', rest))


def _copy(recipe: Recipe, rest: str) -> None:
    *sources, target = shlex.split(rest)
    if any(word.startswith("--") for word in sources):
        raise ValueError("options of COPY are not supported")
    absolute = str(PurePosixPath(recipe.workdir, target))
    if target.endswith("/") or target == "." or len(sources) > 1:
        absolute += "/"
    recipe.actions.append((recipe.workdir, Copy(sources=tuple(sources), target=absolute)))


def _run(recipe: Recipe, rest: str) -> None:
    for part in rest.split("&&"):
        words = shlex.split(part)
        if words[0] in FROM_THE_BASE:
            continue
        if words[:3] == ["python3", "-m", "venv"]:
            [recipe.prefix] = words[3:]
        elif words[:2] == ["pip", "install"]:
            recipe.actions.append((recipe.workdir, _install(words[2:], recipe.workdir)))
        elif words[:3] == ["pip", "freeze", "--exclude"]:
            without, _, target = words[3:]
            recipe.actions.append((recipe.workdir, Freeze(without=without, target=target)))
        elif words[:2] == ["sed", "-E"]:
            script, source, arrow, target = words[2:]
            if arrow != ">":
                raise ValueError("sed must write a file")
            recipe.actions.append(
                (recipe.workdir, Edit(script=script, source=source, target=target))
            )
        elif words[0] == "python":
            recipe.actions.append((recipe.workdir, Execute(command=tuple(words))))
        else:
            raise ValueError(f"RUN of {words[0]} is not supported")


def _install(words: list[str], workdir: str) -> Install:
    requirements, constraint = [], ""
    left = iter(words)
    for word in left:
        if word in ("--constraint", "-c"):
            constraint = str(PurePosixPath(workdir, next(left)))
        elif word in ("--requirement", "-r"):
            requirements.append(f"-r {PurePosixPath(workdir, next(left))}")
        elif word.startswith("-") and word not in PIP_SWITCHES:
            raise ValueError(f"the option {word} of pip is not supported")
        elif not word.startswith("-"):
            requirements.append(word)
    return Install(
        requirements=tuple(requirements),
        constraint=constraint,
        with_dependencies="--no-deps" not in words,
    )


_READERS = {
    "FROM": _from,
    "ARG": _arg,
    "ENV": _env,
    "WORKDIR": _workdir,
    "USER": _user,
    "CMD": _cmd,
    "COPY": _copy,
    "RUN": _run,
}
