"""Flat completion tokens of ragged sequences, as objectives see them, without a model behind."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from treeopo.learner.losses import Forward


@dataclass(frozen=True)
class FlatBatch:
    """The fields of a `MicroBatch` that the policy gradient reads."""

    behaviour_C: Tensor
    advantage_C: Tensor
    row_C: Tensor
    length_C: Tensor


@dataclass(frozen=True)
class Token:
    """One completion token: log-probabilities under dropout, without, and when sampled, and its advantage."""

    dropped: float
    current: float
    behaviour: float
    advantage: float


def flat(sequences: Sequence[Sequence[Token]]) -> tuple[FlatBatch, Forward]:
    tokens = [token for sequence in sequences for token in sequence]

    def column(values: list[float]) -> Tensor:
        return torch.tensor(values, dtype=torch.float64)

    micro = FlatBatch(
        behaviour_C=column([token.behaviour for token in tokens]),
        advantage_C=column([token.advantage for token in tokens]),
        row_C=torch.tensor([row for row, sequence in enumerate(sequences) for _ in sequence]),
        length_C=column([len(sequence) for sequence in sequences for _ in sequence]),
    )
    logprobs_C = column([token.dropped for token in tokens]).requires_grad_()
    current_C = column([token.current for token in tokens])
    return micro, Forward(logprobs_C, current_C, torch.empty(len(tokens), 0), nn.Identity())
