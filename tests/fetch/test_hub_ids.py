"""What is a model of the hub, and where its folder is."""

import pytest

from trainer.fetch.hub import parse_hub_id


@pytest.mark.parametrize(
    ("text", "id", "revision"),
    [
        ("EleutherAI/gpt-j-6B", "EleutherAI/gpt-j-6B", ""),
        ("gpt2", "gpt2", ""),
        ("a/b@v1.0", "a/b", "v1.0"),
        ("a/b@refs/pr/1", "a/b", "refs/pr/1"),
    ],
)
def test_hub_ids_are_read(text: str, id: str, revision: str) -> None:
    parsed = parse_hub_id(text)
    assert parsed is not None
    assert (parsed.id, parsed.revision) == (id, revision)


@pytest.mark.parametrize(
    "text",
    ["a/b/c", "/a", "a/", "", "a b", "../a", "a/..", "a--b/c", "a/b@", "s3://a/b", "a/b@../c"],
)
def test_other_texts_are_no_hub_ids(text: str) -> None:
    assert parse_hub_id(text) is None


def test_folder_of_a_hub_id_is_one_below_models() -> None:
    parsed = parse_hub_id("org/name@refs/pr/1")
    assert parsed is not None
    assert parsed.folder(tokenizer_only=True) == "models/org/name@refs--pr--1--tokenizer"
