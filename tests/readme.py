"""The commands that README.md shows, as a reader would copy them."""

from pathlib import Path

ROOT = Path(__file__).parents[1]


def text() -> str:
    """All of it."""
    return (ROOT / "README.md").read_text(encoding="utf-8")


def blocks(title: str) -> list[list[str]]:
    """Each block of commands in the section of that title: its lines, without comments."""
    section = text().split(f"\n## {title}\n")[1].split("\n## ")[0]
    return [commands(block) for block in section.split("```")[1::2]]


def commands(block: str) -> list[str]:
    """The lines of a block, without comments, those that go on as one."""
    whole = block.strip().replace("\\\n", " ")
    return [" ".join(line.split("  #")[0].split()) for line in whole.split("\n")]
