"""The property: any corpus and any options give what the slow model of the rules gives."""

import random
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.tokens.agreement import disagreement
from tests.tokens.conftest import Volume
from tests.tokens.corpora import random_corpus
from tests.tokens.rules import after_boundary
from tests.tokens.seams import narrow

# The volume may be kept from one example to the next: a store's key is its content.
SLOW_FIXTURE = [HealthCheck.function_scoped_fixture, HealthCheck.too_slow]


@settings(max_examples=60, deadline=None, suppress_health_check=SLOW_FIXTURE, derandomize=True)
@given(seed=st.integers(0, 2**32), documents=st.integers(1, 30))
def test_a_store_is_what_the_slow_model_says(volume: Volume, seed: int, documents: int):
    draw = random.Random(seed)
    with narrow(draw) as sizes:
        corpus = random_corpus(draw, documents)
        difference = disagreement(volume, corpus)
    assert not difference, f"{difference} in {corpus} with {sizes}"


@pytest.mark.parametrize("seed", range(2))
def test_a_large_corpus_agrees_too(volume: Volume, seed: int):
    corpus = random_corpus(random.Random(1000 + seed), 500)
    assert not disagreement(volume, corpus), Path(volume.root)


@settings(max_examples=200, deadline=None, derandomize=True)
@given(
    boundaries=st.lists(st.integers(0, 30), unique=True).map(sorted),
    begin=st.integers(0, 20),
    length=st.integers(1, 12),
    index=st.integers(-1, 40),
)
def test_the_slow_models_bisection_is_the_rule_read_out(
    boundaries: list[int], begin: int, length: int, index: int
):
    end = begin + length
    candidates = [at for at in boundaries if begin < at <= end]
    wanted = end
    if candidates and index < 0:
        wanted = candidates[-1] + 1
    elif candidates:
        wanted = min(candidates, key=lambda at: (abs(at - begin - index), -at)) + 1
    assert after_boundary(boundaries, begin, end, index) == wanted
