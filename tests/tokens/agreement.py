"""Whether the store of a random corpus agrees with the slow model of the rules."""

import itertools
import os
from hashlib import blake2b

import numpy as np

from tests.tokens import rules
from tests.tokens.conftest import Volume, texts
from tests.tokens.corpora import COMPRESS, DECOMPRESS, Corpus
from tests.tokens.models import EOT, LLAMA, PAD, beginning, byte_level, spelled
from trainer.contract.errors import RequestError
from trainer.tokens.pack.build import drawn_order
from trainer.tokens.store import TokenStore

TOKENIZERS = {
    "models/bytes": byte_level(),
    "models/llama": byte_level(LLAMA),
    "models/begins": beginning(),
}
SPELLED = {name: spelled(tokenizer) for name, tokenizer in TOKENIZERS.items()}


def ordered(files: dict[str, bytes], reorder: str, seed: int) -> list[str]:
    """Rule 2."""
    names = sorted(files, key=str.encode)
    if reorder == "name_descending":
        return names[::-1]
    if reorder == "size_ascending":
        return sorted(names, key=lambda name: (len(files[name]), name.encode()))
    if reorder == "size_descending":
        return sorted(names, key=lambda name: (-len(files[name]), name.encode()))
    if reorder == "random":
        key = str(seed).encode()
        return sorted(names, key=lambda n: blake2b(n.encode(), digest_size=16, key=key).digest())
    return names


class Expected:
    """What the slow model says of a corpus."""

    def __init__(self, corpus: Corpus) -> None:
        self.options = options = corpus.options
        self._tokenizer = TOKENIZERS[options["model"]]
        eot = self._one("eot_token", EOT)
        self.names = ordered(corpus.files, options["reorder"], options["random_seed"])
        self.documents: dict[tuple[str, int], list[int]] = {}
        for name in self.names:
            stem, suffix = os.path.splitext(name)
            plain, suffix = (stem, suffix) if suffix in COMPRESS else (name, "")
            texts = rules.documents(plain, DECOMPRESS[suffix](corpus.files[name]))
            ids = rules.encoded(texts, self._encode, self._before(), eot, options["sanitize"])
            self.documents |= {(name, number): of for number, of in enumerate(ids, 1)}
        self.pad = self._one("pad_token", PAD)

    def _encode(self, texts: list[str]) -> list[list[int]]:
        found = self._tokenizer.encode_batch_fast(texts, add_special_tokens=False)
        return [one.ids for one in found]

    def _before(self) -> list[int]:
        """What the tokenizer puts before a text."""
        whole = self._tokenizer.encode("a")
        return whole.ids[: whole.special_tokens_mask.index(0)]

    def _one(self, name: str, usual: str = "") -> int:
        return self._encode([(self.options[name] or usual).replace("\\n", "\n")])[0][0]

    def stream(self) -> list[int]:
        """The ids of all documents."""
        return [token for ids in self.documents.values() for token in ids]

    def contexts(self, ids: list[int], held: bool = False) -> tuple[np.ndarray, np.ndarray]:
        """Kept contexts of one stream: all their ids, one after another, and their lengths."""
        options = self.options
        boundary = self._one("boundary_token") if options["boundary_token"] else None
        spelled = SPELLED[options["model"]]
        spans = rules.contexts(
            ids, spelled, options["context"], boundary, options["boundary_index"]
        )
        kept = rules.sampled(len(spans), options["sampling"], held)
        if options["reorder"] == "shuffle":
            kept = [kept[at] for at in drawn_order(len(kept), options["random_seed"])]
        some = [spans[at] for at in kept]
        flat = list(itertools.chain.from_iterable(ids[begin:end] for begin, end in some))
        return np.array(flat, np.int64), np.array([end - begin for begin, end in some], np.int64)


def disagreement(volume: Volume, corpus: Corpus) -> str:
    """Empty where the store of `corpus` is what the slow model says, else what differs."""
    expected = Expected(corpus)
    files: dict[str, bytes | str] = dict(corpus.files)
    try:
        store = volume.store(files, **corpus.options)
    except RequestError as error:  # nothing to store; see test_bad_input
        return str(error) if len(expected.contexts(expected.stream())[1]) else ""
    if [source["path"] for source in store.manifest.sources] != expected.names:
        return "the files are in another order"
    streams = (expected.stream(), [])
    if corpus.options["train_ratio"] < 1:
        try:
            streams = divided(store, _in_contexts(volume, store, corpus.options), expected)
        except ValueError as error:
            return str(error)
    wanted = [
        expected.contexts(ids, held) for ids, held in zip(streams, (False, True), strict=True)
    ]
    if len(wanted[0][1]) != store.manifest.num_train_contexts:
        return f"{store.manifest.num_train_contexts} training contexts, not {len(wanted[0][1])}"
    flat, lengths = (np.concatenate(column) for column in zip(*wanted, strict=True))
    return _difference(store, flat, lengths) or _sums(store, expected)


def _difference(store: TokenStore, flat: np.ndarray, lengths: np.ndarray) -> str:
    """Whether the store's contexts are the ids `flat`, cut into `lengths`."""
    rows, got = np.array(store.contexts), np.array(store.lengths)
    text = np.arange(store.manifest.context)[None, :] < got[:, None]
    if not np.array_equal(got, lengths) or not np.array_equal(rows[text], flat):
        pairs = zip(texts(store), np.split(flat, np.cumsum(lengths)), strict=False)
        for at, (one, other) in enumerate(pairs):
            if one != other.tolist():
                return f"context {at}: {one} is not {other.tolist()}"
        return f"{len(got)} contexts, not {len(lengths)}"
    if not (rows[~text] == store.manifest.pad_token_id).all():
        return "padding is not the pad token"
    return ""


def _sums(store: TokenStore, expected: Expected) -> str:
    """Whether ids and ledger are what they have to be."""
    if store.manifest.pad_token_id != expected.pad:
        return f"the pad token is {store.manifest.pad_token_id}, not {expected.pad}"
    totals = store.manifest.totals
    used = totals["in_contexts"] + totals["boundaries"] + totals["sampled_out"]
    if totals["encoded"] + totals["repeated"] != used:
        return f"the ledger does not add up: {totals}"
    if totals["encoded"] != len(expected.stream()):
        return f"{totals['encoded']} tokens were encoded, not {len(expected.stream())}"
    return ""


def divided(store: TokenStore, seen: np.ndarray, expected: Expected) -> tuple[list[int], list[int]]:
    """The training stream and the held-out one: which text is held out is the store's choice.

    The slow model says what each part's ids are; the store where parts begin and end, and
    by what is `seen` of it which of a document's parts is first.
    Raises ValueError unless every document is there once, its parts on either side in turn.
    """
    size = store.manifest.totals["encoded"]
    train = size - store.manifest.totals["held_out_tokens"]
    starts = [*store.documents["start"].tolist(), size]
    sides: dict[tuple[str, int], list[list[tuple[int, int]]]] = {}
    for record, begin, end in zip(store.documents, starts, starts[1:], strict=False):
        key = (expected.names[int(record["file"])], int(record["number"]))
        sides.setdefault(key, [[], []])[begin >= train].append((begin, end))
    stream = np.full(size, -1)
    for key, ids in expected.documents.items():
        if ids:
            _lay(ids, sides.pop(key, [[], []]), seen, stream, key)
    if sides or (stream < 0).any():
        raise ValueError(f"documents that are not in the files: {list(sides)[:3]}")
    return stream[:train].tolist(), stream[train:].tolist()


def _lay(ids: list[int], sides: list, seen: np.ndarray, stream: np.ndarray, key: object) -> None:
    """Put a document's ids where its parts are; either side may have the first."""
    for one, other in ((sides[0], sides[1]), (sides[1], sides[0])):
        if len(one) - len(other) not in (0, 1):
            continue
        pairs = itertools.zip_longest(one, other)
        parts = [part for pair in pairs for part in pair if part]
        places = np.concatenate([np.arange(begin, end) for begin, end in parts])
        if len(places) != len(ids):
            break
        if ((seen[places] == ids) | (seen[places] < 0)).all():
            stream[places] = ids
            return
    raise ValueError(f"document {key} is not there once: parts {sides} of {len(ids)} ids")


def _in_contexts(volume: Volume, store: TokenStore, options: dict) -> np.ndarray:
    """The streams as far as contexts show them, -1 elsewhere; shape (encoded tokens,)."""
    whole = volume.store(None, **{**options, "sampling": 100})
    if np.array_equal(whole.documents, store.documents):  # else nothing is held out of `store`
        store = whole
    seen = np.full(store.manifest.totals["encoded"], -1)
    columns = np.arange(store.manifest.context)[None, :]
    text = columns < np.array(store.lengths, np.int64)[:, None]
    begins = np.array(store.begins, np.int64)
    seen[(begins[:, None] + columns)[text]] = np.array(store.contexts)[text]
    return seen
