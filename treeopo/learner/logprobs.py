"""Log-probabilities of chosen tokens without ever holding float32 logits for a whole batch."""

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.utils.checkpoint import checkpoint

CHUNK = 2048
"""Rows whose logits exist at once: 2048 x 151,936 float32 are 1.2 GB, the size of a small model's weights."""


def token_logprobs(hidden_TH: Tensor, head: nn.Module, targets_T: Tensor, temperature: float) -> Tensor:
    """log softmax(head(h_t) / temperature)[target_t] for every row, (T,) float32 (float64 for a float64 head).

    Logits are recomputed chunk by chunk in the backward pass, so memory stays at CHUNK x V whatever T is.
    """
    chunks = [
        checkpoint(_chunk, hidden, head, targets, temperature, use_reentrant=False)
        for hidden, targets in zip(torch.split(hidden_TH, CHUNK), torch.split(targets_T, CHUNK), strict=True)
    ]
    return torch.cat(chunks)


def _chunk(hidden_TH: Tensor, head: nn.Module, targets_T: Tensor, temperature: float) -> Tensor:
    logits_TV = head(hidden_TH)
    logits_TV = logits_TV.to(torch.promote_types(logits_TV.dtype, torch.float32)) / temperature
    return -cross_entropy(logits_TV, targets_T, reduction="none")
