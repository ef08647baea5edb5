"""Which items of a data set a batch holds: a pure function of (seed, batch number); no sampler state."""

from functools import lru_cache

import numpy as np
import numpy.typing as npt
from numpy.random import Generator, Philox


class Epochs:
    """`count` items in batches of `batch_size`: each item once an epoch, every epoch in an order of its own.

    A batch may hold the end of one epoch and the beginning of the next.
    """

    def __init__(self, count: int, batch_size: int, seed: int) -> None:
        self._count = count
        self._size = batch_size
        self._seed = seed
        self._order = lru_cache(maxsize=2)(self._shuffled)

    def batch(self, number: int) -> list[int]:
        """The items of batch `number`; asking again, in any order and any process, gives the same."""
        positions = range(number * self._size, (number + 1) * self._size)
        return [int(self._order(position // self._count)[position % self._count]) for position in positions]

    def _shuffled(self, epoch: int) -> npt.NDArray[np.int64]:
        return Generator(Philox(key=np.array([self._seed, epoch], dtype=np.uint64))).permutation(self._count)
