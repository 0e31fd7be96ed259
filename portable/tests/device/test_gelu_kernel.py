"""The kernel for GELU by tanh with its bias: values and gradients against float64, on every kind of processor."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F

from poptorch.device import native
from poptorch.device.gelu import bias_gelu

SHAPES = [(2, 5, 64), (70, 128), (3, 7), (1, 1), (5, 37), (2000, 97), (9, 70_001)]


def operands(*shape: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """x, bias and the gradient of the result."""
    generator = torch.Generator().manual_seed(0)
    x, bias, above = (torch.randn(size, generator=generator) * 2 for size in (shape, shape[-1:], shape))
    return x, bias, above


def differentiated(function, x, bias, above):
    """The result, and the gradients of x and, if there is one, of the bias."""
    leaves = [each.detach().clone().requires_grad_() for each in (x, bias) if each is not None]
    out = function(*leaves, *[None] * (bias is None))
    return out.detach(), *torch.autograd.grad(out, leaves, above)


def exact(x, bias, above):
    def gelu(x, bias):
        x = x if bias is None else x + bias
        return 0.5 * x * (1.0 + torch.tanh(math.sqrt(2.0 / math.pi) * (x + 0.044715 * x**3)))

    return differentiated(gelu, x.double(), None if bias is None else bias.double(), above.double())


def distances(found, expected) -> list[float]:
    return [float((a - b).norm() / b.norm()) for a, b in zip(found, expected, strict=True)]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("with_bias", [True, False])
def test_values_and_gradients_are_those_of_float64(shape, with_bias, kernels):
    x, bias, above = operands(*shape)
    bias = bias if with_bias else None
    found = differentiated(bias_gelu, x, bias, above)
    assert [each.shape for each in found] == [x.shape, x.shape] + ([bias.shape] if with_bias else [])
    assert max(distances(found, exact(x, bias, above))) < 3e-7


def test_no_worse_than_torch(kernels):
    x, bias, above = operands(4, 256, 512)
    expected = exact(x, bias, above)
    found = distances(differentiated(bias_gelu, x, bias, above), expected)
    plain = distances(differentiated(lambda x, b: F.gelu(x + b, approximate="tanh"), x, bias, above), expected)
    assert all(ours < 1.5 * theirs for ours, theirs in zip(found, plain, strict=True))


def test_every_size_of_a_number_is_right(kernels):
    """From numbers so small that half of them is the result to those where GELU is 0 or its argument."""
    sizes = 10.0 ** torch.linspace(-30, 18, 4001)
    x = torch.cat([-sizes.flip(0), torch.zeros(1), sizes])
    value, gradient = differentiated(bias_gelu, x, None, torch.ones_like(x))
    exactly, slope = exact(x, None, torch.ones_like(x))
    torch.testing.assert_close(value.double(), exactly, rtol=1e-6, atol=2e-7)
    torch.testing.assert_close(gradient.double(), slope, rtol=1e-6, atol=5e-7)


def test_what_is_not_finite_stays_so(kernels):
    x = torch.tensor([math.nan, math.inf, -math.inf, 3e38, -3e38, 1.0, 1.0, 1.0])
    value, gradient = differentiated(bias_gelu, x, None, torch.ones_like(x))
    assert math.isnan(value[0]) and math.isnan(gradient[0])
    assert value[1] == math.inf and not math.isfinite(value[2])
    assert value[3] == x[3] and gradient[3] == 1.0 and value[4] == 0.0 and abs(gradient[4]) < 1e-30
    above = torch.ones_like(x)
    above[6] = math.inf
    assert math.isinf(differentiated(bias_gelu, x, None, above)[1][6])


@pytest.mark.skipif(not native.available(), reason="the kernels are not built (run `make`)")
def test_any_number_of_threads_gives_the_same_bits():
    x, bias, above = operands(300, 1000)
    before = torch.get_num_threads()
    found = []
    try:
        for threads in (1, 2, 5):
            torch.set_num_threads(threads)
            found.append(differentiated(bias_gelu, x, bias, above))
    finally:
        torch.set_num_threads(before)
    for other in found[1:]:
        assert all(torch.equal(a, b) for a, b in zip(found[0], other, strict=True))


def test_tensors_that_are_not_contiguous(kernels):
    x, bias, above = operands(24, 60)
    expected = differentiated(bias_gelu, x, bias, above)
    wide = torch.stack([bias, bias], 1)[:, 0]
    found = differentiated(bias_gelu, x.t().contiguous().t(), wide, above.t().contiguous().t())
    assert not wide.is_contiguous() and all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


@pytest.mark.parametrize("needed", ["x", "bias", "neither"])
def test_only_the_gradients_that_are_asked_for(needed, kernels):
    x, bias, above = operands(40, 48)
    expected = dict(zip(("out", "x", "bias"), differentiated(bias_gelu, x, bias, above), strict=True))
    given = {"x": x, "bias": bias}
    if needed != "neither":
        given[needed].requires_grad_()
    out = bias_gelu(**given)
    assert torch.equal(out, expected["out"]) and out.requires_grad == (needed != "neither")
    if needed != "neither":
        assert torch.equal(torch.autograd.grad(out, given[needed], above)[0], expected[needed])


def test_nothing_of_nothing(kernels):
    for shape in ((0, 4), (4, 0)):
        value, gradient, of_bias = differentiated(bias_gelu, *operands(*shape))
        assert value.shape == gradient.shape == shape and torch.equal(of_bias, torch.zeros(shape[-1]))


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_other_types_have_torch(dtype):
    x, bias, above = (each.to(dtype) for each in operands(6, 30))
    found = differentiated(bias_gelu, x, bias, above)
    expected = differentiated(lambda x, b: F.gelu(x + b, approximate="tanh"), x, bias, above)
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))
