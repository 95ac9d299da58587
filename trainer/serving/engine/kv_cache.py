"""Keys, values and states of a batch whose rows join and leave between tokens.

Rows are aligned at their right end, as left-padded prompts are: every row's next
token goes into the same column, and the model is given an ordinary two-dimensional
attention mask and position ids. Local attention (GPT-Neo) and rotary positions work
this way. Whether an architecture does is found out by `how_to_serve`, not assumed here.
The buffers are kept with room to spare, so a token does not copy the whole cache.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from transformers import cache_utils
from transformers.cache_utils import (
    Cache,
    CacheLayerMixin,
    DynamicCache,
    DynamicLayer,
    LinearAttentionCacheLayerMixin,
)

from trainer.serving.state_layers import StateLayer

# A layer without a cache; older versions of transformers, which vLLM pins, do not have it.
_DUMMY: Any = getattr(cache_utils, "DummyLayer", ())
SPARE_COLUMNS = 256  # tokens that fit before a buffer is made anew
SPARE_ROWS = 4


class _Extent:
    """What part of the buffers is in use: rows [0, rows), columns [first, end)."""

    def __init__(self) -> None:
        self.rows = 0
        self.first = 0
        self.end = 0


class _Layer(CacheLayerMixin):
    """One layer's keys and values, each (row capacity, heads, column capacity, head size)."""

    is_sliding = False

    def __init__(self, extent: _Extent) -> None:
        super().__init__()
        self.extent = extent
        self.buffers: list[torch.Tensor] = []

    def lazy_initialization(self, key_states: torch.Tensor, value_states: torch.Tensor) -> None:
        rows = self.extent.rows + SPARE_ROWS
        columns = self.extent.end + key_states.shape[2] + SPARE_COLUMNS
        self.buffers = [_buffer(key_states, rows, columns), _buffer(value_states, rows, columns)]
        self.is_initialized = True

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: object, **kwargs: object
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Store new columns, shape (rows, heads, T, head size), and return all in use."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        rows, first, end = self.extent.rows, self.extent.first, self.extent.end
        after = end + key_states.shape[2]
        keys, values = self.buffers
        keys[:rows, :, end:after] = key_states
        values[:rows, :, end:after] = value_states
        return keys[:rows, :, first:after], values[:rows, :, first:after]

    def take_row(self, row: int, source: "_Layer", source_row: int, length: int) -> None:
        """Copy the last `length` columns of a row of another batch; those before become zero."""
        first, end, source_end = self.extent.first, self.extent.end, source.extent.end
        for mine, theirs in zip(self.buffers, source.buffers, strict=True):
            mine[row, :, first : end - length] = 0
            mine[row, :, end - length : end] = theirs[
                source_row, :, source_end - length : source_end
            ]

    def clear(self, rows: int, first: int, end: int) -> None:
        for buffer in self.buffers:
            buffer[:rows, :, first:end] = 0

    def move_row(self, source: int, target: int) -> None:
        used = slice(self.extent.first, self.extent.end)
        for buffer in self.buffers:
            buffer[target, :, used] = buffer[source, :, used]

    def enlarge(self, rows: int, columns: int, end: int) -> None:
        """Move what is in use into larger buffers, to columns that end at `end`."""
        extent = self.extent
        begin = end - (extent.end - extent.first)
        for index, old in enumerate(self.buffers):
            new = _buffer(old, rows, columns)
            new[: extent.rows, :, begin:end] = old[: extent.rows, :, extent.first : extent.end]
            self.buffers[index] = new

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return self.get_seq_length() + query_length, 0

    def get_seq_length(self) -> int:
        return self.extent.end - self.extent.first

    def get_max_length(self) -> int:
        return -1


class _StateAndKeysLayer(StateLayer, _Layer):  # type: ignore[override, misc]
    """A layer with both, as in Falcon-H1 and Zamba2."""

    is_compileable = False

    def __init__(self, extent: _Extent, number_of_states: int) -> None:
        _Layer.__init__(self, extent)
        StateLayer.__init__(self, number_of_states=number_of_states)

    def lazy_initialization(self, *args: Any, **kwargs: Any) -> None:
        # `update` gives keys and values by position, the updates of states give theirs by name.
        of = _Layer if args else StateLayer
        of.lazy_initialization(self, *args, **kwargs)  # type: ignore[attr-defined]


LayerMaker = Callable[[_Extent], Any]
LayerPlan = tuple[LayerMaker, ...]  # empty: keys and values in every layer


def layer_plan(config: Any) -> LayerPlan:
    """How to make the cache layers of a model, by the cache that transformers makes for it.

    Raises:
        ValueError: transformers has a kind of layer for it that holds something else.
    """
    layers = DynamicCache(config=config).layers
    if all(isinstance(layer, DynamicLayer) and not _has_states(layer) for layer in layers):
        return ()
    return tuple(_maker(layer) for layer in layers)


def _has_states(layer: Any) -> bool:
    return isinstance(layer, LinearAttentionCacheLayerMixin)


def _maker(layer: Any) -> LayerMaker:
    if isinstance(layer, _DUMMY):
        return lambda extent: type(layer)()
    if _has_states(layer):
        states = layer.number_of_states
        if isinstance(layer, DynamicLayer):
            return lambda extent: _StateAndKeysLayer(extent, states)
        return lambda extent: StateLayer(number_of_states=states)
    if isinstance(layer, DynamicLayer):
        return _Layer
    raise ValueError(f"its cache has layers of an unknown kind ({type(layer).__name__})")


class BatchCache(Cache):
    """The cache of one batch; `lengths` says how many tokens each row holds."""

    def __init__(self, prompts: int = 0, plan: LayerPlan = ()) -> None:
        """An empty cache, or one for `prompts` that are read together, left-padded."""
        super().__init__(layers=[])
        self.layers: list[Any]
        self._plan = plan
        self._extent = _Extent()
        self._extent.rows = prompts
        self._clear()
        self.lengths = [0] * prompts

    @property
    def bytes_per_token(self) -> int:
        """Bytes of keys and values of one token in all layers, as they were stored."""
        buffers = [buffer for layer in self._filled for buffer in layer.buffers]
        return sum(b.shape[1] * b.shape[3] * b.dtype.itemsize for b in buffers)

    @property
    def _filled(self) -> list[_Layer]:
        """Layers that hold keys and values; some layers share those of another one."""
        return [layer for layer in self.layers if isinstance(layer, _Layer) and layer.buffers]

    @property
    def _states(self) -> list[StateLayer]:
        return [layer for layer in self.layers if isinstance(layer, StateLayer)]

    def _clear(self) -> None:
        self.layers[:] = [make(self._extent) for make in self._plan]

    def update(
        self,
        key_states: torch.Tensor,
        value_states: torch.Tensor,
        layer_idx: int,
        *args: object,
        **kwargs: object,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        self._add_layers(layer_idx + 1)
        return self.layers[layer_idx].update(key_states, value_states)

    def _add_layers(self, count: int) -> None:
        while len(self.layers) < count:
            self.layers.append(_Layer(self._extent))

    def inputs_for(
        self, lengths_after: Sequence[int], columns: int
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Attention mask and position ids for `columns` more tokens in every row.

        Args:
            lengths_after: Tokens each row holds then; the rest of a row is padding.
            columns: New columns, T.
        Returns:
            Mask, shape (rows, columns in use + T), and positions, shape (rows, T).
        """
        self._make_room(columns)
        view = self._extent.end - self._extent.first + columns
        lengths = torch.tensor(lengths_after).unsqueeze(1)  # (rows, 1)
        mask = (torch.arange(view) >= view - lengths).long()
        positions = (lengths - columns + torch.arange(columns)).clamp(min=0)
        return mask, positions

    def advance(self, lengths_after: Sequence[int], columns: int) -> None:
        """Count `columns` new columns as stored, after the model ran."""
        self.lengths = list(lengths_after)
        self._extent.end += columns

    def join(self, other: "BatchCache", rows: Sequence[int]) -> None:
        """Take in rows of `other` as the last ones here."""
        lengths = [other.lengths[row] for row in rows]
        place, longest = len(self.lengths), max(lengths)
        if not self.lengths:
            self._extent.end = longest
        self._make_room(0, rows=place + len(rows), length=longest)
        self._extent.rows = place + len(rows)
        self._add_layers(len(other.layers))
        before = self._extent.first if place else self._extent.end
        self.lengths += lengths
        self._fit()
        for layer, source in zip(self.layers, other.layers, strict=True):
            if isinstance(source, _Layer) and source.buffers:
                self._join_keys(layer, source, rows, place, before)
            if isinstance(source, StateLayer):
                layer.join_states(source, rows)

    def _join_keys(
        self, layer: _Layer, source: _Layer, rows: Sequence[int], place: int, before: int
    ) -> None:
        """Copy the keys and values of `rows` to the rows from `place` on."""
        if not layer.buffers:
            layer.lazy_initialization(*(b[:, :, :0] for b in source.buffers))
        layer.clear(place, self._extent.first, before)
        for offset, row in enumerate(rows):
            layer.take_row(place + offset, source, row, self.lengths[place + offset])

    def leave(self, row: int) -> None:
        """Drop a row; the last one takes its place. The buffers go with the last row."""
        last = len(self.lengths) - 1
        if row != last:
            for layer in self._filled:
                layer.move_row(last, row)
        for states in self._states:
            states.leave_states(row)
        self.lengths[row] = self.lengths[last]
        self.lengths.pop()
        if not self.lengths:
            self._clear()
            self._extent.end = 0
        self._fit()

    def follow(self, row: int) -> None:
        """Give every row the last column of one: they all continue from its token."""
        for layer in self._filled:
            for buffer in layer.buffers:
                last = buffer[: self._extent.rows, :, self._extent.end - 1]
                last[:] = last[row].clone()

    def _fit(self) -> None:
        self._extent.rows = len(self.lengths)
        self._extent.first = self._extent.end - max(self.lengths, default=0)

    def _make_room(self, columns: int, rows: int = 0, length: int = 0) -> None:
        """Make new buffers where `columns` more, or a row of `length`, do not fit."""
        filled = self._filled
        if not filled:
            return
        extent = self._extent
        have_rows, _, have_columns, _ = filled[0].buffers[0].shape
        if extent.end + columns <= have_columns and rows <= have_rows and length <= extent.end:
            return
        used = extent.end - extent.first
        end = max(used, length)
        for layer in filled:
            layer.enlarge(max(rows, extent.rows) + SPARE_ROWS, end + columns + SPARE_COLUMNS, end)
        extent.first, extent.end = end - used, end


def _buffer(like: torch.Tensor, rows: int, columns: int) -> torch.Tensor:
    # Not cleared, for most of it is never used. What comes into use must be: a masked value still
    # counts as 0 x value, and 0 x NaN is NaN.
    return like.new_empty(rows, like.shape[1], columns, like.shape[3])
