"""`make check-images`: start the images that `make images` built, and run every step in them.

    python -m tests.images.check --builder buildah

Each container runs as uid 1000 from a read-only root with a /tmp of its own. In both images the
checks of tests/images/checks.py are run; what pip installed is compared with what the tests use;
then the steps' image runs each step to its end on a small model. A few minutes on two cores.
"""

import argparse
import contextlib
import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Protocol

from packaging.utils import canonicalize_name

from tests.images.all_steps import run_all_steps
from tests.images.closure import closure_of, locked_versions, project_requirements
from tests.images.image import NAMES, ROOT, Image, tag_of
from tests.images.sandbox import Mount, Root

CHECKS = ROOT / "tests/images/checks.py"
EXTRAS = {
    "steps": ["steps", "gpu", "s3", "tracking"],
    "orchestrator": ["orchestrator", "kubernetes"],
}
LISTED = (
    "import importlib.metadata as m; print(*{d.name + '==' + d.version for d in m.distributions()})"
)
# What a base image has, and what only a machine with GPUs is given beside the lock.
OF_THE_BASE = ("pip==", "wheel==", "setuptools==", "finetune-pipeline==")
OF_GPUS = ("triton==", "liger-kernel==", "nvidia-", "cuda-")


class Start(Protocol):
    """The command line and the variables of a container."""

    def __call__(
        self, name: str, command: list[str], mounts: Mapping[str, Mount]
    ) -> tuple[list[str], dict[str, str] | None]: ...


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else "")
    parser.add_argument("--builder", required=True, help="docker, podman or buildah")
    builder = parser.parse_args().builder
    if not builder:
        print("No builder answers (none of docker, podman, buildah). Install one.", file=sys.stderr)
        return 78
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="check-images-")))
        folder.chmod(0o755)
        if Path(builder).name == "buildah":
            images = {name: stack.enter_context(mounted(builder, tag_of(name))) for name in NAMES}
            start: Start = start_of_mounted(images)
        else:
            start = start_by(builder)
        faults = sum(check(name, start, folder) for name in NAMES)
        if not faults:
            for line in run_all_steps(start, folder):
                print(line, flush=True)
    return 1 if faults else 0


def check(name: str, start: Start, folder: Path) -> int:
    """Run the checks in the image; how many found a fault."""
    mounts = {"/checks.py": Mount(source=CHECKS, writable=False), "/tmp": scratch(folder, name)}
    command, variables = start(name, ["python", "/checks.py", name], mounts)
    faults = bool(subprocess.run(command, env=variables, check=False).returncode)
    command, variables = start(name, ["python", "-c", LISTED], mounts)
    told = subprocess.run(command, env=variables, check=True, capture_output=True, text=True)
    lock = locked_versions(ROOT / "requirements.lock")
    wanted = closure_of(project_requirements(ROOT / "pyproject.toml", EXTRAS[name]), lock)
    expected = normal([f"{name}=={found.version}" for name, found in wanted.found.items()])
    installed = normal(told.stdout.split())
    differ = expected - installed
    differ |= {text for text in installed - expected if text.partition("==")[0] in lock}
    differ = {text for text in differ if not text.startswith(OF_THE_BASE)}
    # Not locked: of another Python than the tests', of its base, or of GPUs.
    beside = {text for text in installed - expected if not text.startswith(OF_THE_BASE + OF_GPUS)}
    same = f"the {len(expected)} packages of the tests"
    print(f"{name}: not {same}: {differ}" if differ else f"{name}: {same}", flush=True)
    if beside - differ:
        print(f"{name}: beside them, not locked: {', '.join(sorted(beside - differ))}", flush=True)
    return faults + bool(differ)


def normal(listed: list[str]) -> set[str]:
    """`name==version` with canonical names, without the build of a version."""
    pairs = (text.partition("==") for text in listed)
    return {f"{canonicalize_name(name)}=={v.partition('+')[0]}" for name, _, v in pairs}


def scratch(folder: Path, name: str) -> Mount:
    """A /tmp for containers."""
    path = folder / f"tmp-{name}"
    path.mkdir(exist_ok=True)
    path.chmod(0o777)
    return Mount(source=path)


def start_by(builder: str) -> Start:
    """Containers of docker or podman, on this machine's network."""

    def start(
        name: str, command: list[str], mounts: Mapping[str, Mount]
    ) -> tuple[list[str], dict[str, str] | None]:
        words = [builder, "run", "--rm", "--read-only", "--user", "1000:1000", "--network", "host"]
        for path, mount in mounts.items():
            words += ["--volume", f"{mount.source}:{path}:{'rw' if mount.writable else 'ro'}"]
        return [*words, tag_of(name), *command], None

    return start


def start_of_mounted(images: Mapping[str, Image]) -> Start:
    """Processes in the root file systems of the images."""

    def start(
        name: str, command: list[str], mounts: Mapping[str, Mount]
    ) -> tuple[list[str], dict[str, str] | None]:
        image = images[name]
        return image.command(command, mounts=mounts), dict(image.environment)

    return start


@contextlib.contextmanager
def mounted(builder: str, tag: str) -> Iterator[Image]:
    """The root file system of an image that buildah built; buildah run has no read-only root."""

    def ask(*words: str) -> str:
        done = subprocess.run([builder, *words], check=True, capture_output=True, text=True)
        return done.stdout.strip()

    container = ask("from", "--pull-never", tag)
    try:
        config = json.loads(ask("inspect", container))["OCIv1"]["config"]
        yield Image(
            name=tag,
            root=Root(folder=Path(ask("mount", container))),
            environment=dict(pair.split("=", 1) for pair in config["Env"]),
            workdir=config["WorkingDir"],
            user=config["User"],
        )
    finally:
        ask("rm", container)


if __name__ == "__main__":
    sys.exit(main())
