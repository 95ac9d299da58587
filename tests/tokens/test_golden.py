"""The reference's own outputs, byte for byte, where they are: beside the checkout.

The folder is `$TOKENIZER_GOLDEN`, else `../shared/tokenizer/golden`; elsewhere these
tests are not collected, and the table, the rules and the slow model hold the same.
"""

import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

from tests.tokens.conftest import Volume
from tests.tokens.models import EOT, PAD, save

BESIDE = Path(__file__).parents[3] / "shared/tokenizer/golden"
GOLDEN = Path(os.environ.get("TOKENIZER_GOLDEN", BESIDE))
CASES = (
    json.loads((GOLDEN / "manifest.json").read_text())["cases"]
    if (GOLDEN / "manifest.json").exists()
    else []
)


def merges(path: Path) -> list[tuple[str, str]]:
    lines = path.read_text(encoding="utf-8").split("\n")[1:]
    return [tuple(line.split(" ")) for line in lines if line]  # type: ignore[misc]


def byte_level(vocab: dict[str, int], pairs: list[tuple[str, str]], *special: str) -> Tokenizer:
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=pairs))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(text, normalized=False) for text in special])
    return tokenizer


@pytest.fixture(scope="module")
def golden_volume(tmp_path_factory: pytest.TempPathFactory) -> Volume:
    root = tmp_path_factory.mktemp("golden")
    vocab = json.loads((GOLDEN / "gpt2/encoder.json").read_text(encoding="utf-8"))
    gpt2 = byte_level(vocab, merges(GOLDEN / "gpt2/vocab.bpe"), EOT)
    save(gpt2, root / "models/gpt2", eos_token=EOT, pad_token=EOT)
    pairs = merges(GOLDEN / "tiny-tokenizer/merges.txt")
    pieces = [EOT, PAD, *sorted(pre_tokenizers.ByteLevel.alphabet()), *map("".join, pairs)]
    tiny = byte_level({piece: at for at, piece in enumerate(pieces)}, pairs, EOT, PAD)
    save(tiny, root / "models/tiny", eos_token=EOT, pad_token=PAD)
    return Volume(root)


@pytest.mark.parametrize("case", CASES, ids=[case["name"] for case in CASES])
def test_a_store_holds_the_reference_s_bytes(golden_volume: Volume, case: dict):
    golden_volume.write({})
    (golden_volume.root / "tales").mkdir()
    shutil.copy(GOLDEN / case["input"], golden_volume.root / "tales")
    store = golden_volume.store(
        model=f"models/{case['tokenizer']}",
        context=case["context"],
        boundary_token=case["boundary"],
        boundary_index=case["boundary_index"],
        sanitize=case["sanitize"],
    )
    assert store.manifest.eot_token_id == case["eot_id"]
    expected = (GOLDEN / case["expected"]).read_bytes()
    if case["kind"] == "stream":
        got = np.array(store.contexts)[0, : store.lengths[0]].tobytes()
    else:
        got = (store.folder / "tokens.bin").read_bytes()
    assert got == expected
