"""Every kind of cache: the engine answers what whole passes without any cache say."""

from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from tests.serving import tiny_models
from tests.serving.asking import Told, ask, running
from trainer.serving.engine.engine import Engine, Limits
from trainer.serving.engine.sampling import Sampling
from trainer.serving.engine.sequences import SequenceRequest
from trainer.serving.how_to_serve import how_to_serve

SMALL: dict[str, Any] = {
    "vocab_size": 300,
    "hidden_size": 64,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 96,
    "max_position_embeddings": 256,
    "pad_token_id": 0,
    "bos_token_id": 0,
    "eos_token_id": 0,
}
LINEAR = {
    "layer_types": ["linear_attention", "full_attention"] * 2,
    "linear_num_value_heads": 4,
    "linear_num_key_heads": 2,
    "linear_key_head_dim": 16,
    "linear_value_head_dim": 16,
    "head_dim": 16,
}
EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2}
SMALL_EXPERTS = {"moe_intermediate_size": 48, "shared_expert_intermediate_size": 48}
STATES = {"vocab_size": 300, "hidden_size": 64, "num_hidden_layers": 2, "pad_token_id": 0}
MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "lfm2": (
        "batched",
        {**SMALL, "layer_types": ["conv", "full_attention"] * 2, "block_auto_adjust_ff_dim": False},
    ),
    "qwen3_next": ("batched", {**SMALL, **LINEAR, **EXPERTS, **SMALL_EXPERTS}),
    "falcon_h1": (
        "batched",
        {
            **SMALL,
            "head_dim": 16,
            "mamba_d_ssm": 128,
            "mamba_n_heads": 8,
            "mamba_d_head": 16,
            "mamba_d_state": 16,
            "mamba_n_groups": 1,
            "mamba_chunk_size": 32,
        },
    ),
    "gemma4_text": (
        "batched",
        {
            **SMALL,
            "head_dim": 16,
            "global_head_dim": 32,
            "layer_types": ["sliding_attention", "full_attention"] * 2,
            "sliding_window": 16,
            "vocab_size_per_layer_input": 300,
            "hidden_size_per_layer_input": 16,
            "num_kv_shared_layers": 1,
        },
    ),
    "mamba": ("prompts_alone", {**STATES, "state_size": 8, "intermediate_size": 128}),
    "rwkv": ("taking_turns", {**STATES, "attention_hidden_size": 64, "context_length": 256}),
    "recurrent_gemma": (
        "one_at_a_time",
        {**SMALL, "head_dim": 16, "lru_width": 64, "attention_window_size": 16},
    ),
    "openai-gpt": (
        "whole_passes",
        {"vocab_size": 300, "n_positions": 256, "n_embd": 64, "n_layer": 2, "n_head": 4},
    ),
}


def made(kind: str, options: dict[str, Any]) -> Any:
    """A model with random weights that are large enough for its state to matter."""
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **options)).eval()
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.dim() >= 2 and "A_log" not in name and "norm" not in name:
                parameter.copy_(0.15 * torch.randn(parameter.shape, generator=generator))
    return model


def questions(lengths: list[int], tokens: int = 8) -> list[SequenceRequest]:
    generator = torch.Generator().manual_seed(2)
    return [
        SequenceRequest(
            prompt_ids=tuple(torch.randint(1, 300, (length,), generator=generator).tolist()),
            max_new_tokens=tokens + number,
            top_logprobs=0,
        )
        for number, length in enumerate(lengths)
    ]


@torch.inference_mode()
def whole_passes(model: Any, request: SequenceRequest) -> tuple[list[int], list[float]]:
    """Greedy ids with their log-probabilities, each from a pass over the whole text."""
    ids, scores = list(request.prompt_ids), []
    for _ in range(request.max_new_tokens):
        logits = model(input_ids=torch.tensor([ids]), use_cache=False).logits[0, -1]
        ids.append(int(logits.argmax()))
        scores.append(float(logits.log_softmax(-1)[ids[-1]]))
    return ids[len(request.prompt_ids) :], scores


def assert_as_whole_passes(
    model: Any, requests: list[SequenceRequest], answers: list[Told]
) -> None:
    for request, answer in zip(requests, answers, strict=True):
        ids, scores = whole_passes(model, request)
        assert answer.ids == ids
        assert [t.logprob for t in answer.tokens] == pytest.approx(scores, abs=2e-3)


@pytest.mark.parametrize("kind", sorted(MODELS))
def test_engine_answers_what_whole_passes_say_in_the_fastest_way_that_is_right(
    kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("trainer.serving.engine.engine.PROMPT_PIECE_TOKENS", 16)
    way, options = MODELS[kind]
    model = made(kind, options)
    assert how_to_serve(model).way == way
    requests = questions([3, 21, 9, 30])
    with running(model, max_batch=3, end_ids=frozenset()) as engine:
        answers = ask(engine, requests)
        scored = SequenceRequest(prompt_ids=(5, 9, 2, 7), max_new_tokens=0, prompt_logprobs=True)
        (prompt,) = ask(engine, [scored])
    assert_as_whole_passes(model, requests, answers)
    with torch.inference_mode():
        logits = model(input_ids=torch.tensor([[5, 9, 2, 7]]), use_cache=False).logits[0]
    expected = [float(logits[i].log_softmax(-1)[t]) for i, t in enumerate((9, 2, 7))]
    assert [t.logprob for t in prompt.prompt[1:]] == pytest.approx(expected, abs=2e-3)


def test_text_that_outgrows_its_rotary_frequencies_is_read_again_and_changes_no_other() -> None:
    factors = {"short_factor": [1.0] * 8, "long_factor": [2.0 + i for i in range(8)]}
    rope = {"rope_type": "longrope", "rope_theta": 10000.0, **factors}
    options = {**SMALL, "original_max_position_embeddings": 32, "sliding_window": None}
    rope["original_max_position_embeddings"] = 32
    model = made("phi3", {**options, "rope_parameters": rope})
    how = how_to_serve(model)
    assert how.way == "batched"
    assert (how.shares_batch(32), how.shares_batch(33)) == (True, False)
    requests = questions([5, 28, 40, 12])  # the second one grows from 28 to 37 tokens
    with running(model, end_ids=frozenset()) as engine:
        answers = ask(engine, requests)
    assert_as_whole_passes(model, requests, answers)


class ForgetsItsCache(torch.nn.Module):
    """A Llama that gives a cache back and reads the last tokens as if nothing came before."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = tiny_models.model("llama")
        self.config, self.dtype, self.device = self.inner.config, torch.float32, "cpu"
        self.get_input_embeddings = self.inner.get_input_embeddings

    def forward(self, input_ids: Any, past_key_values: Any = None, use_cache: bool = True) -> Any:
        output = self.inner(input_ids=input_ids, use_cache=False)
        output["past_key_values"] = past_key_values or "a cache of its own kind"
        return output


def test_cache_that_remembers_nothing_is_found_out_whatever_its_class() -> None:
    model = ForgetsItsCache().eval()
    how = how_to_serve(model)
    assert how.way == "whole_passes"
    assert len(how.reasons) == 4
    requests = questions([3, 12])
    with running(model, end_ids=frozenset()) as engine:
        answers = ask(engine, requests)
    assert_as_whole_passes(model.inner, requests, answers)


class NeverTheSame(ForgetsItsCache):
    def forward(self, input_ids: Any, use_cache: bool = True) -> Any:
        output = self.inner(input_ids=input_ids, use_cache=False)
        output["logits"] = output["logits"] + torch.randn_like(output["logits"])
        return output


def test_model_that_even_whole_passes_do_not_serve_is_refused_with_the_reason() -> None:
    model = NeverTheSame().eval()
    how = how_to_serve(model)
    assert how.way == "vllm_only"
    assert "two passes over one text" in how.sentence
    assert "vllm" in how.sentence
    with pytest.raises(ValueError, match="builtin can't serve"):
        Engine(model, tiny_models.tokenizer(), Limits(max_total_tokens=64), frozenset())


def test_contrastive_search_is_refused_where_its_candidates_cannot_share_a_batch() -> None:
    search = SequenceRequest(
        prompt_ids=(5, 6), max_new_tokens=4, sampling=Sampling(penalty_alpha=0.6, top_k=4)
    )
    with (
        running(made("lfm2", MODELS["lfm2"][1])) as engine,
        pytest.raises(ValueError, match="penalty_alpha can't be used"),
    ):
        engine.submit([search], lambda told: None)
