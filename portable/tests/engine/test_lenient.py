"""Functions of torch that cannot be recorded as they are (spec section 1)."""

from __future__ import annotations

import pytest
import torch
from programs import Body, infer, make_options

import poptorch

X = torch.zeros(4, 50)


@pytest.mark.parametrize(
    ("fill", "low", "high"),
    [
        (lambda x: x.random_(2, 5), 2, 4),
        (lambda x: x.random_(2, to=5), 2, 4),
        (lambda x: x.random_(to=5, **{"from": 2}), 2, 4),
        (lambda x: x.random_(5), 0, 4),
        (lambda x: x.random_(-3, None) * 0 + x.clamp(max=9), -3, 9),
        (lambda x: x.random_(), 0, 2**24),
    ],
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.int32])
def test_random_numbers_between_bounds(fill, low, high, dtype):
    options = make_options(2).randomSeed(1)
    executor = poptorch.inferenceModel(Body(lambda m, x: fill(x.to(dtype, copy=True))), options)
    found = executor(X)
    high = high if high != 2**24 or dtype == torch.float32 else 2**31
    assert found.dtype == dtype and found.min().item() >= low and found.max().item() <= high
    if high == 4:
        assert sorted(set(found.flatten().tolist())) == list(range(low, high + 1))
    assert not torch.equal(found[:2], found[2:]) or high == 9  # each micro-batch draws


def test_as_many_counts_as_asked_for():
    values = torch.tensor([1, 1, 7, 3, 0, 9])
    weights = torch.tensor([0.5, 1.0, 2.0, 4.0, 8.0, 16.0])
    counts = infer(lambda m, x: torch.bincount(x, minlength=8), values)
    assert counts.tolist() == [1, 2, 0, 1, 0, 0, 0, 1] and counts.dtype == torch.int32
    assert infer(lambda m, x: x.bincount(minlength=4), values).tolist() == [1, 2, 0, 1]
    found = infer(lambda m, x, w: torch.bincount(x, w, 10), values, weights)
    assert torch.equal(found, torch.bincount(values, weights))
    with pytest.raises(poptorch.Error, match="shapes of a compiled program are fixed"):
        infer(lambda m, x: torch.bincount(x), values)
