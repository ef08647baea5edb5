"""A policy's weights in the base's dtype without losing what it has learned.

An update is often smaller than half the distance between neighbouring bfloat16 numbers (a 256th of the weight), and a
base's weights are such numbers: rounded to the nearest, base plus update is the base again. Of updates as small as a
run's first ones a fifth to two thirds would arrive (benchmarks/rounding.py). Stochastic rounding (Gupta et al. 2015,
arXiv 1502.02551) keeps it: up with the probability that makes the expectation exact.
"""

from functools import cache

import torch
from torch import Tensor

_DROPPED = {torch.bfloat16: 16, torch.float16: 13}
"""Bits of float32's significand that these lack."""

_PERIOD = 1_048_573
"""Noise numbers, repeated over a weight: a prime, so that no column of a matrix meets the same one in every row."""


def merged_weight(base: Tensor, delta: Tensor, served: torch.dtype | None) -> Tensor:
    """base + delta in the dtype `served` that an engine computes in; None, where nobody knows that: in the one that the
    checkpoint has, by its weights. A base that `served` holds exactly is where nearest neighbours lose the update;
    another one's are rounded by the engine.
    """
    dtypes = (torch.bfloat16, torch.float16) if served is None else (served,)
    dtype = next((each for each in dtypes if _is_exact(base, each)), None)
    total = base.float() + delta.float()
    return total.to(served or base.dtype) if dtype is None else rounded(total, dtype)


def _is_exact(weight: Tensor, dtype: torch.dtype) -> bool:
    """By its first row."""
    return torch.equal(weight[0].to(dtype).to(weight.dtype), weight[0])


def rounded(weight: Tensor, dtype: torch.dtype) -> Tensor:
    """A float32 tensor of any shape in `dtype`; bfloat16 and float16 are rounded stochastically, unbiased.

    What `dtype` can hold stays as it is. The noise belongs to the place in the tensor, not to the call: the same
    weights round alike each time.
    """
    dropped = _DROPPED.get(dtype)
    if dropped is None:
        return weight.to(dtype)
    noise = _noise(weight.device) & ((1 << dropped) - 1)
    flat = weight.detach().float().contiguous().view(torch.int32).flatten()
    up = torch.cat([part + noise[: len(part)] for part in torch.split(flat, _PERIOD)])
    # Adding to the bits of the magnitude and cutting them off is rounding it up or down.
    return (up & -(1 << dropped)).view(torch.float32).view(weight.shape).to(dtype)


@cache
def _noise(device: torch.device) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 1 << 16, (_PERIOD,), dtype=torch.int32, generator=generator).to(device)
