"""Prose made here: seeded, so that every test knows what it has."""

import random

NOUNS = (
    "rider ridge well horse town dust sheriff river lamp saloon fence storm stranger map".split()
)
VERBS = "crossed watched left found followed feared forgot painted sold carried burned".split()
PLACES = "at noon|before the rain|in silence|for a dollar|beyond the pass|once more".split("|")


def sentence(draw: random.Random) -> str:
    first, second = draw.sample(NOUNS, 2)
    return f"The {first} {draw.choice(VERBS)} the {second} {draw.choice(PLACES)}."


def story(seed: object, size: int) -> str:
    """Paragraphs of about `size` characters in all."""
    draw = random.Random(str(seed))
    lines: list[str] = []
    length = 0
    while length < size:
        line = " ".join(sentence(draw) for _ in range(draw.randint(1, 6)))
        lines.append(line)
        length += len(line) + 1
    return "\n".join(lines) + "\n"
