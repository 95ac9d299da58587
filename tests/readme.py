"""The commands that README.md shows, as a reader would copy them."""

from pathlib import Path

ROOT = Path(__file__).parents[1]


def blocks(title: str) -> list[list[str]]:
    """Each block of commands in the section of that title: its lines, without comments."""
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    section = text.split(f"\n## {title}\n")[1].split("\n## ")[0]
    return [_commands(block) for block in section.split("```")[1::2]]


def _commands(block: str) -> list[str]:
    whole = block.strip().replace("\\\n", " ")  # a line that goes on
    return [" ".join(line.split("  #")[0].split()) for line in whole.split("\n")]
