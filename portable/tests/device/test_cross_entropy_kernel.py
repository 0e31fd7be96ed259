"""The kernel for cross-entropy and its gradient: against float64, on every kind of processor."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from poptorch.device.native import cross_entropy

INFINITY = float("inf")


def differentiated(logits: torch.Tensor, target: torch.Tensor, narrow: bool = False, bias: torch.Tensor | None = None):
    """Losses, places of the largest and gradients (N, V) of a copy whose rows lie apart."""
    memory = torch.full((len(logits), logits.shape[1] + 3), 7.0)
    copy, best = memory[:, :-3].copy_(logits), torch.empty_like(target)
    losses, delta, factors = cross_entropy.differentiate(copy, bias, target, best, narrow)
    assert delta.data_ptr() == memory.data_ptr() and (memory[:, -3:] == 7.0).all()
    return losses, best, delta.double() * factors.double().unsqueeze(-1)


def of_float64(logits: torch.Tensor, target: torch.Tensor, bias: torch.Tensor | None = None):
    exact = logits.double().requires_grad_()
    losses = F.cross_entropy(exact if bias is None else exact + bias, target, reduction="none")
    return losses.detach(), torch.autograd.grad(losses.sum(), exact)[0]


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    rows=st.integers(1, 9),
    columns=st.one_of(st.integers(1, 300), st.sampled_from([1024, 50_257])),
    spread=st.sampled_from([0.0, 1e-3, 1.0, 30.0, 1e4]),
    narrow=st.booleans(),
    biased=st.booleans(),
    seed=st.integers(0, 1000),
)
def test_losses_and_gradients_are_those_of_float64(kernels, rows, columns, spread, narrow, biased, seed):
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(rows, columns, generator=generator) * spread
    target = torch.randint(columns, (rows,), generator=generator)
    # Whole numbers are added without an error.
    bias = (torch.randn(columns, generator=generator) * spread).round() if biased else None
    logits = logits.round() if biased else logits
    losses, best, gradient = differentiated(logits, target, narrow, bias)
    expected, slope = of_float64(logits, target, bias)
    torch.testing.assert_close(losses.double(), expected, rtol=2e-6, atol=2e-6)
    assert torch.equal(best, (logits if bias is None else logits + bias).argmax(-1))
    # The exponent has an error of 2^-24 of the logits' distance; what is kept as bfloat16 is off by 2^-9 of itself.
    torch.testing.assert_close(gradient, slope, rtol=(2**-8 if narrow else 2e-5), atol=2e-7)
    out = torch.zeros(rows, columns + 1, dtype=torch.bfloat16 if narrow else torch.float32)[:, :-1]  # elsewhere
    copy = logits.clone()
    _, delta, factors = cross_entropy.differentiate(copy, bias, target, best, narrow, out)
    assert delta is out and torch.equal(out.double() * factors.double().unsqueeze(-1), gradient)
    assert torch.equal(copy, logits)
    alone = cross_entropy.losses(logits.clone(), bias, target, best)
    torch.testing.assert_close(alone, losses, rtol=0, atol=0)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    rows=st.integers(1, 9),
    columns=st.integers(1, 700),
    steps=st.integers(1, 5),
    narrow=st.booleans(),
    biased=st.booleans(),
    seed=st.integers(0, 1000),
)
def test_parts_of_columns_are_those_of_the_whole(kernels, rows, columns, steps, narrow, biased, seed):
    """To the bit, in parts that lie one after the other; beyond the last column nothing is written."""
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(rows, columns, generator=generator) * 5.0
    bias = torch.randn(columns, generator=generator) if biased else None
    target, best = torch.randint(columns, (rows,), generator=generator), torch.empty(rows, dtype=torch.int64)
    dtype, part = torch.bfloat16 if narrow else torch.float32, steps * cross_entropy.PART_STEP
    whole = torch.empty(rows, columns, dtype=dtype)
    losses, _, factors = cross_entropy.differentiate(logits.clone(), bias, target, best, narrow, whole)
    parts = torch.full((-(-columns // part), rows + 2, part), 7.0, dtype=dtype)
    found = cross_entropy.differentiate(logits.clone(), bias, target, best.clone(), narrow, parts[:, 1:-1])
    assert torch.equal(found[0], losses) and torch.equal(found[2], factors)
    together = parts.transpose(0, 1).flatten(1)  # (rows + 2, parts times part)
    assert torch.equal(together[1:-1, :columns], whole)
    assert (together[:, columns:] == 7.0).all() and (together[[0, -1]] == 7.0).all()


def test_small_probabilities_keep_their_digits_as_bfloat16(kernels):
    logits = torch.linspace(-60.0, 0.0, 700).unsqueeze(0)
    _, _, gradient = differentiated(logits, torch.tensor([5]), narrow=True)
    _, slope = of_float64(logits, torch.tensor([5]))
    assert ((gradient - slope).abs() <= 2**-8 * slope.abs()).all()


def test_the_first_of_several_largest_is_found(kernels):
    logits = torch.zeros(5, 2600)
    logits[1, [700, 2599]] = 1.0
    logits[2, [1500, 1576, 1600]] = 2.0
    logits[3, 2599] = 1.0
    logits[4] = -INFINITY
    best = torch.empty(5, dtype=torch.int64)
    cross_entropy.losses(logits, None, torch.zeros(5, dtype=torch.int64), best)
    assert best.tolist() == [0, 700, 1500, 2599, 0]


def test_infinity_and_nan_are_what_they_are_in_torch(kernels):
    logits = torch.randn(6, 200, generator=torch.Generator().manual_seed(0))
    logits[0, 3] = -INFINITY  # impossible, and not the target
    logits[1, 3] = -INFINITY  # impossible, and the target
    logits[2, 190] = INFINITY
    logits[3, 150] = float("nan")
    logits[4] = -INFINITY
    target = torch.tensor([5, 3, 5, 5, 5, 5])
    losses, _, gradient = differentiated(logits, target)
    expected, slope = of_float64(logits, target)
    torch.testing.assert_close(losses.double(), expected, rtol=1e-6, atol=1e-6, equal_nan=True)
    finite = [0, 1, 5]
    torch.testing.assert_close(gradient[finite], slope[finite], rtol=1e-5, atol=1e-7)
    assert gradient[0, 3] == 0.0
    assert gradient[3].isnan().all()


def test_rows_do_not_depend_on_threads(kernels):
    generator = torch.Generator().manual_seed(1)
    logits, target = torch.randn(37, 1500, generator=generator), torch.randint(1500, (37,), generator=generator)
    threads = torch.get_num_threads()
    try:
        found = []
        for count in (1, 3):
            torch.set_num_threads(count)
            found.append(differentiated(logits, target, narrow=True))
    finally:
        torch.set_num_threads(threads)
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))


@pytest.mark.parametrize("wrong", [-1, 10, 2**40])
def test_a_target_outside_is_refused(kernels, wrong):
    target = torch.tensor([0, wrong])
    with pytest.raises(IndexError, match=f"Target {wrong} is out of bounds: there are 10 classes"):
        cross_entropy.losses(torch.zeros(2, 10), None, target, torch.empty_like(target))


def test_no_rows_are_no_losses(kernels):
    none = torch.empty(0, dtype=torch.int64)
    assert cross_entropy.losses(torch.empty(0, 10), None, none, none.clone()).shape == (0,)
