"""The order of training contexts: a function of seed, epoch and position alone.

A keyed permutation (a Feistel network over the next power of four, walked until it
lands inside) answers for any position at once, so finding the place again costs the
same at step 10 and at step 10 million, and nothing of it has to be saved.
"""

import hashlib

import numpy as np

ROUNDS = 6  # more than the four that make a Feistel network a permutation that looks random
_MULTIPLIER = np.uint64(0x9E3779B97F4A7C15)  # 2^64 / golden ratio: splitmix64's increment


class Order:
    """Where each position of an epoch finds its context."""

    def __init__(self, num_contexts: int, seed: int, shuffle: bool = True) -> None:
        self.num_contexts = num_contexts
        self.seed = seed
        self.shuffle = shuffle
        self._half_bits = max(1, ((num_contexts - 1).bit_length() + 1) // 2)

    def contexts(self, epoch: int, start: int, stop: int) -> np.ndarray:
        """Indexes of the contexts at positions start to stop of an epoch, shape (stop - start,)."""
        positions = np.arange(start, stop, dtype=np.uint64)
        if not self.shuffle:
            return positions.astype(np.int64)
        keys = self._keys(epoch)
        found = self._permute(positions, keys)
        while (outside := found >= self.num_contexts).any():
            found[outside] = self._permute(found[outside], keys)
        return found.astype(np.int64)

    def _keys(self, epoch: int) -> np.ndarray:
        digest = hashlib.sha512(f"order {self.seed} {epoch}".encode()).digest()
        return np.frombuffer(digest, dtype="<u8")[:ROUNDS]

    def _permute(self, x: np.ndarray, keys: np.ndarray) -> np.ndarray:
        bits = np.uint64(self._half_bits)
        mask = np.uint64((1 << self._half_bits) - 1)
        left, right = x >> bits, x & mask
        for key in keys:
            mixed = (right ^ key) * _MULTIPLIER
            mixed ^= mixed >> np.uint64(32)
            mixed *= _MULTIPLIER
            left, right = right, left ^ ((mixed >> np.uint64(29)) & mask)
        return (left << bits) | right
