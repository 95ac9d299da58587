"""The property: any corpus and any options give what the slow model of the rules gives."""

import random
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.tokens.agreement import disagreement, random_corpus
from tests.tokens.conftest import Volume

# The volume may be kept from one example to the next: a store's key is its content.
SLOW_FIXTURE = [HealthCheck.function_scoped_fixture, HealthCheck.too_slow]


@settings(max_examples=60, deadline=None, suppress_health_check=SLOW_FIXTURE, derandomize=True)
@given(seed=st.integers(0, 2**32), documents=st.integers(1, 30))
def test_a_store_is_what_the_slow_model_says(volume: Volume, seed: int, documents: int):
    corpus = random_corpus(random.Random(seed), documents)
    difference = disagreement(volume, corpus)
    assert not difference, f"{difference} in {corpus}"


@pytest.mark.parametrize("seed", range(2))
def test_a_large_corpus_agrees_too(volume: Volume, seed: int):
    corpus = random_corpus(random.Random(1000 + seed), 500)
    assert not disagreement(volume, corpus), Path(volume.root)
