"""Small western tales from a seed: the demo's training text.

The same seed gives the same bytes. The tales keep their people, places and
quarrel from the first line to the last, so a small model has something to learn
beyond spelling: who rides with whom, and what a tale does next.
"""

import json
import random
from collections.abc import Iterator

from trainer.demo import phrases, plots

PARAGRAPHS_A_PART = (1, 3)
SENTENCES_A_PARAGRAPH = (3, 6)
TALK_SHARE = 0.3
SCENERY_SHARE = 0.25

NUM_TEXT_FILES = 300
NUM_MARKDOWN_FILES = 60
TALES_A_MARKDOWN_FILE = 5
NUM_JSON_LINES = 400


def _upper_first(text: str) -> str:
    return text[:1].upper() + text[1:]


def _title_case(text: str) -> str:
    small = ("a", "and", "at", "in", "of", "the", "to")
    words = [word if word in small else _upper_first(word) for word in text.split()]
    return _upper_first(" ".join(words))


class Tale:
    """One tale: its cast, and the sentences drawn for it."""

    def __init__(self, draw: random.Random) -> None:
        self._draw = draw
        pronoun = draw.choice(tuple(phrases.HEROES))
        he, him, his = phrases.PRONOUNS[pronoun]
        self._cast = {name: draw.choice(words) for name, words in phrases.ONCE.items()}
        self._cast |= {"hero": draw.choice(phrases.HEROES[pronoun]), "he": he, "him": him}
        self._cast["his"] = his
        self._scenery: list[str] = []
        self.title = _title_case(self._fill(draw.choice(phrases.TITLES)))
        self.paragraphs = list(self._tell())

    def _fill(self, template: str, *, again: bool = False) -> str:
        """The sentence, with words drawn for it; `again`: the hero was just named in full."""
        slots = {name: self._draw.choice(words) for name, words in phrases.EACH_TIME.items()}
        slots |= {"Days": _upper_first(slots["days"]), "Sound": _upper_first(slots["sound"])}
        slots |= self._cast
        if again:
            slots["hero"] = slots["hero"].split()[0]
        return _upper_first(template.format(**slots))

    def _tell(self) -> Iterator[str]:
        draw = self._draw
        for part in plots.PARTS:
            unused = list(part)
            draw.shuffle(unused)
            for _ in range(draw.randint(*PARAGRAPHS_A_PART)):
                yield " ".join(self._sentences(unused))
                if draw.random() < TALK_SHARE:
                    yield self._fill(draw.choice(plots.TALK))

    def _sentences(self, unused: list[str]) -> Iterator[str]:
        """One paragraph; takes from `unused`, so that no part says a thing twice."""
        hero_named = False
        for _ in range(self._draw.randint(*SENTENCES_A_PARAGRAPH)):
            if not self._scenery:
                self._scenery = self._draw.sample(plots.SCENERY, len(plots.SCENERY))
            scenery = self._draw.random() < SCENERY_SHARE or not unused
            template = (self._scenery if scenery else unused).pop()
            yield self._fill(template, again=hero_named)
            hero_named = hero_named or "{hero}" in template


def _plain(tale: Tale) -> str:
    return "\n\n".join([tale.title, *tale.paragraphs]) + "\n"


def _markdown(name: str, tales: list[Tale]) -> str:
    chapters = ("\n\n".join([f"## {tale.title}", *tale.paragraphs]) for tale in tales)
    return "\n\n".join([f"# {name}", *chapters]) + "\n"


def dataset_files(seed: int) -> Iterator[tuple[str, str]]:
    """Yield path (relative to the dataset) and text of each file, 3 to 4 MB in all."""
    draw = random.Random(seed)
    lands = [land.removeprefix("the ").replace(" ", "-") for land in phrases.ONCE["land"]]
    for number in range(NUM_TEXT_FILES):
        folder = lands[number % len(lands)]
        yield f"tales/{folder}/tale-{number:04}.txt", _plain(Tale(draw))
    for number in range(NUM_MARKDOWN_FILES):
        tales = [Tale(draw) for _ in range(TALES_A_MARKDOWN_FILE)]
        yield f"almanac/number-{number:02}.md", _markdown(f"Almanac {number + 1}", tales)
    lines = []
    for _ in range(NUM_JSON_LINES):
        tale = Tale(draw)
        lines.append(json.dumps({"title": tale.title, "text": _plain(tale)}) + "\n")
    yield "yarns.jsonl", "".join(lines)
