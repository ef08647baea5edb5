"""Log-probabilities of chosen tokens and the entropy of their distributions, without ever holding (T, V) logits."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

CHUNK_ELEMENTS = {"cuda": 2**26, "cpu": 2**23}
"""So many logits exist at once: 2^26 float32 are 256 MiB, 441 rows of a vocabulary of 151,936; 2^23 are 32 MiB, and
55 rows keep a CPU as busy."""


def chunk_rows(vocabulary: int, device: torch.device) -> int:
    """Rows whose logits exist at once."""
    return max(1, CHUNK_ELEMENTS[device.type] // vocabulary)


def token_logprobs(hidden_TH: Tensor, head: nn.Module, targets_T: Tensor, temperature: float) -> Tensor:
    """log softmax(head(h_t) / temperature)[target_t] for every row, (T,) float32 (float64 for a float64 head).

    The head is frozen: it gets no gradient.
    """
    return logprobs_and_entropy(hidden_TH, head, targets_T, temperature)[0]


def logprobs_and_entropy(
    hidden_TH: Tensor, head: nn.Module, targets_T: Tensor, temperature: float
) -> tuple[Tensor, Tensor]:
    """The same, and the entropy of each row's distribution in nats, (T,), which carries no gradient."""
    assert not any(parameter.requires_grad for parameter in head.parameters()), "the head must be frozen"
    logprobs_T, entropy_T = _FrozenHead.apply(hidden_TH, head, targets_T, temperature)  # type: ignore[no-untyped-call]
    return logprobs_T, entropy_T


class _FrozenHead(torch.autograd.Function):
    """d log p(target) / d h = (W[target] - p W) / temperature, computed while a chunk's probabilities p exist.

    Keeping that, (T, H), instead of the logits, (T, V), makes the backward pass a multiplication: a chunk is computed
    once, where recomputing it would cost another pass through the head.
    """

    @staticmethod
    def forward(
        ctx: Any, hidden_TH: Tensor, head: nn.Module, targets_T: Tensor, temperature: float
    ) -> tuple[Tensor, ...]:
        weight_VH: Tensor = head.get_parameter("weight")
        rows = chunk_rows(len(weight_VH), hidden_TH.device)
        logprobs, entropies, slopes = [], [], []
        for hidden, targets in zip(torch.split(hidden_TH, rows), torch.split(targets_T, rows), strict=True):
            logits = head(hidden)
            logits = logits.to(torch.promote_types(logits.dtype, torch.float32)).div_(temperature)
            logits -= logits.amax(dim=-1, keepdim=True)
            odds = logits.exp()
            partition = odds.sum(dim=-1)
            log_partition = partition.log()
            logprobs.append(logits.gather(1, targets[:, None])[:, 0] - log_partition)
            entropies.append(log_partition - torch.linalg.vecdot(odds, logits) / partition)
            if ctx.needs_input_grad[0]:
                expected = (odds.to(weight_VH.dtype) @ weight_VH) / partition[:, None]
                slopes.append(((weight_VH[targets] - expected) / temperature).to(hidden.dtype))
            del logits, odds
        if slopes:
            ctx.save_for_backward(torch.cat(slopes))
        entropy_T = torch.cat(entropies)
        ctx.mark_non_differentiable(entropy_T)
        return torch.cat(logprobs), entropy_T

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient_T: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
        (slopes_TH,) = ctx.saved_tensors
        return (gradient_T[:, None] * slopes_TH).to(slopes_TH.dtype), None, None, None
