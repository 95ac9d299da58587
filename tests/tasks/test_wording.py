"""Figures in words."""

from tasks.wording import describe_progress


def test_a_rate_is_said_in_the_unit_that_is_counted() -> None:
    fields = {"label": "tokenize", "done": 0.9, "total": 3.2, "unit": "MB", "per_second": 1.646}
    said = describe_progress({**fields, "tokens_per_second": 86_943, "remaining_seconds": 6.0})
    assert said == "tokenize 0.9/3.2 MB, 1.6 MB/s, 86,943 tokens/s, 6 s left"
