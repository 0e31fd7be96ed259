"""Half and float together (spec section 14)."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from programs import Body, infer, make_options

import poptorch

HALF, FLOAT = torch.float16, torch.float32
H = torch.tensor([[0.5, -1.0, 2.0], [1.5, 0.25, -3.0]], dtype=HALF)
X = H.float() + 0.1


@pytest.mark.parametrize(
    "operation",
    [
        lambda h, x: h + x,
        lambda h, x: x * h,
        lambda h, x: torch.where(h > 0, h, x),
        lambda h, x: torch.cat([h, x]),
        lambda h, x: torch.maximum(h, x),
        lambda h, x: h.add(x, alpha=2),
    ],
)
def test_section14_binary_operations_promote_as_in_torch(operation):
    found = infer(lambda m, h, x: operation(h, x), H, X)
    expected = operation(H, X)
    assert found.dtype == expected.dtype == FLOAT and torch.equal(found, expected)


@pytest.mark.parametrize("scalar", [2, 2.5, True])
def test_section14_python_numbers_do_not_widen(scalar):
    found = infer(lambda m, h: h * scalar, H)
    assert found.dtype == HALF and torch.equal(found, H * scalar)


@pytest.mark.parametrize("norm", [torch.nn.BatchNorm1d(3), torch.nn.LayerNorm(3), torch.nn.GroupNorm(1, 3)])
def test_section14_norms_of_float_weights_keep_half_activations(norm):
    norm.eval()
    found = infer(lambda m, h: m.norm(h), H, norm=norm)
    assert found.dtype == HALF
    torch.testing.assert_close(found.float(), norm(H.float()).detach(), rtol=2e-3, atol=2e-3)


def test_section14_running_statistics_follow_in_more_than_half():
    """Float statistics of a half model: 1000 small steps towards the mean do not get stuck in half's precision."""
    norm = torch.nn.BatchNorm1d(3, momentum=0.0005).half()
    model = Body(lambda m, h: poptorch.identity_loss(m.norm(h).float().sum(), "none"), norm=norm)
    options = make_options(200)
    options.Precision.runningStatisticsAlwaysFloat(True)
    executor = poptorch.trainingModel(model, options, torch.optim.SGD(model.parameters(), lr=0.0))
    for _ in range(2):
        executor(torch.ones(400, 3, dtype=HALF))
    expected = 1 - (1 - 0.0005) ** 400
    torch.testing.assert_close(norm.running_mean, torch.full((3,), expected, dtype=HALF), rtol=2e-3, atol=0)


def test_section14_partials_do_not_change_the_program_type():
    options = poptorch.Options()
    options.Precision.setPartialsType(torch.half)
    found = infer(lambda m, h: F.linear(h, m.w), H, options=options, w=torch.nn.Parameter(torch.ones(2, 3)))
    assert found.dtype == HALF and torch.equal(found, F.linear(H.float(), torch.ones(2, 3)).half())


def test_section14_integers_become_floats_only_where_torch_says_so():
    i = torch.tensor([[1, 2, 3]], dtype=torch.int32)
    sums = infer(lambda m, i: (i + 1, i / 2, i * 0.5, i.float() + i), i)
    assert [tensor.dtype for tensor in sums] == [torch.int32, FLOAT, FLOAT, FLOAT]
