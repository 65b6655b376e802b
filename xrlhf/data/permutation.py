"""A keyed permutation of ``range(n)`` that is computed, not stored.

Shuffling ten million groups by ``numpy.random.permutation`` costs memory and time in proportion to the data, and
resuming in the middle needs the whole of it again. A Feistel network answers "which group stands at position p"
directly, for any p, in constant memory.
"""

from __future__ import annotations

import hashlib

import numpy as np

__all__ = ["Permutation", "derive_key"]

_ROUNDS = 8


def derive_key(*parts: int | str) -> int:
    """A 64-bit key from ``parts``, the same on every machine and Python version.

    Args:
        parts: Text or whole numbers; ``1`` and ``"1"`` differ, ``1`` and ``numpy.int64(1)`` do not.
    """
    text = "\x1f".join(f"str:{part}" if isinstance(part, str) else f"int:{int(part)}" for part in parts)
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little")


def _mix(values: np.ndarray) -> np.ndarray:
    """The finaliser of SplitMix64 (Steele, Lea, Flood 2014, "Fast splittable pseudorandom number generators")."""
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))


class Permutation:
    """A pseudo-random permutation of ``range(size)`` by a balanced Feistel network with cycle walking.

    The network permutes the smallest square power of two that holds ``size``; values that fall outside are sent
    through again until they fall inside (Black and Rogaway 2002, "Ciphers with arbitrary finite domains").

    Args:
        size: Number of elements, at least 1.
        key: 64-bit key; equal keys give equal permutations.
    """

    def __init__(self, size: int, key: int) -> None:
        if size < 1:
            raise ValueError(f"a permutation needs at least one element, got size {size}")
        self.size = size
        self._half_bits = np.uint64(max(1, ((size - 1).bit_length() + 1) // 2))
        self._half_mask = np.uint64((1 << int(self._half_bits)) - 1)
        self._round_keys = [np.uint64(derive_key(key, r)) for r in range(_ROUNDS)]

    def __call__(self, positions: np.ndarray) -> np.ndarray:
        """The elements at ``positions``: an integer array of one dimension or more in, int64 of the same shape out.

        Raises:
            IndexError: A position is negative or not below ``size``.
        """
        positions = np.asarray(positions)
        for position in (int(positions.min()), int(positions.max())) if positions.size else ():
            if not 0 <= position < self.size:
                raise IndexError(f"position {position} outside a permutation of {self.size} elements")
        values = self._network(positions.astype(np.uint64))
        outside = values >= self.size
        while outside.any():
            values[outside] = self._network(values[outside])
            outside = values >= self.size
        return values.astype(np.int64)

    def _network(self, values: np.ndarray) -> np.ndarray:
        left, right = values >> self._half_bits, values & self._half_mask
        for key in self._round_keys:
            left, right = right, left ^ (_mix(right + key) & self._half_mask)
        return (left << self._half_bits) | right
