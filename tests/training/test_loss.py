"""The loss without full logits, and GPT-J's attention, against transformers' own."""

from pathlib import Path

import pytest
import torch
from torch.nn import functional
from transformers import AutoModelForCausalLM, GraniteConfig

from tests.training.volume import CONTEXT, VOCABULARY, make_model
from trainer.models import empty_model, load_model
from trainer.training.engine import loss as loss_module
from trainer.training.engine.loss import CausalLoss

ARCHITECTURES = ["gptj", "neox", "llama"]


def batch() -> tuple[torch.Tensor, torch.Tensor]:
    torch.manual_seed(1)
    return torch.randint(1, VOCABULARY, (3, CONTEXT)), torch.tensor([CONTEXT, 5, 1])


def plain_loss(model: torch.nn.Module, ids: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
    """The definition: sum of -log p(next id) over all text but the first id."""
    logits = model(input_ids=ids).logits
    rows = [
        functional.cross_entropy(row[: n - 1], text[1:n], reduction="sum")
        for row, text, n in zip(logits, ids, lengths.tolist(), strict=True)
        if n > 1
    ]
    return torch.stack(rows).sum()


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("chunk", [VOCABULARY * 4, 2**24])
def test_loss_and_gradients_are_those_of_the_definition(
    architecture: str, chunk: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loss_module, "CHUNK_ELEMENTS", chunk)
    ids, lengths = batch()
    ours, theirs = make_model(architecture), make_model(architecture)
    wrapped = CausalLoss(ours)
    assert wrapped.chunked
    expected, found = plain_loss(theirs, ids, lengths), wrapped(ids, lengths)
    torch.testing.assert_close(found, expected)
    (expected / 7).backward()
    (found / 7).backward()
    for (name, a), b in zip(ours.named_parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(a.grad, b.grad, rtol=1e-4, atol=1e-6, msg=name)


def test_gradients_in_16_bits_are_summed_in_32() -> None:
    head = torch.nn.Linear(8, 64, bias=False)
    head.__class__ = loss_module._LossHead
    exact = head.weight.detach().clone().requires_grad_()
    head.to(torch.bfloat16)
    hidden = torch.randn(4096, 8).to(torch.bfloat16)
    targets = torch.randint(0, 64, (4096,))
    functional.cross_entropy(hidden.float() @ exact.T, targets, reduction="sum").backward()
    whole = loss_module.CHUNK_ELEMENTS
    try:
        loss_module.CHUNK_ELEMENTS = 64 * 4  # a thousand chunks
        head(hidden, targets).backward()
    finally:
        loss_module.CHUNK_ELEMENTS = whole
    error = (head.weight.grad.float() - exact.grad).norm() / exact.grad.norm()
    assert float(error) < 0.02


def test_a_head_that_does_more_than_a_matrix_product_is_kept() -> None:
    model = make_model("llama")
    head = model.get_output_embeddings()

    class Scaled(torch.nn.Linear):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return super().forward(x) * 0.5

    head.__class__ = Scaled
    ids, lengths = batch()
    wrapped = CausalLoss(model)
    assert not wrapped.chunked
    torch.testing.assert_close(wrapped(ids, lengths), plain_loss(model, ids, lengths))


def test_what_comes_after_the_head_is_seen_before_the_weights_are_there() -> None:
    config = GraniteConfig(
        vocab_size=VOCABULARY,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=1,
        num_attention_heads=2,
        logits_scaling=4.0,
    )
    for model in (AutoModelForCausalLM.from_config(config), make_model("llama")):
        for parameter in model.parameters():
            parameter.data.zero_()
        assert CausalLoss(model).chunked == (model.config.model_type == "llama")


def test_logits_never_exist_as_a_whole() -> None:
    vocabulary, rows = 4096, 4096
    head = torch.nn.Linear(8, vocabulary, bias=False)
    head.__class__ = loss_module._LossHead
    hidden = torch.randn(rows, 8, requires_grad=True)
    sizes = []

    class Watch(torch.overrides.TorchFunctionMode):
        def __torch_function__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
            out = func(*args, **(kwargs or {}))
            if torch.is_tensor(out):
                sizes.append(out.numel())
            return out

    with Watch():
        head(hidden, torch.randint(0, vocabulary, (rows,)))
    assert 0 < max(sizes) <= loss_module.CHUNK_ELEMENTS == rows * vocabulary
    sizes.clear()
    with Watch():
        head(hidden.repeat(4, 1), torch.randint(0, vocabulary, (4 * rows,)))
    assert max(sizes) <= loss_module.CHUNK_ELEMENTS


def test_nothing_to_train_on_is_a_loss_of_zero_with_gradients() -> None:
    model = CausalLoss(make_model("gptj"))
    loss = model(torch.zeros((1, 2), dtype=torch.int64), torch.zeros(1, dtype=torch.int64))
    loss.backward()
    assert float(loss.detach()) == 0.0


def test_gptj_attends_the_same_by_sdpa_as_eagerly(tmp_path: Path) -> None:
    make_model("gptj").save_pretrained(tmp_path)
    model = load_model(tmp_path)
    assert model.config._attn_implementation == "sdpa"
    eager = AutoModelForCausalLM.from_pretrained(tmp_path, attn_implementation="eager")
    ids, lengths = batch()
    mask = (torch.arange(CONTEXT) < lengths[:, None]).long()
    with torch.no_grad():
        ours = model(input_ids=ids, attention_mask=mask).logits[mask.bool()]
        theirs = eager.eval()(input_ids=ids, attention_mask=mask).logits[mask.bool()]
    assert eager.config._attn_implementation == "eager"
    torch.testing.assert_close(ours, theirs)


def test_gptj_generates_the_same_with_its_cache_as_eagerly(tmp_path: Path) -> None:
    make_model("gptj").save_pretrained(tmp_path)
    eager = AutoModelForCausalLM.from_pretrained(tmp_path, attn_implementation="eager").eval()
    assert eager.config._attn_implementation == "eager"
    ids = batch()[0][:2, :6]
    padded = torch.cat([torch.zeros((2, 2), dtype=torch.int64), ids], dim=1)  # at the left
    mask = torch.tensor([[0, 0] + [1] * 6] * 2)
    options = {"max_new_tokens": 8, "do_sample": False, "attention_mask": mask, "pad_token_id": 0}
    assert (
        load_model(tmp_path).generate(padded, **options).tolist()
        == eager.generate(padded, **options).tolist()
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_an_empty_model_filled_with_weights_is_the_model(
    tmp_path: Path, architecture: str, dtype: torch.dtype
) -> None:
    make_model(architecture).save_pretrained(tmp_path)
    model, empty = load_model(tmp_path, dtype=dtype), empty_model(tmp_path, dtype=dtype)
    assert empty.dtype == empty.config.dtype == dtype
    with torch.no_grad():
        for to, source in zip(empty.parameters(), model.parameters(), strict=True):
            to.copy_(source)
        ids = batch()[0]
        assert torch.equal(empty(input_ids=ids).logits, model(input_ids=ids).logits)
