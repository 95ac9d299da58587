"""Take over the reference's `.tokens` file as a store: its contexts as they are.

The file is `(num_contexts, context)` ids, little-endian uint16, without a header, as
the reference's tokenizer writes it and its trainer reads it. What it does not say is
told by the request: the tokenizer, `context`, and the padding token.
Source: TokenizedDataset in finetuner-workflow/finetuner/finetuner.py of
coreweave/kubernetes-cloud.
"""

import re
from pathlib import Path
from typing import Any

import numpy as np

from trainer.contract.errors import RequestError
from trainer.contract.files import write_atomically
from trainer.contract.sealed_folder import file_record
from trainer.contract.step_configs import TokenizeConfig
from trainer.contract.volume import is_url
from trainer.tokens import store as stores
from trainer.tokens.encode.vocabulary import TokenIds, resolve
from trainer.tokens.store import Manifest
from trainer.tokens.store_request import StoreRequest
from trainer.tokens.text.sources import Source

SUFFIX = ".tokens"
ID = np.dtype("<u2")
ENCODER = "the reference's"
# `{dataset}-{model}-{context}-b{boundary_index}-{tag}.tokens`; older ones end at the context.
_NAMED_CONTEXT = re.compile(r"-(\d+)(?:-b-?\d+-\w+)?\.tokens$")
_CONTEXTS_AT_ONCE = 4096


def is_token_file(dataset: str) -> bool:
    """Whether the dataset is one file of the reference's token contexts."""
    return dataset.endswith(SUFFIX)


def count_token_contexts(config: TokenizeConfig, source: Source) -> int:
    """Contexts in the file, from its size and name.

    Raises:
        RequestError: It was made for another context, or an option can't be applied to it.
    """
    problems = [
        f"{name} is for text (got {getattr(config, name)!r}). "
        "A .tokens file is taken as it is: leave it at its default, or name the text."
        for name, untouched in (("sampling", (100,)), ("reorder", ("", "none")))
        if getattr(config, name) not in untouched
    ]
    if is_url(config.dataset):
        problems.append(f"dataset is not on the volume (got {config.dataset!r}). Copy it there.")
    named = _NAMED_CONTEXT.search(config.dataset)
    if named and int(named[1]) != config.context:
        problems.append(
            f"context is not that of the dataset (got {config.context}). "
            f"{config.dataset} has contexts of {named[1]}. Set context={named[1]}."
        )
    elif not source.size or source.size % (config.context * ID.itemsize):
        problems.append(
            f"dataset holds no whole contexts of {config.context} ids (got {config.dataset!r} "
            f"with {source.size:,} bytes). Set context to what it was made with."
        )
    if problems:
        raise RequestError(*problems)
    return source.size // (config.context * ID.itemsize)


def num_train(config: TokenizeConfig, num_contexts: int) -> int:
    """How many contexts come first, for training; of twenty at least one is held out."""
    most = num_contexts - (config.train_ratio < 1 and num_contexts >= 20)
    return min(round(num_contexts * config.train_ratio), most)


def make_store(asked: StoreRequest, folder: Path) -> None:
    """Make the store of the one `.tokens` file in `folder`; the manifest last.

    Raises:
        RequestError: It is not what the request says, or of another tokenizer.
    """
    config = asked.config
    if config.data.bos:
        raise RequestError(
            f"data.bos has no effect on a .tokens file (got {config.data.bos!r}). "
            "Its texts are tokens already. Leave data.bos out, or name the text as dataset."
        )
    (source,) = asked.sources
    num_contexts = count_token_contexts(config, source)
    vocabulary = asked.load_vocabulary()
    ids = resolve(vocabulary, config.eot_token, config.pad_token, config.boundary_token)
    if vocabulary.dtype != ID:
        raise RequestError(
            f"tokenizer has more tokens than a .tokens file can hold (got {vocabulary.size:,}). "
            "Its ids have 16 bits. Name the text as dataset."
        )
    shape = (num_contexts, config.context)
    contexts = np.memmap(source.location, dtype=ID, mode="r", shape=shape)
    lengths = _write(config, folder, contexts, vocabulary.size, ids)
    num_tokens, train = int(lengths.sum()), num_train(config, num_contexts)
    held_out = int(lengths[train:].sum())
    row, totals = _ledger(source, asked.digests[0], num_contexts, num_tokens, held_out)
    manifest = Manifest(
        format=stores.FORMAT,
        key=asked.key,
        dtype=ID.name,
        context=config.context,
        num_contexts=num_contexts,
        num_train_contexts=train,
        num_tokens=num_tokens,
        num_padding=num_contexts * config.context - num_tokens,
        eot_token_id=ids.eot,
        pad_token_id=ids.pad,
        boundary_token_id=ids.boundary,
        vocab_size=vocabulary.size,
        tokenizer_digest=vocabulary.digest,
        added_tokens=vocabulary.added_tokens,
        encoder=ENCODER,
        options=asked.options,
        totals=totals,
        sources=[row],
        digests={
            name: {**file_record(folder / name), **file_record(folder / name, stores.FAST)}
            for name in stores.FILES
        },
    )
    write_atomically(folder / stores.MANIFEST, manifest.to_json())


def _write(
    config: TokenizeConfig, folder: Path, contexts: np.ndarray, num_ids: int, ids: TokenIds
) -> np.ndarray:
    """Write the store's files; returns how many ids of each context are text."""
    lengths = np.empty(len(contexts), "<u4")
    with open(folder / "tokens.bin", "wb") as file:
        for begin in range(0, len(contexts), _CONTEXTS_AT_ONCE):
            block = contexts[begin : begin + _CONTEXTS_AT_ONCE]
            if block.max() >= num_ids:
                raise RequestError(
                    f"dataset was made with another tokenizer (got token id {block.max():,} in "
                    f"{config.dataset!r}). This one has {num_ids:,}. Name the one it was made with."
                )
            place = np.arange(1, config.context + 1)
            last = np.where(block != ids.pad, place, 1).max(axis=1)
            lengths[begin : begin + len(block)] = last
            file.write(block.tobytes())
    if ids.pad == ids.eot:
        # An end of text looks like padding there: its own trainer, too, cuts the last one only.
        lengths[:-1] = config.context
        lengths[-1] = min(config.context, lengths[-1] + 1)  # the first of them is the text's end
    begins = np.cumsum(lengths, dtype="<u8") - lengths
    lengths.tofile(folder / "lengths.bin")
    begins.astype("<u8").tofile(folder / "begins.bin")
    np.array([(0, 0, 1)], stores.DOCUMENT).tofile(folder / "documents.bin")
    return lengths


def _ledger(
    source: Source, digest: str, num_contexts: int, num_tokens: int, held_out: int
) -> tuple[dict[str, Any], dict[str, int]]:
    """The file's row of the manifest's table, and its sums: see ledger.py."""
    dropped = dict.fromkeys(("empty_documents", "blank_lines", "boundaries", "sampled_out"), 0)
    counts = {"in_contexts": num_tokens, "repeated": 0}
    row = {
        "path": source.path,
        "bytes": source.size,
        "sha256": digest,
        "documents": 1,
        "tokens": num_tokens,
        "held_out_tokens": held_out,
        "contexts": num_contexts,
        **counts,
        "dropped": dropped,
    }
    sums = {"documents": 1, "held_out_tokens": held_out, "encoded": num_tokens}
    return row, {**sums, **counts, **dropped}
