"""The deterministic part of the researcher: the weights of its model, and how a turn changes them. Pure numpy, no I/O.

An interrupted and an uninterrupted run must agree byte for byte at the same turn; they are compared by ``digest``.
"""

import hashlib
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float32]
QUESTIONS = ("what is new", "what is wrong", "what follows")  # asked of every document, in this order
RANGES = 100  # a turn changes one of this many contiguous ranges of rows: about 1 % of the state


@dataclass
class Network:
    """A small dense layer and its momentum, each rows x 1024 float32; ``mebibytes`` is both together."""

    weights: Array
    momentum: Array
    range_digests: list[bytes] = field(default_factory=list)

    @classmethod
    def fresh(cls, mebibytes: int) -> "Network":
        """Return seeded initial weights. They are uniform, because normal ones would depend on the C library's log."""
        rows = mebibytes * (1 << 20) // 2 // 4 // 1024
        weights = np.random.default_rng(7).random((rows, 1024), dtype=np.float32) - np.float32(0.5)
        return cls(weights, np.zeros_like(weights))

    def train(self, turn: int, stride: int) -> None:
        """Update one range of rows; after every ``stride`` turns it is the next range."""
        index = (turn // stride) % RANGES
        rows = self.rows(index)
        gradient = np.float32(0.01) * self.weights[rows] + np.float32((turn % 17) / 1000)
        self.momentum[rows] = np.float32(0.9) * self.momentum[rows] + gradient
        self.weights[rows] -= np.float32(0.1) * self.momentum[rows]
        if self.range_digests:
            self.range_digests[index] = self._range_digest(index)

    def rows(self, index: int) -> slice:
        """Return the rows of range ``index`` of RANGES."""
        total = len(self.weights)
        return slice(total * index // RANGES, total * (index + 1) // RANGES)

    def forget_digests(self) -> None:
        """Discard cached digests; to be called after the arrays were replaced or filled from outside."""
        self.range_digests = []

    def digest(self) -> str:
        """Return a SHA-256 over all bytes of weights and momentum; only ranges that have changed are hashed again."""
        if not self.range_digests:
            self.range_digests = [self._range_digest(index) for index in range(RANGES)]
        return hashlib.sha256(b"".join(self.range_digests)).hexdigest()

    def _range_digest(self, index: int) -> bytes:
        hashed = hashlib.sha256(self.weights[self.rows(index)].data)
        hashed.update(self.momentum[self.rows(index)].data)
        return hashed.digest()
