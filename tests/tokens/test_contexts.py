"""What a context is: the table of the rules, and each rule of the packer."""

import pytest

from tests.tokens.conftest import Volume, texts
from tests.tokens.models import byte_level, spelled

ALPHABET = "#_/abcdefghijklmnopqrstuvwxyz"


def shown(store) -> list[str]:
    """Contexts as the table writes them: text, then its length."""
    rows = []
    for row, length in zip(store.contexts.tolist(), store.lengths.tolist(), strict=True):
        rows.append("".join(ALPHABET[token] for token in row) + f"({length})")
    return rows


def pack(volume: Volume, stream: str, **options: object) -> list[str]:
    """The contexts of one document; its end-of-text is the stream's last `#`."""
    usual = {"model": "models/letters", "boundary_token": "/", "sanitize": False}
    return shown(volume.store({"a.txt": stream.removesuffix("#")}, **{**usual, **options}))


@pytest.mark.parametrize(
    ("stream", "context", "index", "expected"),
    [
        ("abc/defg/hi#jk/l#", 8, -1, ["abc/defg(8)", "hi#jk/l#(8)"]),
        ("abcdefghijklmnop#", 8, -1, ["abcdefgh(8)", "ijklmnop(8)", "#_______(1)"]),
        ("abc/defg/hi#jk/l#", 8, 0, ["abc/defg(8)", "defg/hi#(8)", "hi#jk/l#(8)"]),
        ("abc/defg/hi#jk/l#", 8, 5, ["abc/defg(8)", "defg/hi#(8)", "hi#jk/l#(8)"]),
        ("abcdefg/hij#", 7, -1, ["abcdefg(7)", "hij#___(4)"]),
    ],
)
def test_table_of_the_rules(volume, stream, context, index, expected):
    assert pack(volume, stream, context=context, boundary_index=index) == expected


def test_without_a_boundary_token_the_next_context_begins_at_the_index(volume):
    made = pack(volume, "abcdefghijkl#", context=6, boundary_token="", boundary_index=3)
    assert made == ["abcdef(6)", "defghi(6)", "ghijkl(6)", "jkl#__(4)"]


def test_without_boundary_token_and_index_contexts_follow_each_other(volume):
    assert pack(volume, "abcdefgh#", context=4, boundary_token="") == [
        "abcd(4)",
        "efgh(4)",
        "#___(1)",
    ]


def test_of_two_boundaries_as_near_the_later_one_is_taken(volume):
    # Wanted position 3; boundaries at 2 and 4.
    made = pack(volume, "ab/c/defgh#", context=8, boundary_index=3)
    assert made[1].startswith("defgh#")


def test_a_boundary_that_begins_the_context_is_no_candidate(volume):
    made = pack(volume, "/abcdefghij#", context=4, boundary_index=0)
    assert made == ["/abc(4)", "defg(4)", "hij#(4)"]


def test_nothing_follows_the_context_that_holds_the_streams_end(volume):
    assert pack(volume, "ab/cdef#", context=8) == ["ab/cdef#(8)"]


def test_a_boundary_right_after_the_context_is_in_neither_and_counted(volume):
    store = volume.store(
        {"a.txt": "abcdefg/hij"},
        model="models/letters",
        boundary_token="/",
        context=7,
        sanitize=False,
    )
    assert store.manifest.totals["boundaries"] == 1
    assert store.manifest.sources[0]["dropped"]["boundaries"] == 1


def test_a_boundary_that_ends_the_stream_leaves_no_empty_context(volume):
    made = pack(volume, "abcdefg#", context=7, boundary_token="#")
    assert made == ["abcdefg(7)"]


@pytest.mark.parametrize("context", [1, 2, 3])
def test_contexts_shorter_than_a_character_still_advance(volume, context):
    store = volume.store({"a.txt": "😀𝒳é"}, context=context, boundary_token="")
    assert sum(map(len, texts(store))) == store.manifest.totals["encoded"]


def test_no_context_ends_inside_a_character(volume):
    store = volume.store({"a.txt": "𝒳𝒴𝒵" * 40}, context=7, boundary_token="", sanitize=False)
    spelling = spelled(byte_level())
    for row in texts(store):
        b"".join(spelling[token] for token in row).decode()  # raises where a character is cut
    assert store.manifest.num_padding > 0


@pytest.mark.parametrize("sampling", [1, 10, 33, 50, 99])
def test_sampling_keeps_contexts_spread_evenly(volume, sampling):
    text = "".join(chr(97 + at * at % 26) for at in range(797))
    options = {"model": "models/letters", "context": 4, "boundary_token": ""}
    whole = texts(volume.store({"a.txt": text}, **options))
    kept = texts(volume.store(None, **options, sampling=sampling))
    wanted = [at for at in range(200) if (at + 1) * sampling // 100 > at * sampling // 100]
    assert kept == [whole[at] for at in wanted]


def test_shuffle_draws_an_order_of_the_finished_contexts(volume):
    files = {f"{at}.txt": f"story {at} about a rider and a well\n" * 20 for at in range(9)}
    plain = volume.store(files)
    one = volume.store(None, reorder="shuffle", random_seed=1)
    other = volume.store(None, reorder="shuffle", random_seed=2)
    assert texts(one) != texts(plain) != texts(other) != texts(one)
    assert sorted(texts(one)) == sorted(texts(plain)) == sorted(texts(other))
    # What tells where a context came from is shuffled with it.
    origins = {tuple(row): plain.document_of(at) for at, row in enumerate(texts(plain))}
    assert [one.document_of(at) for at in range(len(texts(one)))] == [
        origins[tuple(row)] for row in texts(one)
    ]


def test_a_large_vocabulary_is_stored_in_32_bits(volume):
    store = volume.store(
        {"a.txt": "abc"}, model="models/many", boundary_token="<69999>", eot_token="70028"
    )
    assert store.manifest.dtype == "uint32"
    assert store.contexts.dtype == "uint32"
    assert store.contexts[0, 3] == 70028
