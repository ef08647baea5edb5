"""Weights in fewer bits keep, in expectation, what was added to them."""

import pytest
import torch

from treeopo.learner.rounding import merged_weight, rounded

NARROW = [torch.bfloat16, torch.float16]


def base(dtype: torch.dtype, seed: int = 0) -> torch.Tensor:
    return (0.2 * torch.randn(300, 400, generator=torch.Generator().manual_seed(seed))).to(dtype)


def kept_share(served: torch.Tensor, weight: torch.Tensor, update: torch.Tensor) -> float:
    """Of an update, by its projection on what the served weights have more than the base."""
    arrived = served.double() - weight.double()
    return float((arrived * update.double()).sum() / update.double().square().sum())


@pytest.mark.parametrize("dtype", NARROW)
@pytest.mark.parametrize("size", [0.02, 0.2, 1.0])
def test_an_update_smaller_than_the_distance_of_two_numbers_arrives(dtype: torch.dtype, size: float) -> None:
    weight = base(dtype)
    update = size * 0.2 * torch.finfo(dtype).eps * torch.randn(weight.shape, generator=torch.Generator().manual_seed(1))
    served = merged_weight(weight.float(), update, dtype)
    assert served.dtype is dtype
    assert kept_share(served, weight, update) == pytest.approx(1, abs=0.05)
    if size == 0.02:
        nearest = (weight.float() + update).to(dtype)
        assert kept_share(nearest, weight, update) < 0.3  # what rounding without noise would leave of it


@pytest.mark.parametrize("dtype", NARROW)
def test_what_the_dtype_can_hold_stays_as_it_is(dtype: torch.dtype) -> None:
    weight = torch.cat(
        [base(dtype).flatten(), torch.tensor([0.0, -0.0, 1.0, -2.5, torch.inf, -torch.inf], dtype=dtype)]
    )
    assert torch.equal(rounded(weight.float(), dtype), weight)


@pytest.mark.parametrize("dtype", NARROW)
def test_a_weight_becomes_one_of_its_two_neighbours(dtype: torch.dtype) -> None:
    weight = base(torch.float32)
    gap = (rounded(weight, dtype).float() - weight).abs()
    assert (gap <= weight.abs() * torch.finfo(dtype).eps + 1e-7).all()
    assert float((rounded(weight, dtype).double() - weight.double()).mean()) == pytest.approx(0, abs=3e-6)


def test_the_same_weights_round_alike_and_larger_ones_than_the_noise_is_long_too() -> None:
    weight = torch.randn(1100, 1000)
    assert torch.equal(rounded(weight, torch.bfloat16), rounded(weight.clone(), torch.bfloat16))
    assert (rounded(weight, torch.bfloat16).float() - weight).abs().max() < 0.05


def test_an_engine_in_float32_is_served_every_bit() -> None:
    weight, update = base(torch.bfloat16).float(), 1e-5 * torch.randn(300, 400)
    assert torch.equal(merged_weight(weight, update, torch.float32), weight + update)


def test_without_a_known_engine_the_checkpoint_decides() -> None:
    update = torch.full((300, 400), 1e-4)
    for dtype in NARROW:
        assert merged_weight(base(dtype).float(), update, None).dtype is dtype
    full = base(torch.float32)
    assert torch.equal(merged_weight(full, update, None), full + update)


def test_a_base_between_the_numbers_of_the_engine_is_rounded_to_the_nearest() -> None:
    full, update = base(torch.float32), torch.full((300, 400), 1e-4)
    assert torch.equal(merged_weight(full, update, torch.bfloat16), (full + update).to(torch.bfloat16))
