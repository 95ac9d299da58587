"""Cache layers with a state of fixed size: convolutions, linear attention, state spaces.

Such a state has one row for each sequence and no columns, so rows of different lengths
need no alignment. transformers' own layer computes it; here rows join and leave.
"""

from collections.abc import Sequence
from typing import Any

import torch
from transformers.cache_utils import LinearAttentionLayer


class StateLayer(LinearAttentionLayer):
    """transformers' layer with states, each (rows, ...)."""

    def join_states(self, other: Any, rows: Sequence[int]) -> None:
        """Take in rows of another batch as the last ones here."""
        picked = torch.tensor(rows)
        for mine, theirs in zip(self._tables(), other._tables(), strict=True):
            for index, state in theirs.items():
                if state is not None:
                    new = state.index_select(0, picked.to(state.device))
                    held = mine[index]
                    mine[index] = new if held is None else torch.cat([held, new])
        self.is_conv_states_initialized = dict(other.is_conv_states_initialized)
        self.is_recurrent_states_initialized = dict(other.is_recurrent_states_initialized)
        self.has_previous_state = dict(other.has_previous_state)
        self.conv_kernel_size = dict(other.conv_kernel_size)
        self.dtype, self.device = other.dtype, other.device

    def leave_states(self, row: int) -> None:
        """Drop a row; the last one takes its place."""
        for table in self._tables():
            for index, state in table.items():
                if state is not None:
                    state[row] = state[-1].clone()
                    table[index] = state[:-1]

    def _tables(self) -> list[dict[int, Any]]:
        return [self.conv_states, self.recurrent_states]
