"""An image made from its Dockerfile without a container engine.

    image_of("steps").command(["python", "-m", "trainer", "--help"], mounts={...})

Installed is exactly what pip would install under the lock, hard-linked from this environment;
copied is exactly what COPY copies past .dockerignore. Both are kept in `.venv/images`, by the
content of what they are made from, and shared by all tests. From nothing it takes seconds.
"""

import contextlib
import fcntl
import fnmatch
import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.images.dockerfile import Action, Copy, Edit, Execute, Freeze, Install, Recipe, recipe_of
from tests.images.packages import frozen, install
from tests.images.sandbox import Mount, Root, command_in

ROOT = Path(__file__).parents[2]
STORE = Path(sys.prefix, "images")
NAMES = ("steps", "orchestrator")
KEPT = 6  # folders of the store: both images twice, and what a test alters


@dataclass(frozen=True, kw_only=True)
class Image:
    """What a container is started from."""

    name: str  # as manifests name it: finetune-steps:0.2.0
    root: Root
    environment: Mapping[str, str]
    workdir: str
    user: str

    def command(
        self,
        command: Sequence[str],
        *,
        mounts: Mapping[str, Mount] | None = None,
        user: str = "",
    ) -> list[str]:
        """The command line of this machine that starts a container; give it `environment`."""
        return command_in(
            self.root,
            command,
            mounts=mounts or {},
            workdir=self.workdir,
            user=user or self.user,
            scratch=_empty_folder(),
        )


def tag_of(name: str, project: Path = ROOT) -> str:
    """What `make images` calls the image."""
    version = tomllib.loads((project / "pyproject.toml").read_text())["project"]["version"]
    return f"finetune-{name}:{version}"


def shipped_images() -> dict[str, Image]:
    """Both images by the names that the manifests have for them."""
    return {tag_of(name): image_of(name) for name in NAMES}


def image_of(name: str, project: Path = ROOT) -> Image:
    """Make the image of `infra/images/{name}.Dockerfile`, or find it made.

    Raises:
        ValueError: The Dockerfile cannot be interpreted or built.
    """
    dockerfile = project / "infra/images" / f"{name}.Dockerfile"
    recipe = recipe_of(dockerfile)
    last = max(i for i, (_, action) in enumerate(recipe.actions) if isinstance(action, Install))
    layers: list[Path] = []
    key = dockerfile.read_bytes() + _own_source()
    STORE.mkdir(parents=True, exist_ok=True)
    with _locked(STORE / "lock"):
        for actions in (recipe.actions[: last + 1], recipe.actions[last + 1 :]):
            key = hashlib.sha256(key + _content(project, actions)).digest()
            layer = STORE / f"{name}-{key.hex()[:16]}"
            if not layer.exists():
                with _made_whole(layer) as making:
                    _build(recipe, actions, project, layers, making)
            os.utime(layer)
            layers.append(layer)
        _prune()
    return Image(
        name=tag_of(name, project),
        root=Root(parts=_parts(layers)),
        environment=recipe.environment,
        workdir=recipe.workdir,
        user=recipe.user,
    )


def _build(
    recipe: Recipe,
    actions: list[tuple[str, Action]],
    project: Path,
    below: list[Path],
    folder: Path,
) -> None:
    """Carry out the actions; what they change of the layers `below` is copied first."""
    for workdir, action in actions:
        if isinstance(action, Copy):
            top = Path(action.target).parts[1]
            for layer in below if not (folder / top).exists() else ():
                if (layer / top).exists():
                    shutil.copytree(layer / top, folder / top, symlinks=True)
            _copy(project, action, folder)
        elif isinstance(action, Install):
            install(action, folder, recipe.prefix)
        elif isinstance(action, Freeze):
            lines = frozen(folder, recipe.prefix, action.without)
            Path(f"{folder}{action.target}").write_text(lines)
        elif isinstance(action, Edit):
            done = subprocess.run(
                ["sed", "-E", action.script, f"{folder}{action.source}"],
                capture_output=True,
                check=True,
            )
            Path(f"{folder}{action.target}").write_bytes(done.stdout)
        else:
            _execute(recipe, action, workdir, [*below, folder])


def _copy(project: Path, action: Copy, folder: Path) -> None:
    """As COPY does: a folder's contents, or a file."""
    target = Path(f"{folder}{action.target}")
    if action.target.endswith("/"):
        target.mkdir(parents=True, exist_ok=True)
    for source in action.sources:
        found = project / source
        for path in _sent(project, source):
            place = target / path.relative_to(found) if found.is_dir() else target
            place = place / found.name if found.is_file() and target.is_dir() else place
            place.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, place)


def _sent(project: Path, source: str) -> list[Path]:
    """Files below `source` that .dockerignore does not keep from the builder."""
    found = project / source
    paths = [found] if found.is_file() else sorted(p for p in found.rglob("*") if p.is_file())
    patterns = (project / ".dockerignore").read_text().splitlines()
    sent = [path for path in paths if not _is_ignored(path.relative_to(project), patterns)]
    if not sent:
        raise ValueError(f"COPY {source}: there is no such file, or .dockerignore leaves it out")
    return sent


def _is_ignored(path: Path, patterns: list[str]) -> bool:
    """The last pattern that matches the path or a folder above it decides."""
    ignored = False
    for pattern in (p.strip() for p in patterns if p.strip() and not p.startswith("#")):
        wanted = pattern.removeprefix("!").removeprefix("**/")
        anywhere = "**/" in pattern
        for part in (path, *path.parents):
            candidates = (str(part), part.name) if anywhere else (str(part),)
            if part != Path(".") and any(fnmatch.fnmatchcase(c, wanted) for c in candidates):
                ignored = not pattern.startswith("!")
    return ignored


def _execute(recipe: Recipe, action: Execute, workdir: str, layers: list[Path]) -> None:
    """Run the command in the image as it is so far, as root, which may write the last layer."""
    parts = _parts(layers)
    own = {path: Mount(source=part) for path, part in parts.items() if layers[-1] in part.parents}
    command = command_in(
        Root(parts={path: part for path, part in parts.items() if path not in own}),
        action.command,
        mounts=own,
        workdir=workdir,
        user="0:0",
        scratch=_empty_folder(),
    )
    done = subprocess.run(command, env=recipe.environment, capture_output=True, text=True)
    if done.returncode:
        raise ValueError(f"RUN {' '.join(action.command)} failed:\n{done.stdout}{done.stderr}")


def _parts(layers: list[Path]) -> dict[str, Path]:
    """Every folder of the image, and the interpreter that its environment starts."""
    interpreter = {sys.base_prefix: Path(sys.base_prefix)}
    return interpreter | {f"/{part.name}": part for layer in layers for part in layer.iterdir()}


def _empty_folder() -> Path:
    """Where a container's process, and no other, sees its root."""
    folder = STORE / "empty"
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def _content(project: Path, actions: list[tuple[str, Action]]) -> bytes:
    """A digest of every file that the actions copy."""
    digest = hashlib.sha256(f"{sys.version} {sys.base_prefix}".encode())
    digest.update((project / ".dockerignore").read_bytes())
    for _, action in actions:
        for source in action.sources if isinstance(action, Copy) else ():
            for path in _sent(project, source):
                digest.update(f"{path.relative_to(project)}\0".encode() + path.read_bytes())
    return digest.digest()


def _own_source() -> bytes:
    """What makes the images, too, decides what is in them."""
    here = Path(__file__).parent
    modules = ("closure", "dockerfile", "image", "packages", "sandbox")
    return b"".join(here.joinpath(f"{name}.py").read_bytes() for name in modules)


@contextlib.contextmanager
def _made_whole(folder: Path) -> Iterator[Path]:
    """A new folder that gets its name when the block ends well."""
    making = Path(tempfile.mkdtemp(prefix="making-", dir=folder.parent))
    making.chmod(0o755)
    try:
        yield making
        making.rename(folder)
    finally:
        shutil.rmtree(making, ignore_errors=True)


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    with open(path, "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _prune() -> None:
    """Remove what was not used for longest."""
    folders = [path for path in STORE.iterdir() if path.is_dir() and path.name != "empty"]
    for old in sorted(folders, key=lambda path: path.stat().st_mtime)[: -2 * KEPT]:
        shutil.rmtree(old, ignore_errors=True)
