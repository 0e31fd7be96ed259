"""Stochastic rounding of float32 to float16 (device/rounding.py)."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from poptorch.device.rounding import stochastic_round

HALF_MAX = 65504.0


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def neighbours(value: float) -> tuple[float, float]:
    """The float16 numbers next to a float32 value, below and above; both are the value if float16 holds it."""
    nearest = np.float16(value)
    if float(nearest) == value:
        return value, value
    if float(nearest) > value:
        return float(np.nextafter(nearest, np.float16(-np.inf))), float(nearest)
    return float(nearest), float(np.nextafter(nearest, np.float16(np.inf)))


def bits(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.view(torch.int16)


def test_every_half_stays_as_it_is():
    every = torch.arange(-(2**15), 2**15, dtype=torch.int32).to(torch.int16).view(torch.float16)
    numbers = every[~every.isnan()]
    assert numbers.isinf().sum() == 2
    assert torch.equal(bits(stochastic_round(numbers.float(), generator())), bits(numbers))
    assert stochastic_round(every[every.isnan()].float(), generator()).isnan().all()


@settings(max_examples=80, deadline=None)
@given(
    st.one_of(
        st.floats(-HALF_MAX, HALF_MAX, width=32),
        st.floats(-(2.0**-13), 2.0**-13, width=32),  # subnormals of float16 and what lies just above
        st.floats(-1.0, 1.0, width=32),
    ),
    st.integers(0, 100),
)
def test_only_the_two_neighbours_appear(value: float, seed: int):
    rounded = stochastic_round(torch.full((256,), value), generator(seed))
    below, above = neighbours(value)
    assert set(rounded.float().tolist()) <= {below, above}


@pytest.mark.parametrize(
    "value",
    [1.0 + 2**-12, -(1.0 + 3 * 2**-12), 0.1, -1234.567, 65490.0, 2**-14 * 1.0003, 2**-15 * 1.3, 1.9e-7, -2.0e-8, 5e-9],
)
def test_mean_is_unbiased(value: float):
    count = 200_000
    value = float(np.float32(value))
    below, above = neighbours(value)
    rounded = stochastic_round(torch.full((count,), value), generator(1)).double()
    ups = int((rounded == above).sum())
    expected = (value - below) / (above - below)
    # Five standard deviations of a binomial count; the seed is fixed, so this either holds or it does not.
    assert abs(ups - count * expected) < 5 * (count * expected * (1 - expected)) ** 0.5
    assert ups + int((rounded == below).sum()) == count


def test_beyond_the_largest_half_is_rounded_to_nearest():
    source = torch.tensor([65505.0, 65519.0, 65520.0, 1e30, -65519.0, -65520.0, float("inf"), float("-inf")])
    expected = torch.tensor([HALF_MAX, HALF_MAX, *[float("inf")] * 2, -HALF_MAX, *[float("-inf")]])
    expected = torch.cat([expected, torch.tensor([float("inf"), float("-inf")])])
    for seed in range(20):
        assert torch.equal(stochastic_round(source, generator(seed)).float(), expected)


def test_generator_decides_and_source_stays():
    source = torch.randn(1000, generator=generator())
    before = source.clone()
    first = stochastic_round(source, generator(3))
    assert torch.equal(first, stochastic_round(source, generator(3)))
    assert not torch.equal(first, stochastic_round(source, generator(4)))
    assert torch.equal(source, before)
    state = torch.get_rng_state()
    stochastic_round(source, generator(3))
    assert torch.equal(torch.get_rng_state(), state)
    stochastic_round(source)
    assert not torch.equal(torch.get_rng_state(), state)


def test_shapes_and_strides():
    source = torch.randn(6, 5, generator=generator()).t()
    assert torch.equal(stochastic_round(source, generator(3)), stochastic_round(source.contiguous(), generator(3)))
    assert stochastic_round(torch.tensor(1.5)).shape == ()


def test_takes_float32_only():
    with pytest.raises(ValueError, match="float64"):
        stochastic_round(torch.zeros(2, dtype=torch.float64))
