"""The commands that README.md and its guides show, as a reader would copy them."""

from pathlib import Path

ROOT = Path(__file__).parents[1]
GUIDES = ("README.md", "docs/cluster.md", "docs/commands.md")


def text() -> str:
    """All of them, one after another."""
    return "\n".join((ROOT / name).read_text(encoding="utf-8") for name in GUIDES)


def blocks(title: str) -> list[list[str]]:
    """Each block of commands in the section of that title: its lines, without comments."""
    section = text().split(f"\n## {title}\n")[1].split("\n## ")[0].split("\n# ")[0]
    return [commands(block) for block in section.split("```")[1::2]]


def commands(block: str) -> list[str]:
    """The lines of a block, without comments, those that continue as one."""
    whole = block.strip().replace("\\\n", " ")
    return [" ".join(line.split("  #")[0].split()) for line in whole.split("\n")]
