"""A process's part of the training state: named slices of weights and Adam's moments.

Every ZeRO stage keeps fp32 weights and moments somewhere; here each stage answers the
same question, which slices of which parameters are mine. Checkpoints are made of these
slices, so that any stage and number of processes can read what any other wrote.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from trainer.training.engine.engine import Engine

KINDS = ("weight", "exp_avg", "exp_avg_sq")


@dataclass(frozen=True)
class Slice:
    """Numbers `start` to `start + numel` of a parameter, flat, in fp32, where training uses them.

    `tensors` holds views, one for each of KINDS: writing to them changes the training state.
    """

    name: str
    start: int
    numel: int
    shape: tuple[int, ...]  # of the whole parameter
    tensors: dict[str, Tensor]

    def key(self, kind: str) -> str:
        """What the slice is called in a checkpoint's file."""
        return f"{kind}/{self.name}@{self.start}"


def slices_to_save(engine: Engine) -> list[Slice]:
    """The slices this process saves; over all processes, every trained number once."""
    slices = slices_to_fill(engine)
    if engine.options.zero_stage:
        return slices
    # All processes hold all; they take turns, so that all of them write.
    return slices[engine.options.rank :: engine.options.world]


def slices_to_fill(engine: Engine) -> list[Slice]:
    """The slices this process holds, to be filled when a run resumes."""
    _make_moments(engine)
    named = [(engine.names[id(p)], p) for p in engine.model.parameters() if p.requires_grad]
    stage = engine.options.zero_stage
    find = _whole if stage == 0 else _flat_slice if stage < 3 else _sharded_slice
    found = (find(engine, name, p) for name, p in named)
    return [piece for piece in found if piece is not None and piece.numel > 0]


def bring_up_to_date(engine: Engine) -> None:
    """Make the slices hold what training has, where it keeps it in another form."""
    if engine.options.adam_bits == 8:
        engine.adam.widen()  # type: ignore[attr-defined]


def put_in_place(engine: Engine) -> None:
    """Make what training uses that which the slices now hold."""
    zero, stage = engine.zero, engine.options.zero_stage
    if engine.options.adam_bits == 8:
        engine.adam.narrow()  # type: ignore[attr-defined]
    if stage in (1, 2):
        zero.update_lp_params()
    elif stage == 3:
        zero._partition_all_parameters()
        for group in range(len(zero.fp16_groups)):
            zero._reassign_or_swap_out_partitioned_parameters(group)
        if zero.persistent_parameters:
            zero.persistent_parameters[0].all_gather(zero.persistent_parameters)


def optimizer_state(engine: Engine) -> dict[str, Any]:
    """What the optimizer knows beside its slices: steps it applied, fp16's loss scale.

    A parameter that a step gave no gradient did not take that step: an expert that no token
    chose, or the vision tower of a model that is trained on text. Stage 0 counts for each.
    """
    taken = [_steps_of(engine, flat) for flat in _flats(engine)]
    steps = max(taken)
    own = {}
    if engine.options.zero_stage == 0:
        counted = zip(_flats(engine), taken, strict=True)
        own = {engine.names[id(p)]: count for p, count in counted if count != steps}
    scaler = getattr(engine.zero, "loss_scaler", None)
    plain = (int, float, bool, str)
    scale = {k: v for k, v in vars(scaler).items() if isinstance(v, plain)} if scaler else {}
    return {"steps": steps, "loss_scaler": scale, **({"own_steps": own} if own else {})}


def _steps_of(engine: Engine, flat: Tensor) -> float:
    state = engine.adam.state.get(flat, {})
    return float(state["step"]) if "step" in state else 0.0


def set_optimizer_state(engine: Engine, saved: dict[str, Any]) -> None:
    """Take `optimizer_state` up again."""
    own = saved.get("own_steps", {})
    for flat, state in engine.adam.state.items():
        steps = own.get(engine.names.get(id(flat), ""), saved["steps"])
        if torch.is_tensor(state["step"]):
            state["step"].fill_(steps)
        else:
            state["step"] = int(steps)  # DeepSpeed's CPU Adam counts with an int
    if engine.options.offload:
        _repeat_steps(engine, int(saved["steps"]))
    scaler = getattr(engine.zero, "loss_scaler", None)
    if scaler is not None:
        vars(scaler).update(saved["loss_scaler"])


def _repeat_steps(engine: Engine, steps: int) -> None:
    """Have DeepSpeed's CPU Adam multiply its decay rates as often as in the unbroken run.

    It keeps beta^step as a product, out of reach, and makes it anew as a power, which is
    rounded otherwise, where it is called with a step that is not the next.
    """
    adam: Any = engine.adam
    group, numbers = adam.param_groups[0], [torch.zeros(1) for _ in range(4)]
    for step in range(1, steps + 1):
        adam.ds_opt_adam.adam_update(
            adam.opt_id, step, 0.0, *group["betas"], group["eps"], 0.0, True, *numbers
        )


def _flats(engine: Engine) -> list[Tensor]:
    """The tensors Adam itself works on."""
    if engine.options.zero_stage == 0:
        return [p for p in engine.model.parameters() if p.requires_grad]
    if engine.options.zero_stage < 3:
        return list(engine.zero.single_partition_of_fp32_groups)
    return list(engine.zero.fp32_partitioned_groups_flat)


def _make_moments(engine: Engine) -> None:
    """Give Adam the state that it would make for itself on its first step."""
    for flat in _flats(engine):
        state = engine.adam.state[flat]
        if engine.options.adam_bits == 8:
            engine.adam.wide(flat)  # type: ignore[attr-defined]
        elif "exp_avg" not in state:
            fused = engine.adam.defaults.get("fused")
            device = flat.device if fused else "cpu"
            is_torch = isinstance(engine.adam, torch.optim.AdamW)
            state["step"] = torch.zeros((), dtype=torch.float32, device=device) if is_torch else 0
            state["exp_avg"] = torch.zeros_like(flat, dtype=torch.float32)
            state["exp_avg_sq"] = torch.zeros_like(flat, dtype=torch.float32)


def _views(engine: Engine, flat: Tensor, offset: int, numel: int) -> dict[str, Tensor]:
    if engine.options.adam_bits == 8:
        moments = engine.adam.wide(flat)  # type: ignore[attr-defined]
    else:
        state = engine.adam.state[flat]
        moments = state["exp_avg"], state["exp_avg_sq"]
    tensors = dict(zip(KINDS, (flat.data, *moments), strict=True))
    return {kind: t.view(-1).narrow(0, offset, numel) for kind, t in tensors.items()}


def _whole(engine: Engine, name: str, p: Any) -> Slice | None:
    """Stage 0: each process holds all."""
    return Slice(name, 0, p.numel(), tuple(p.shape), _views(engine, p, 0, p.numel()))


def _flat_slice(engine: Engine, name: str, p: Any) -> Slice | None:
    """Stages 1 and 2: all parameters lie in one row, cut into as many parts as processes."""
    mapping = p._hp_mapping
    if mapping is None:
        return None
    flat = engine.zero.single_partition_of_fp32_groups[mapping.param_group_index]
    place = mapping.hp_fragment_address
    views = _views(engine, flat, place.start, place.numel)
    return Slice(name, mapping.lp_fragment_address.start, place.numel, tuple(p.shape), views)


def _sharded_slice(engine: Engine, name: str, p: Any) -> Slice | None:
    """Stage 3: each parameter is cut into as many parts as processes, the last one padded."""
    zero = engine.zero
    group, offset, padded = zero.grad_position[zero.get_param_id(p)]
    start = engine.options.rank * padded
    numel = max(0, min(padded, p.ds_numel - start))
    flat = zero.fp32_partitioned_groups_flat[group]
    return Slice(name, start, numel, tuple(p.ds_shape), _views(engine, flat, offset, numel))
