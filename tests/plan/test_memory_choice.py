"""What is chosen where memory is short, and that more of it never costs more."""

from hypothesis import given
from hypothesis import strategies as st

from tests.plan.models import GPT_2, GPT_J_6B, MODELS
from trainer.planning.memory_choice import USABLE_SHARE, choose
from trainer.planning.memory_model import GIB, Setting, gpu_bytes
from trainer.planning.model_shape import ModelShape

GPT_J = ModelShape.from_config(GPT_J_6B)


def test_gpt_j_on_an_a40_is_offloaded_with_the_references_batch() -> None:
    chosen = choose(GPT_J, Setting(context=2048), int(44.5 * GIB))
    assert chosen is not None
    assert chosen.offload
    assert chosen.batch_size == 4
    # The room that is left saves computing some layers again.
    assert 0 < chosen.recomputed(GPT_J) < GPT_J.layers


def test_small_model_needs_neither_offload_nor_recomputing() -> None:
    shape = ModelShape.from_config(GPT_2)
    chosen = choose(shape, Setting(context=1024), int(44.5 * GIB))
    assert chosen is not None
    assert (chosen.offload, chosen.recomputed(shape), chosen.batch_size) == (False, 0, 8)


def test_divisor_makes_a_chosen_batch_smaller_but_not_a_given_one() -> None:
    room, setting = int(44.5 * GIB), Setting(context=2048)
    divided = choose(GPT_J, setting, room, divisor=2)
    given = choose(GPT_J, setting, room, batch_size=3, divisor=2)
    assert divided is not None and given is not None
    assert (divided.batch_size, given.batch_size) == (2, 3)


def test_nothing_is_chosen_where_nothing_fits() -> None:
    assert choose(GPT_J, Setting(context=2048), 16 * GIB) is None
    # Stage 0 has no partition that could live elsewhere.
    assert choose(GPT_J, Setting(context=2048, zero_stage=0), int(44.5 * GIB)) is None


@given(
    memory_gib=st.floats(1, 200),
    more_gib=st.floats(0, 100),
    context=st.sampled_from([128, 1024, 2048, 8192]),
    stage=st.integers(0, 3),
    processes=st.sampled_from([1, 2, 8]),
    kind=st.sampled_from(sorted(MODELS)),
)
def test_choice_fits_and_more_memory_never_costs_more(
    memory_gib: float, more_gib: float, context: int, stage: int, processes: int, kind: str
) -> None:
    shape = ModelShape.from_config(MODELS[kind])
    asked = Setting(
        context=context, zero_stage=stage, processes=processes, processes_per_node=processes
    )
    chosen = choose(shape, asked, int(memory_gib * GIB))
    richer = choose(shape, asked, int((memory_gib + more_gib) * GIB))
    if chosen is None:
        return
    assert gpu_bytes(shape, chosen) <= memory_gib * GIB * USABLE_SHARE
    assert richer is not None
    assert richer.offload <= chosen.offload
    if richer.offload == chosen.offload:
        assert richer.batch_size >= chosen.batch_size
