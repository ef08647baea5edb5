"""Ragged sequences into packed micro-batches, within a budget of tokens."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from treeopo.learner.packing import Packing, pack, shared_lengths
from treeopo.records import TokenColumn, TrainSequence


@dataclass(frozen=True, slots=True)
class PrefixTokens:
    """The X distinct step tokens of a micro-batch's prefixes; one that several sequences share is there once.

    position_X: which of the packed tokens predicts each. count_X, solved_X: how many sequences have it in their prefix,
    and how many of those prefixes lie on a solved trace. prefixes: sequences that have a step token at all.
    """

    position_X: Tensor
    target_X: Tensor
    count_X: Tensor
    solved_X: Tensor
    prefixes: int


@dataclass(frozen=True, slots=True)
class MicroBatch:
    """Sequences, packed without their last tokens, which predict nothing. The other fields are flat over their C
    completion tokens, sequence by sequence.

    position_C: which of the packed tokens predicts each; several may be predicted by one.
    """

    packing: Packing
    position_C: Tensor
    target_C: Tensor
    behaviour_C: Tensor
    advantage_C: Tensor
    version_C: Tensor  # of the policy that sampled each token
    row_C: Tensor  # which of the sequences each token belongs to, from 0; a sequence is never split
    length_C: Tensor  # completion tokens of the sequence each token belongs to
    extras_C: Mapping[str, Tensor]  # the columns of `TrainSequence.extras`, which all sequences of a batch share
    prefix: PrefixTokens

    def with_ratio_one(self, current_C: Tensor) -> "MicroBatch":
        """Log-probabilities that behaviour policy or teacher do not know (NaN) become the policy's own, `current_C`:
        the importance weight of such a token is 1, and nothing is distilled from it.
        """
        current_C = current_C.detach()
        extras_C = dict(self.extras_C)
        if (teacher_C := extras_C.get(TokenColumn.TEACHER)) is not None:
            extras_C[TokenColumn.TEACHER] = teacher_C.where(~teacher_C.isnan(), current_C)
        behaviour_C = self.behaviour_C.where(~self.behaviour_C.isnan(), current_C)
        return replace(self, behaviour_C=behaviour_C, extras_C=extras_C)


def micro_batches(
    sequences: Sequence[TrainSequence], budget: int, device: torch.device, *, share: bool = True
) -> Iterator[MicroBatch]:
    """At most `budget` tokens each, a shared prefix counted once; a sequence longer than that travels alone.

    With `share`, in lexicographic order, so that what can be shared stands together; otherwise longest first, so that
    the first micro-batch needs the most memory.
    """
    if share:
        rest = sorted(sequences, key=lambda row: np.asarray(row.token_ids).tolist())
    else:
        rest = sorted(sequences, key=lambda row: len(row.token_ids), reverse=True)
    common = shared_lengths([row.token_ids[:-1] for row in rest]) if share else [0] * len(rest)
    start, tokens = 0, 0
    for index, row in enumerate(rest):
        length = len(row.token_ids) - 1
        tokens += length - common[index]
        if index > start and tokens > budget:
            yield _micro_batch(rest[start:index], device, share)
            start, tokens = index, length
    if rest:
        yield _micro_batch(rest[start:], device, share)


def _micro_batch(rows: Sequence[TrainSequence], device: torch.device, share: bool) -> MicroBatch:
    packing, paths = pack([row.token_ids[:-1] for row in rows], share=share, device=device)
    lengths = [row.completion_length for row in rows]

    def column(values: Sequence[npt.NDArray[Any]]) -> Tensor:
        return torch.as_tensor(np.concatenate(values)).to(device)

    return MicroBatch(
        packing=packing,
        position_C=column([path[row.prefix_length - 1 :] for path, row in zip(paths, rows, strict=True)]),
        target_C=column([row.token_ids[row.prefix_length :].astype(np.int64) for row in rows]),
        behaviour_C=column([row.behaviour_logprobs for row in rows]),
        advantage_C=column([row.advantages for row in rows]),
        version_C=column([row.versions for row in rows]),
        row_C=column([np.full(length, index) for index, length in enumerate(lengths)]),
        length_C=column([np.full(length, length, dtype=np.float32) for length in lengths]),
        extras_C={name: column([row.extras[name] for row in rows]) for name in rows[0].extras},
        prefix=_prefix_tokens(rows, paths, device),
    )


def _prefix_tokens(
    rows: Sequence[TrainSequence], paths: Sequence[npt.NDArray[np.int64]], device: torch.device
) -> PrefixTokens:
    stepped = [(row, path) for row, path in zip(rows, paths, strict=True) if row.step_tokens]
    # The token that predicts and the one that it predicts, as one number: a prediction of its own.
    predictions = []
    for row, path in stepped:
        first, end = row.prefix_length - row.step_tokens, row.prefix_length
        predictions.append(path[first - 1 : end - 1] << 32 | row.token_ids[first:end])
    solved = [np.full(row.step_tokens, row.prefix_is_solved) for row, _ in stepped]
    none = np.empty(0, dtype=np.int64)
    distinct_X, which = np.unique(np.concatenate([none, *predictions]), return_inverse=True)
    count_X = np.bincount(which, minlength=len(distinct_X))
    solved_X = np.bincount(which, np.concatenate([none, *solved]), minlength=len(distinct_X))

    def column(values: npt.NDArray[Any]) -> Tensor:
        return torch.as_tensor(values).to(device)

    return PrefixTokens(
        position_X=column(distinct_X >> 32),
        target_X=column(distinct_X & 0xFFFFFFFF),
        count_X=column(count_X.astype(np.float32)),
        solved_X=column(solved_X.astype(np.float32)),
        prefixes=len(stepped),
    )
