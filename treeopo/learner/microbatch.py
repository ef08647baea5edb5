"""Ragged sequences into padded micro-batches of similar length, within a budget of padded tokens."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from treeopo.records import TrainSequence


@dataclass(frozen=True, slots=True)
class MicroBatch:
    """B sequences padded on the right to T. The other fields are flat over their C completion tokens, row by row.

    position_C indexes the flattened (B, T - 1) grid of predictions: the hidden state at t predicts token t + 1.
    """

    input_ids_BT: Tensor
    attention_mask_BT: Tensor
    position_C: Tensor
    target_C: Tensor
    behaviour_C: Tensor
    advantage_C: Tensor
    row_C: Tensor  # which of the B sequences each token belongs to, 0 to B - 1; a sequence is never split
    length_C: Tensor  # completion tokens of the sequence each token belongs to
    extras_C: Mapping[str, Tensor]  # the columns of `TrainSequence.extras`, which all sequences of a batch share


def micro_batches(sequences: Sequence[TrainSequence], budget: int, device: torch.device) -> Iterator[MicroBatch]:
    """Longest first, so that the first micro-batch needs the most memory and each row is padded the least.

    A sequence longer than the budget travels alone.
    """
    rest = sorted(sequences, key=lambda sequence: len(sequence.token_ids), reverse=True)
    while rest:
        rows = max(1, budget // len(rest[0].token_ids))
        yield _pad(rest[:rows], device)
        rest = rest[rows:]


def _pad(rows: Sequence[TrainSequence], device: torch.device) -> MicroBatch:
    width = len(rows[0].token_ids)
    input_ids = torch.zeros(len(rows), width, dtype=torch.long)
    mask = torch.zeros(len(rows), width, dtype=torch.long)
    position, behaviour, advantage, owner, length = [], [], [], [], []
    for index, row in enumerate(rows):
        tokens = len(row.token_ids)
        completion = tokens - row.prefix_length
        input_ids[index, :tokens] = torch.as_tensor(row.token_ids)
        mask[index, :tokens] = 1
        position.append(torch.arange(row.prefix_length - 1, tokens - 1) + index * (width - 1))
        behaviour.append(torch.as_tensor(row.behaviour_logprobs))
        advantage.append(torch.as_tensor(row.advantages))
        owner.append(torch.full((completion,), index))
        length.append(torch.full((completion,), completion, dtype=torch.float32))
    position_C = torch.cat(position)
    return MicroBatch(
        input_ids_BT=input_ids.to(device),
        attention_mask_BT=mask.to(device),
        position_C=position_C.to(device),
        target_C=input_ids[:, 1:].reshape(-1)[position_C].to(device),
        behaviour_C=torch.cat(behaviour).to(device),
        advantage_C=torch.cat(advantage).to(device),
        row_C=torch.cat(owner).to(device),
        length_C=torch.cat(length).to(device),
        extras_C={
            name: torch.cat([torch.as_tensor(row.extras[name]) for row in rows]).to(device) for name in rows[0].extras
        },
    )
