"""The sanitizer's rules, one by one, and against the slow model."""

import random

import pytest

from tests.tokens import rules
from tests.tokens.corpora import strange_text
from trainer.tokens.text.sanitize import MISENCODINGS, WHITE_SPACE, mend_encoding, sanitize


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a\r\nb\r", "a\nb"),
        ("a\n\n\nb", "a\nb"),
        ("a\n\r\nb", "a\nb"),
        ("a\n \nb", "a\n\nb"),  # the space stood between when newlines were dropped
        ("a\\nb", "a\nb"),
        ("a\\\rnb", "a\nb"),
        ("a\n\\nb", "a\n\nb"),  # a newline that was made is kept
        ("a\\n\nb", "a\nb"),  # one after it is not
        ("a :b", "a:b"),
        ("a  :b", "a :b"),
        ("a\t:b", "a:b"),
        (" \n :", "\n:"),
        ("a\tb", "a b"),
        ("a \t\v\f b", "a b"),
        ("  a  \n  b  ", "a\nb"),
        ("\u3000\xa0a\u2003\n\x85b\u2028", "a\nb"),
        ("\x1ca\x1f", "\x1ca\x1f"),  # no White_Space, though str.strip() takes them
        ("a\u200bb\u200b", "a\u200bb\u200b"),
        ("\xa0 a", "a"),
        ("", ""),
        (" ", ""),
        ("\n", "\n"),
    ],
)
def test_rules_of_white_space(text, expected):
    assert sanitize(text.encode()).decode() == expected
    assert rules.sanitize(text) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("cafÃ©", "café"),
        ("â€œaâ€™", "“a’"),
        ("Ã‚Â¡", "Â¡"),  # what was put right is not looked at again
        ("ÃƒÂ©", "Ã©"),
        ("Â¬", "Â¬"),
        ("Ã Â\xa0", "Ã Â\xa0"),
    ],
)
def test_text_read_as_windows_1252_is_put_right(text, expected):
    assert mend_encoding(text.encode()).decode() == expected
    assert rules.mend(text) == expected


def test_the_table_of_wrong_encodings_is_the_reference_s():
    assert len(MISENCODINGS) == 110
    wanted = {bad.encode(): good.encode() for bad, good in rules.MISENCODED.items()}
    assert wanted == MISENCODINGS


def test_white_space_is_unicodes_property():
    assert sorted(WHITE_SPACE) == sorted(rules.WHITE_SPACE)


@pytest.mark.parametrize("seed", range(40))
def test_random_text_agrees_with_the_slow_model(seed):
    draw = random.Random(seed)
    for _ in range(50):
        text = "".join(strange_text(draw) for _ in range(3))
        assert sanitize(text.encode()).decode() == rules.sanitize(text), text
        assert mend_encoding(text.encode()).decode() == rules.mend(text), text
