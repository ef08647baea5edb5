"""Log-probabilities and entropy in chunks are those of a plain softmax, gradient included, and stay small."""

import pytest
import torch
from torch import Tensor

from treeopo.learner import logprobs
from treeopo.learner.logprobs import logprobs_and_entropy, token_logprobs


def frozen_head(dtype: torch.dtype) -> torch.nn.Module:
    torch.manual_seed(0)
    return torch.nn.Linear(8, 11, bias=False, dtype=dtype).requires_grad_(False)


def plain(hidden: Tensor, head: torch.nn.Module, targets: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    logs = torch.log_softmax(head(hidden) / temperature, dim=-1)
    return logs.gather(1, targets[:, None])[:, 0], -(logs.exp() * logs).sum(-1)


@pytest.mark.parametrize("rows_at_once", [1, 7, 100])
def test_values_and_gradient_are_those_of_a_plain_softmax_whatever_the_chunks(
    monkeypatch: pytest.MonkeyPatch, rows_at_once: int
) -> None:
    monkeypatch.setattr(logprobs, "CHUNK_ELEMENTS", {"cpu": rows_at_once * 11})
    head = frozen_head(torch.float64)
    hidden = torch.randn(23, 8, dtype=torch.float64, requires_grad=True)
    targets, upstream = torch.randint(0, 11, (23,)), torch.randn(23, dtype=torch.float64)
    ours, entropy = logprobs_and_entropy(hidden, head, targets, 0.7)
    expected, expected_entropy = plain(hidden, head, targets, 0.7)
    torch.testing.assert_close(ours, expected)
    torch.testing.assert_close(entropy, expected_entropy)
    assert not entropy.requires_grad
    torch.testing.assert_close(
        torch.autograd.grad(ours @ upstream, hidden), torch.autograd.grad(expected @ upstream, hidden)
    )


def test_logits_far_apart_neither_overflow_nor_underflow() -> None:
    head = frozen_head(torch.float32)
    hidden = torch.randn(5, 8) * 1e4
    values, entropy = logprobs_and_entropy(hidden, head, torch.arange(5), 1.0)
    torch.testing.assert_close(values, plain(hidden, head, torch.arange(5), 1.0)[0])
    assert entropy.isfinite().all()


def test_a_bfloat16_head_gives_float32_log_probabilities_and_a_gradient_in_the_hidden_states_dtype() -> None:
    head = frozen_head(torch.bfloat16)
    hidden = torch.randn(5, 8, dtype=torch.bfloat16, requires_grad=True)
    values = token_logprobs(hidden, head, torch.arange(5), 1.0)
    values.sum().backward()
    assert values.dtype == torch.float32
    assert hidden.grad is not None
    assert hidden.grad.dtype == torch.bfloat16


def test_a_head_that_is_trained_is_refused() -> None:
    with pytest.raises(AssertionError, match="frozen"):
        token_logprobs(torch.randn(2, 8), torch.nn.Linear(8, 11, bias=False), torch.arange(2), 1.0)
