"""Sequences as the distinct tokens they are made of: no padding, and a prefix that several share is there once.

    sequences        Q A B | Q A C | Q D        (the rollouts of a group share their question, and often steps)
    tokens_U         Q A B C D                  what embedding, projections, MLP and LoRA see
    positions_U      0 1 2 2 1
    attention        Q A B / Q A C / Q D        gathered for each sequence, computed causally, one result kept per token

Every token's output depends on its ancestors alone, so outputs and gradients are those of the sequences run one by one.
Attention is the part that still sees a sequence whole; it runs over buckets of similar length.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn.functional import embedding

from treeopo.records import IntArray

_NARROWEST = 0.9
"""A sequence shorter than this share of its bucket's longest opens the next bucket: at most a tenth is padding."""


@dataclass(frozen=True, slots=True)
class Packing:
    """U distinct tokens of R sequences, cut where the micro-batch is.

    tokens_U, positions_U: ids, and depths in their sequence from 0. grids: of each bucket (R_b, T_b), which of the U
    tokens stands at each place, padded on the right with token 0. cell_U: a place of each token in the grids, flattened
    one after another. places: tokens of all sequences, a shared one counted in each.
    """

    tokens_U: Tensor
    positions_U: Tensor
    grids: tuple[Tensor, ...]
    cell_U: Tensor
    places: int

    def spread(self, values_UH: Tensor) -> list[Tensor]:
        """(R_b, T_b, H) of each bucket: the values of its tokens, a shared token's at each of its places."""
        return [embedding(grid, values_UH) for grid in self.grids]

    def collect(self, values: Sequence[Tensor]) -> Tensor:
        """(U, H) from (R_b, T_b, H): each token's from one of the places where it stands."""
        return embedding(self.cell_U, torch.cat([value.flatten(0, 1) for value in values]))


def shared_lengths(rows: Sequence[IntArray]) -> list[int]:
    """How many leading tokens each row has in common with the row before it; 0 for the first."""
    return [0, *(_common(before, row) for before, row in pairwise(rows))][: len(rows)]


def pack(rows: Sequence[IntArray], *, share: bool, device: torch.device) -> tuple[Packing, list[npt.NDArray[np.int64]]]:
    """The packing of `rows`, and for each of them which of the U tokens it is made of, in order.

    Tokens are shared between neighbours, so rows in lexicographic order share all that can be shared.
    """
    paths: list[npt.NDArray[np.int64]] = []
    tokens, positions, total = [], [], 0
    for row, common in zip(rows, shared_lengths(rows) if share else [0] * len(rows), strict=True):
        fresh = len(row) - common
        before = paths[-1][:common] if common else np.empty(0, dtype=np.int64)
        paths.append(np.concatenate([before, np.arange(total, total + fresh)]))
        tokens.append(row[common:])
        positions.append(np.arange(common, len(row)))
        total += fresh
    grids, cells = _grids(paths, total)
    packing = Packing(
        tokens_U=torch.as_tensor(np.concatenate(tokens).astype(np.int64)).to(device),
        positions_U=torch.as_tensor(np.concatenate(positions)).to(device),
        grids=tuple(torch.as_tensor(grid).to(device) for grid in grids),
        cell_U=torch.as_tensor(cells).to(device),
        places=sum(map(len, rows)),
    )
    return packing, paths


def _grids(
    paths: Sequence[npt.NDArray[np.int64]], total: int
) -> tuple[list[npt.NDArray[np.int64]], npt.NDArray[np.int64]]:
    """Longest first, into buckets of similar length; and a cell of each token."""
    grids: list[npt.NDArray[np.int64]] = []
    rest = sorted(paths, key=len, reverse=True)
    cells, offset = np.full(total, -1, dtype=np.int64), 0
    while rest:
        width = len(rest[0])
        height = sum(len(path) >= _NARROWEST * width for path in rest)
        grid = np.zeros((height, width), dtype=np.int64)
        for index, path in enumerate(rest[:height]):
            grid[index, : len(path)] = path
            cells[path] = offset + index * width + np.arange(len(path))
        grids.append(grid)
        offset += grid.size
        rest = rest[height:]
    return grids, cells


def _common(left: IntArray, right: IntArray) -> int:
    shortest = min(len(left), len(right))
    differs = np.flatnonzero(left[:shortest] != right[:shortest])
    return int(differs[0]) if len(differs) else shortest
