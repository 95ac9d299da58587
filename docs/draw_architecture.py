"""Draw the packages and their imports from the code, into docs/architecture.md.

Run: `python docs/draw_architecture.py` after a package was added or an import moved. A test
compares the page with the code.
"""

import ast
from pathlib import Path

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs/architecture.md"
BEGIN, END = "<!-- drawn by docs/draw_architecture.py -->", "<!-- end of the drawing -->"
FLOORS = ("flows.cli", "flows", "tasks", "trainer", "infra", "trainer.planning", "trainer.contract")


def floor_of(module: str) -> str | None:
    """The package of FLOORS that holds a module, the innermost one; None: it is not ours."""
    within = [name for name in FLOORS if f"{module}.".startswith(f"{name}.")]
    return max(within, key=len, default=None)


def arrows() -> set[tuple[str, str]]:
    """Pairs of packages in FLOORS of which the first imports the second."""
    found = set()
    for package in ("flows", "tasks", "infra", "trainer"):
        for path in (ROOT / package).rglob("*.py"):
            here = floor_of(".".join(path.relative_to(ROOT).with_suffix("").parts))
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                if isinstance(node, ast.ImportFrom) and node.module:
                    there = floor_of(node.module)
                    if here and there and here != there:
                        found.add((here, there))
    return found


def drawing() -> str:
    """A mermaid chart of the packages and the arrows between them."""
    boxes = [f'    {name.replace(".", "_")}["{name}"]' for name in FLOORS]
    lines = [f"    {a} --> {b}".replace(".", "_") for a, b in sorted(arrows())]
    return "\n".join(["```mermaid", "flowchart TD", *boxes, *lines, "```"])


def page() -> str:
    """The text of docs/architecture.md with a new drawing."""
    text = PAGE.read_text(encoding="utf-8")
    before, rest = text.split(BEGIN)
    return f"{before}{BEGIN}\n{drawing()}\n{END}{rest.split(END)[1]}"


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
