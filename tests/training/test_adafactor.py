"""Adafactor against torch's and against its formula in float64."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from training.adafactor import Adafactor

shapes = st.lists(st.integers(1, 7), min_size=0, max_size=3)


def parameter(shape, seed, size=1.0):
    generator = torch.Generator().manual_seed(seed)
    return torch.nn.Parameter(size * torch.randn(shape, generator=generator))


def gradient(shape, seed):
    return torch.randn(shape, generator=torch.Generator().manual_seed(1000 + seed)) + 1e-3


def stepped(optimizer, weight, steps):
    for step in range(steps):
        weight.grad = gradient(weight.shape, step)
        optimizer.step()
    return weight.detach()


@pytest.mark.skipif(not hasattr(torch.optim, "Adafactor"), reason="this torch has no Adafactor")
@given(shapes, st.integers(0, 99), st.sampled_from([0.0, 0.25]), st.sampled_from([1e-4, 1.0]))
@settings(max_examples=40, deadline=None)
def test_with_scaling_it_is_torchs(shape, seed, decay, size):
    ours, theirs = parameter(shape, seed, size), parameter(shape, seed, size)
    one = Adafactor([{"params": [ours]}], 0.02, decay)
    other = torch.optim.Adafactor([theirs], 0.02, weight_decay=decay, eps=(1e-15, 1e-3))
    torch.testing.assert_close(stepped(one, ours, 4), stepped(other, theirs, 4), rtol=2e-5, atol=1e-7)


def by_hand(weight, steps, lr, decay, scale):
    """Shazeer & Stern 2018, algorithms 4 and 5, for a matrix."""
    w, row, column = weight.detach().double().clone(), 0.0, 0.0
    for t in range(1, steps + 1):
        g = gradient(w.shape, t - 1).double()
        b = 1 - t**-0.8
        row = b * row + (1 - b) * (g * g + 1e-30).mean(1, keepdim=True)
        column = b * column + (1 - b) * (g * g + 1e-30).mean(0, keepdim=True)
        u = g / (row @ column / row.mean()).sqrt()
        u = u / max(1.0, float(u.square().mean().sqrt()))
        rate = lr * (max(1e-3, float(w.square().mean().sqrt())) if scale else 1.0)
        w = w * (1 - lr * decay) - rate * u
    return w


@given(st.integers(1, 9), st.integers(1, 9), st.integers(0, 99), st.booleans())
@settings(max_examples=40, deadline=None)
def test_either_version_is_the_formula(rows, columns, seed, scale):
    weight = parameter((rows, columns), seed, 0.1)
    expected = by_hand(weight, 5, 0.03, 0.1, scale)
    optimizer = Adafactor([{"params": [weight]}], 0.03, 0.1, scale_parameter=scale)
    torch.testing.assert_close(stepped(optimizer, weight, 5).double(), expected, rtol=1e-4, atol=1e-6)


def test_a_matrix_keeps_a_row_and_a_column():
    rule = Adafactor.portable_update_rule
    forms = {name: tuple(shape) for name, (shape, _) in rule.states(torch.Size([30, 20]), {}).items()}
    assert forms == {"exp_avg_sq_row": (30,), "exp_avg_sq_col": (20,)}
    assert [tuple(shape) for shape, _ in rule.states(torch.Size([30]), {}).values()] == [(30,)]


def test_a_gradient_of_zeros_changes_nothing():
    weight = parameter((3, 4), 0)
    before, weight.grad = weight.detach().clone(), torch.zeros(3, 4)
    Adafactor([{"params": [weight]}], 0.1).step()
    assert torch.equal(weight, before)
