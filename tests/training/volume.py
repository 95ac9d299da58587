"""A small volume to train on: a tiny model of each architecture, a tokenizer, a token store."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    GPTJConfig,
    GPTJForCausalLM,
    GPTNeoXConfig,
    GPTNeoXForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
)

from trainer.tokens.store import (
    DOCUMENT,
    FILES,
    FORMAT,
    MASK,
    Manifest,
    TokenStore,
    file_digest,
)

VOCABULARY = 96
CONTEXT = 16
CHAT_TEMPLATE = "{% for m in messages %}{{ 'w1 ' + m.content + ' w2 ' }}{% endfor %}"
EOT = 0  # padding, too: they are one token, as in the reference


def make_model(architecture: str, dropout: float = 0.0, positions: int = CONTEXT * 2) -> Any:
    torch.manual_seed(7)
    if architecture == "gptj":
        return GPTJForCausalLM(
            GPTJConfig(
                vocab_size=VOCABULARY,
                n_embd=32,
                n_layer=2,
                n_head=2,
                rotary_dim=8,
                n_positions=positions,
                resid_pdrop=dropout,
                embd_pdrop=dropout,
                attn_pdrop=dropout,
                bos_token_id=EOT,
                eos_token_id=EOT,
                tie_word_embeddings=False,
            )
        )
    shared = {
        "vocab_size": VOCABULARY,
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "intermediate_size": 64,
        "max_position_embeddings": positions,
        "bos_token_id": EOT,
        "eos_token_id": EOT,
    }
    if architecture == "neox":
        return GPTNeoXForCausalLM(
            GPTNeoXConfig(**shared, hidden_dropout=dropout, attention_dropout=dropout)
        )
    return LlamaForCausalLM(
        LlamaConfig(**shared, attention_dropout=dropout, tie_word_embeddings=True)
    )


def make_tokenizer() -> PreTrainedTokenizerFast:
    """Words w0 to w95, split at spaces; the first is end of text."""
    words = {"<eot>": EOT, **{f"w{i}": i for i in range(1, VOCABULARY)}}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="<eot>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token="<eot>", bos_token="<eot>", pad_token="<eot>"
    )


def make_volume(
    root: Path,
    architecture: str = "gptj",
    contexts: int = 21,
    held_out: int = 4,
    dropout: float = 0.0,
    wide: bool = False,
    masked: bool = False,
) -> Path:
    """A volume with models/tiny and tokens/tiny; some contexts are shorter than the rest.

    Args:
        masked: As of chats: about a third of the ids is trained, of each context at least one.
    """
    model_folder = root / "models" / "tiny"
    make_model(architecture, dropout).save_pretrained(model_folder)
    make_tokenizer().save_pretrained(model_folder)
    rng = np.random.default_rng(3)
    lengths = rng.integers(CONTEXT // 2, CONTEXT + 1, contexts + held_out).astype("<u4")
    ids = rng.integers(1, VOCABULARY, (contexts + held_out, CONTEXT))
    ids[:, 1::2] = (ids[:, 0::2] * 7 + 1) % (VOCABULARY - 1) + 1  # something to learn
    ids[np.arange(CONTEXT) >= lengths[:, None]] = EOT
    trained = None
    if masked:
        trained = rng.random(ids.shape) < 1 / 3
        trained[:, 1] = True
        trained &= (np.arange(CONTEXT) < lengths[:, None]) & (np.arange(CONTEXT) > 0)
    stored = ids.astype("<u4" if wide else "<u2")
    write_store(root / "tokens" / "tiny", stored, lengths, contexts, trained)
    return root


def write_store(
    folder: Path,
    ids: np.ndarray,
    lengths: np.ndarray,
    num_train: int,
    trained: np.ndarray | None = None,
    documents: np.ndarray | None = None,
    options: dict[str, Any] | None = None,
    context: int = 0,
) -> None:
    """Write a store.

    Args:
        documents: Of the stream; None: each context is one.
        context: Where it is not the width of `ids`.
    """
    folder.mkdir(parents=True)
    names = FILES
    if trained is not None:
        names += (MASK,)  # type: ignore[assignment]
        (folder / MASK).write_bytes(np.packbits(trained, axis=1, bitorder="little").tobytes())
    begins = np.concatenate(([0], np.cumsum(lengths[:-1], dtype="<u8"))).astype("<u8")
    if documents is None:
        documents = np.array([(int(b), 0, n) for n, b in enumerate(begins, 1)], dtype=DOCUMENT)
    for name, array in zip(FILES, (ids, lengths, begins, documents), strict=True):
        (folder / name).write_bytes(array.tobytes())
    fields: dict[str, Any] = dict.fromkeys(Manifest.__dataclass_fields__, 0)
    fields |= {
        "format": FORMAT,
        "key": "tiny",
        "dtype": "uint32" if ids.dtype.itemsize == 4 else "uint16",
        "context": context or ids.shape[1],
        "num_contexts": len(ids),
        "num_train_contexts": num_train,
        "num_tokens": int(lengths.sum()),
        "num_padding": int(ids.size - lengths.sum()),
        "eot_token_id": EOT,
        "pad_token_id": EOT,
        "vocab_size": VOCABULARY,
        "tokenizer_digest": "0" * 64,
        "added_tokens": [],
        "encoder": "test",
        "options": options or {},
        "totals": {},
        "left_out": {},
        "sources": [{"path": "dataset/made-up.txt"}],
        "digests": {
            name: {"bytes": (folder / name).stat().st_size, "sha256": file_digest(folder / name)}
            for name in names
        },
        "chat": {} if trained is None else {"template": CHAT_TEMPLATE},
    }
    (folder / "manifest.json").write_text(Manifest(**fields).to_json(), encoding="utf-8")


def make_packed_volume(
    root: Path, architecture: str = "gptj", together: int = 2, **more: Any
) -> Path:
    """The masked volume's records in contexts of twice their length, `together` in each."""
    make_volume(root, architecture, contexts=20, masked=True, **more)
    store = TokenStore.open(root / "tokens" / "tiny")
    count, each = store.manifest.num_contexts, np.array(store.lengths)
    kept = store.trained(np.arange(count))
    assert kept is not None
    shape = (count // together, 2 * CONTEXT)
    ids, trained = np.full(shape, EOT, "<u2"), np.zeros(shape, bool)
    lengths = each.reshape(-1, together).sum(1).astype("<u4")
    starts = np.cumsum(each) - each
    for record in range(count):
        row, begin = record // together, starts[record] - starts[record - record % together]
        place = slice(begin, begin + each[record])
        ids[row, place] = store.contexts[record, : each[record]]
        trained[row, place] = kept[record, : each[record]]
    documents = np.array([(int(b), 0, n) for n, b in enumerate(starts, 1)], dtype=DOCUMENT)
    shutil.rmtree(store.folder)
    packing = {"packing": "documents 1"} if together > 1 else {}
    train = 20 // together
    write_store(store.folder, ids, lengths, train, trained, documents, packing)
    return root


def make_pairs(count: int) -> list[tuple[list[int], list[int], list[int]]]:
    """Prompt, better and worse answer as ids; the better ones follow a rule."""
    rng, pairs = np.random.default_rng(5), []
    for _ in range(count):
        prompt = rng.integers(1, VOCABULARY, rng.integers(2, 5)).tolist()
        rejected = rng.integers(1, VOCABULARY, rng.integers(2, 9)).tolist()
        chosen = [(prompt[-1] * 7 + at) % (VOCABULARY - 1) + 1 for at in range(rng.integers(2, 9))]
        pairs.append((prompt, [*chosen, EOT], [*rejected, EOT]))
    return pairs


def make_pair_volume(
    root: Path, architecture: str = "gptj", pairs: int = 21, held_out: int = 4, **more: Any
) -> Path:
    """A volume with models/tiny and tokens/tiny, whose contexts are the pairs of `make_pairs`."""
    make_model(architecture, **more).save_pretrained(root / "models" / "tiny")
    make_tokenizer().save_pretrained(root / "models" / "tiny")
    shape = (pairs + held_out, 2 * CONTEXT)
    ids, trained = np.full(shape, EOT, "<u2"), np.zeros(shape, bool)
    lengths, documents, start = [], [], 0
    for row, (prompt, *answers) in enumerate(make_pairs(pairs + held_out)):
        at = 0
        for answer in answers:
            documents.append((start + at, 0, row + 1))
            ids[row, at : at + len(prompt) + len(answer)] = [*prompt, *answer]
            trained[row, at + len(prompt) : at + len(prompt) + len(answer)] = True
            at += len(prompt) + len(answer)
        lengths.append(at)
        start += at
    options = {"records": {"pairs": 1}}
    parts, sizes = np.array(documents, DOCUMENT), np.array(lengths, "<u4")
    folder = root / "tokens" / "tiny"
    write_store(folder, ids, sizes, pairs, trained, parts, options, context=CONTEXT)
    return root


def make_config(volume: Path, **changes: Any) -> dict[str, Any]:
    """A finetune config for the volume: 21 contexts, 2 x 2 a step, 2 epochs."""
    config: dict[str, Any] = {
        "volume": str(volume),
        "run_name": "run",
        "model": "models/tiny",
        "tokens": "tokens/tiny",
        "batch_size": 2,
        "gradients": 2,
        "epochs": 2,
        "learn_rate": 0.01,
        "save_steps": 4,
        "zero_stage": 0,
        "request": {"run_name": "run", "epochs": 2},
    }
    return config | changes


def read_lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
