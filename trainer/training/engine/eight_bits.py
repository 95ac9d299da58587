"""Adam whose moments take 8 bits, by bitsandbytes; checkpoints hold them as fp32.

A block of 256 numbers is kept as codes and the largest of them, which has a code of its own.
So what is widened and narrowed again comes out the same bit for bit, and resuming is exact.
"""

from typing import Any

import torch
from bitsandbytes import functional
from bitsandbytes.optim import AdamW8bit
from torch import Tensor

BLOCK = 256  # numbers; bitsandbytes' own


class EightBitAdam(AdamW8bit):
    """Adam that can show its moments in fp32, in host memory, and take them from there."""

    def __init__(self, *given: Any, **options: Any) -> None:
        super().__init__(*given, **options)
        self.fill_qmap()
        # Its codes reach from -0.993 to 1: a largest number that is negative had none of its own.
        self.name2qmap["dynamic"][0] = -1.0
        self._wide: dict[Tensor, tuple[Tensor, Tensor]] = {}

    def wide(self, flat: Tensor) -> tuple[Tensor, Tensor]:
        """Room for both moments of a parameter; `widen` fills it."""
        if flat not in self._wide:
            group = self.param_groups[0]
            named, group["params"] = group["params"], [flat]  # DeepSpeed's stage 3 names none
            self.init_state(group, flat, 0, 0)
            group["params"] = named
            self._wide[flat] = torch.zeros(flat.numel()), torch.zeros(flat.numel())
        return self._wide[flat]

    @torch.no_grad()
    def widen(self) -> None:
        """Make the fp32 moments those that training has."""
        for flat, moments in self._wide.items():
            state = self.state[flat]
            for number, to in enumerate(moments, 1):
                codes = state[f"state{number}"].view(-1)
                if codes.dtype == torch.uint8:  # small parameters are kept in fp32
                    scale, code = state[f"absmax{number}"], state[f"qmap{number}"]
                    codes = functional.dequantize_blockwise(
                        codes, absmax=scale, code=code, blocksize=BLOCK
                    )
                to.copy_(codes)

    @torch.no_grad()
    def narrow(self) -> None:
        """Make training's moments those that are there in fp32."""
        for flat, moments in self._wide.items():
            state = self.state[flat]
            for number, wide in enumerate(moments, 1):
                codes, numbers = state[f"state{number}"].view(-1), wide.to(flat.device)
                if codes.dtype != torch.uint8:
                    codes.copy_(numbers)
                    continue
                found, largest = _narrowed(numbers, state[f"qmap{number}"])
                codes.copy_(found)
                state[f"absmax{number}"].copy_(largest)


def _narrowed(numbers: Tensor, code: Tensor) -> tuple[Tensor, Tensor]:
    """The nearest code of each number, and the largest of each block.

    bitsandbytes' own on the CPU takes the code beside the nearest now and then.
    """
    padding = -numbers.numel() % BLOCK
    blocks = torch.nn.functional.pad(numbers, (0, padding)).view(-1, BLOCK)
    largest = blocks.abs().amax(1)  # (blocks,)
    shares = (blocks / largest.clamp_min(1e-38)[:, None]).view(-1)[: numbers.numel()]
    above = torch.searchsorted(code, shares).clamp(1, len(code) - 1)
    is_above = code[above] - shares < shares - code[above - 1]
    return torch.where(is_above, above, above - 1).to(torch.uint8), largest
