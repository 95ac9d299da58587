"""The reference's `.tokens` files as a dataset."""

import shutil

import numpy as np
import pytest

from tests.tokens.conftest import Volume, texts
from tests.tokens.prose import story
from trainer.contract.errors import RequestError
from trainer.plan.context_count import count_contexts

STORIES: dict[str, bytes | str] = {f"{at}.txt": story(at, 900) for at in range(6)}
FILE = "tales-models_bytes-32-b-1-edd9879.tokens"


@pytest.fixture
def imported(volume: Volume) -> Volume:
    """With the tokens of STORIES as a file that the reference would have left."""
    shutil.copy(volume.store(STORIES).folder / "tokens.bin", volume.root / FILE)
    return volume


def test_its_contexts_are_those_of_the_text(imported: Volume) -> None:
    made = imported.store()
    taken = imported.store(dataset=FILE)
    assert texts(taken) == texts(made)
    assert (taken.folder / "tokens.bin").read_bytes() == (imported.root / FILE).read_bytes()
    assert taken.manifest.num_tokens == made.manifest.num_tokens
    assert taken.document_of(len(texts(taken)) - 1)[0].path == FILE
    assert imported.run(dataset=FILE).reused


def test_its_end_is_held_out_as_planned(imported: Volume) -> None:
    asked = {"dataset": FILE, "train_ratio": 0.75}
    counted = count_contexts(imported.config(**asked))
    manifest = imported.store(**asked).manifest
    assert not counted.estimated
    assert counted.num_contexts == manifest.num_contexts
    assert counted.num_train_contexts == manifest.num_train_contexts
    assert manifest.num_train_contexts == round(0.75 * manifest.num_contexts)
    nearly_all = imported.store(dataset=FILE, train_ratio=0.999).manifest
    assert nearly_all.num_contexts - nearly_all.num_train_contexts == 1


def test_where_padding_is_end_of_text_only_the_last_context_is_cut(volume: Volume) -> None:
    eot = 0
    contexts = np.full((3, 32), 5, "<u2")
    contexts[0, 30:] = contexts[2, 7:] = eot
    contexts.tofile(volume.root / "old.tokens")
    store = volume.store(dataset="old.tokens", pad_token="<|endoftext|>")
    assert store.lengths.tolist() == [32, 32, 8]  # with the end of the text itself


@pytest.mark.parametrize(
    ("changed", "word"),
    [
        ({"context": 16}, "context=32"),
        ({"sampling": 50}, "sampling"),
        ({"reorder": "shuffle"}, "reorder"),
        ({"model": "models/letters"}, "another tokenizer"),
        ({"model": "models/many"}, "16 bits"),
    ],
)
def test_what_does_not_fit_it_is_refused_by_name(
    imported: Volume, changed: dict[str, object], word: str
) -> None:
    boundary = {"boundary_token": ""} if "model" in changed else {}
    with pytest.raises(RequestError, match=word):
        imported.run(dataset=FILE, **changed, **boundary)


def test_a_file_that_was_cut_short_is_refused(imported: Volume) -> None:
    path = imported.root / FILE
    path.write_bytes(path.read_bytes()[:-2])
    with pytest.raises(RequestError, match="no whole contexts"):
        imported.run(dataset=FILE)
