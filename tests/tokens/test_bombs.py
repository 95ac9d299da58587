"""Files that are small and become large, windows that are long, vocabularies that lack bytes."""

import io

import pyarrow
import pyarrow.parquet
import pytest
import zstandard
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from tests.tokens.conftest import Volume, texts
from tests.tokens.models import EOT, save
from trainer.contract.errors import RequestError
from trainer.tokens.text.parts import whole_part
from trainer.tokens.text.reading import MOST_WINDOW_BYTES, _zstd_blocks, read_texts
from trainer.tokens.text.sources import list_sources


def refused(volume: Volume, **options: object) -> str:
    with pytest.raises(RequestError) as caught:
        volume.run(**options)
    return str(caught.value)


def packed(text: bytes, window_log: int) -> bytes:
    """As `zstd --long=WINDOW_LOG` with a pipe: the size of the text is not told."""
    level = zstandard.ZstdCompressionParameters.from_level(3, window_log=window_log)
    stream = zstandard.ZstdCompressor(compression_params=level).compressobj()
    return stream.compress(text) + stream.flush()


def test_zstandard_with_a_long_window_is_read(volume: Volume):
    text = b"The sheriff rode in.\n" * 40
    plain = volume.store({"a.txt": text})
    long = volume.store({"a.txt.zst": packed(text, 28)})
    assert texts(long) == texts(plain)


def test_a_window_that_does_not_fit_into_memory_is_named(volume: Volume):
    assert MOST_WINDOW_BYTES == 1 << 28
    volume.write({"a.txt.zst": packed(b"The sheriff rode in.\n", 30)})
    message = refused(volume)
    assert "a.txt.zst was compressed with a long window" in message
    assert "damaged" not in message


def test_a_zstandard_bomb_is_read_in_small_steps():
    bomb = zstandard.compress(b"a" * (300 << 20), level=19)
    assert len(bomb) < 1 << 16
    sizes = [len(block) for block in _zstd_blocks(io.BytesIO(bomb))]
    assert sum(sizes) == 300 << 20
    assert max(sizes) <= 34 << 20


def parquet(column: pyarrow.Array, **options: object) -> bytes:
    sink = io.BytesIO()
    pyarrow.parquet.write_table(pyarrow.table({"text": column}), sink, **options)
    return sink.getvalue()


def test_a_parquet_bomb_is_refused_by_name(volume: Volume):
    rows = pyarrow.array(["a word " * 700_000 + str(row) for row in range(64)])
    bomb = parquet(rows, compression="zstd")
    assert len(bomb) < 1 << 20
    volume.write({"a.parquet": bomb})
    message = refused(volume)
    assert "a.parquet is a decompression bomb (got column 'text'" in message


def test_rows_of_one_large_dictionary_entry_come_one_by_one(volume: Volume):
    entry = "a word " * 2_000_000
    column = pyarrow.DictionaryArray.from_arrays(pyarrow.array([0] * 16), pyarrow.array([entry]))
    volume.write({"a.parquet": parquet(column, compression="zstd")})
    (source,) = list_sources(str(volume.root), "tales")
    before, most, read = pyarrow.total_allocated_bytes(), 0, 0
    for text in read_texts(whole_part(source, "", "text")):
        assert text is not None
        most, read = max(most, pyarrow.total_allocated_bytes() - before), read + len(text.text)
    assert read == 16 * len(entry)
    assert most < 6 * len(entry)


def test_a_byte_level_vocabulary_without_all_bytes_is_encoded_by_tokenizers(
    volume: Volume, capsys: pytest.CaptureFixture
):
    vocab = {letter: at for at, letter in enumerate([EOT, *"abcdefghijklmnopqrstuvwxyz.Ġ"])}
    lacking = Tokenizer(models.BPE(vocab, []))
    lacking.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    lacking.decoder = decoders.ByteLevel()
    lacking.add_special_tokens([EOT])
    save(lacking, volume.root / "models/lacking", eos_token=EOT)
    options = {"model": "models/lacking", "boundary_token": ""}
    store = volume.store({"a.txt": "a word and Z\x0cé."}, **options)
    expected = [*lacking.encode("a word and Z é.").ids, 0]
    assert [token for ids in texts(store) for token in ids] == expected
    assert "no token for 228 of the 256 bytes" in capsys.readouterr().out
