"""Figures in words."""

import html
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st
from markdown_it import MarkdownIt

from trainer.contract.wording import as_markdown_text, describe_progress, figure, told_apart


def test_a_rate_is_said_in_the_unit_that_is_counted() -> None:
    fields = {"label": "tokenize", "done": 0.9, "total": 3.2, "unit": "MB", "per_second": 1.646}
    said = describe_progress({**fields, "tokens_per_second": 86_943, "remaining_seconds": 6.0})
    assert said == "tokenize 0.9/3.2 MB, 1.6 MB/s, 86,943 tokens/s, 6 s left"


@pytest.mark.parametrize(
    ("values", "digits", "told"),
    [
        ((4.0, 4.2), 0, ["4.0", "4.2"]),
        ((4.0, 12.3), 0, ["4", "12"]),
        ((4.0, 4.0004), 1, ["4.0000", "4.0004"]),
        ((4.0, 4.0), 1, ["4.0", "4.0"]),
    ],
)
def test_two_figures_that_differ_are_told_apart(
    values: tuple[float, ...], digits: int, told: list[str]
) -> None:
    assert told_apart(*values, digits=digits) == told


MARKUP = st.text(st.sampled_from("ab1 <>&*_[]()`#|~!-+=.:/\\\"'$\n\t{}"), max_size=30)


@given(st.one_of(MARKUP, st.text(max_size=20).filter(str.isprintable)))
def test_text_of_the_data_is_no_markup(text: str) -> None:
    shown = MarkdownIt("commonmark").enable("table").render("> " + as_markdown_text(text))
    plain = re.fullmatch(r"<blockquote>\n?(?:<p>(.*)</p>\n)?</blockquote>\n", shown, re.DOTALL)
    assert plain, shown
    assert html.unescape(plain[1] or "") == " ".join(text.split())


@pytest.mark.parametrize(
    ("value", "said"),
    [
        (2827, "2,827"),
        (0.88461, "0.8846"),
        (12345.6, "12,346"),
        (None, "-"),
        ("", "-"),
        (True, "yes"),
        ("a", "a"),
    ],
)
def test_a_figure_is_written_as_people_do(value: object, said: str) -> None:
    assert figure(value) == said
