"""The kernel for GELU with its bias: values and gradients against float64, on every kind of processor."""

from __future__ import annotations

import functools
import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from poptorch.device import native
from poptorch.device.gelu import bias_gelu

FORMS = ["none", "tanh"]  # by erf, which is GELU itself, and by tanh
SHAPES = [(2, 5, 64), (70, 128), (3, 7), (1, 1), (5, 37), (2000, 97), (9, 70_001)]

forms = pytest.mark.parametrize("form", FORMS)


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


def ours(form):
    return functools.partial(bias_gelu, approximate=form)


def torchs(form):
    return lambda x, bias: F.gelu(x if bias is None else x + bias, approximate=form)


class Normal(torch.autograd.Function):
    """Phi(x) in float64 to the last digits, the lower tail's too; its derivative is the density."""

    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return torch.special.erfc(-x / math.sqrt(2.0)) / 2

    @staticmethod
    def backward(ctx, above):
        (x,) = ctx.saved_tensors
        return above * torch.exp(-x * x / 2) / math.sqrt(2.0 * math.pi)


def exact(form, x, bias, above):
    def gelu(x, bias):
        x = x if bias is None else x + bias
        if form == "none":
            return x * Normal.apply(x)
        return 0.5 * x * (1.0 + torch.tanh(math.sqrt(2.0 / math.pi) * (x + 0.044715 * x**3)))

    return differentiated(gelu, x.double(), None if bias is None else bias.double(), above.double())


def distances(found, expected) -> list[float]:
    return [float((a - b).norm() / b.norm()) for a, b in zip(found, expected, strict=True)]


@forms
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("with_bias", [True, False])
def test_values_and_gradients_are_those_of_float64(form, shape, with_bias, kernels):
    x, bias, above = operands(*shape)
    bias = bias if with_bias else None
    found = differentiated(ours(form), x, bias, above)
    assert [each.shape for each in found] == [x.shape, x.shape] + ([bias.shape] if with_bias else [])
    assert max(distances(found, exact(form, x, bias, above))) < 3e-7


@forms
@settings(deadline=None, max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_any_operands_give_what_torch_gives_in_float64(form, kernels, data):
    rows, width = data.draw(st.integers(1, 9)), data.draw(st.integers(1, 40))
    size = data.draw(st.sampled_from([1e-3, 1.0, 20.0]))
    generator = torch.Generator().manual_seed(data.draw(st.integers(0, 2**31)))
    x, bias, above = (torch.randn(s, generator=generator) * size for s in ((rows, width), (width,), (rows, width)))
    x, bias = (x + bias) if data.draw(st.booleans()) else x, data.draw(st.sampled_from([bias, None]))
    found = differentiated(ours(form), x, bias, above)
    # The sum of x and the bias is rounded to float32 as in the kernel: what is compared is GELU.
    total = x if bias is None else x + bias
    value, gradient = differentiated(torchs(form), total.double(), None, above.double())
    expected = (value, gradient, *([] if bias is None else [gradient.sum(0)]))
    for mine, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(mine.double(), theirs, rtol=2e-6, atol=5e-7 * size * (1 if mine.dim() > 1 else rows))


@forms
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("with_bias", [True, False])
def test_bfloat16_is_float32_rounded_on_the_way_out(form, shape, with_bias, kernels):
    x, bias, above = operands(*shape)
    x, above, bias = x.bfloat16(), above.bfloat16(), bias if with_bias else None
    x.view(-1)[0] = torch.nan
    found = differentiated(ours(form), x, bias, above)
    value, gradient, *of_bias = differentiated(ours(form), x.float(), bias, above.float())
    for mine, expected in zip(found, [value.bfloat16(), gradient.bfloat16(), *of_bias], strict=True):
        torch.testing.assert_close(mine, expected, rtol=0, atol=0, equal_nan=True)


@forms
def test_no_worse_than_torch(form, kernels):
    x, bias, above = operands(4, 256, 512)
    expected = exact(form, x, bias, above)
    found = distances(differentiated(ours(form), x, bias, above), expected)
    plain = distances(differentiated(torchs(form), x, bias, above), expected)
    assert all(mine < 1.5 * theirs for mine, theirs in zip(found, plain, strict=True))


@forms
def test_every_size_of_a_number_is_right(form, kernels):
    """From numbers so small that half of them is the result to those where GELU is 0 or its argument."""
    sizes = 10.0 ** torch.linspace(-30, 18, 4001)
    x = torch.cat([-sizes.flip(0), torch.zeros(1), sizes])
    value, gradient = differentiated(ours(form), x, None, torch.ones_like(x))
    exactly, slope = exact(form, x, None, torch.ones_like(x))
    torch.testing.assert_close(value.double(), exactly, rtol=1e-6, atol=2e-7)
    torch.testing.assert_close(gradient.double(), slope, rtol=1e-6, atol=5e-7)


def test_by_erf_the_digits_are_right_wherever_gelu_is(kernels):
    """A 20,000th of all floats from 2^-40 to 16 in size: errors in units in the last place of the result."""
    bits = np.arange(*(np.float32(end).view(np.int32) for end in (2.0**-40, 16.0)), 20_011, dtype=np.int32)
    x = torch.from_numpy(bits.view(np.float32))
    x = torch.cat([-x, x])
    value, gradient = differentiated(ours("none"), x, None, torch.ones_like(x))
    exactly, slope = exact("none", x, None, torch.ones_like(x))

    def last_place(of):
        return 2.0 ** (of.abs().clamp_min(2.0**-126).log2().floor() - 23)

    assert float(((value - exactly).abs() / last_place(exactly))[exactly.abs() > 2.0**-120].max()) < 10
    assert float((value - exactly).abs()[exactly.abs() <= 2.0**-120].max()) < 2.0**-126
    # Near its zero the derivative has the digits of the two numbers whose difference it is.
    larger = torch.maximum(slope.abs(), torch.where((x > -1.0) & (x < -0.5), 0.2, 0.0))
    assert float(((gradient - slope).abs() / last_place(larger))[larger > 2.0**-120].max()) < 10
    assert float((gradient - slope).abs()[larger <= 2.0**-120].max()) < 2.0**-124


@forms
def test_what_is_not_finite_stays_so(form, kernels):
    x = torch.tensor([math.nan, math.inf, -math.inf, 3e38, -3e38, 1.0, 1.0, 1.0, -math.nan])
    value, gradient = differentiated(ours(form), x, None, torch.ones_like(x))
    assert math.isnan(value[0]) and math.isnan(gradient[0]) and math.isnan(value[8]) and math.isnan(gradient[8])
    assert value[1] == math.inf and not math.isfinite(value[2])
    assert value[3] == x[3] and gradient[3] == 1.0 and value[4] == 0.0 and abs(gradient[4]) < 1e-30
    above = torch.ones_like(x)
    above[6] = math.inf
    assert math.isinf(differentiated(ours(form), x, None, above)[1][6])


@forms
@pytest.mark.skipif(not native.available(), reason="the kernels are not built (run `make`)")
def test_any_number_of_threads_gives_the_same_bits(form):
    x, bias, above = operands(300, 1000)
    before = torch.get_num_threads()
    found = []
    try:
        for threads in (1, 2, 5):
            torch.set_num_threads(threads)
            found.append(differentiated(ours(form), x, bias, above))
    finally:
        torch.set_num_threads(before)
    for other in found[1:]:
        assert all(torch.equal(a, b) for a, b in zip(found[0], other, strict=True))


@forms
def test_a_row_has_the_bits_that_it_has_alone(form, kernels):
    """Wherever an element stands, at the end of a row or in a vector's middle, and whatever stands beside it."""
    x, bias, above = operands(20, 37)
    value, gradient, _ = differentiated(ours(form), x, bias, above)
    for row, column in ((0, 0), (7, 21), (19, 36)):
        alone = differentiated(
            ours(form), x[row, column].view(1, 1), bias[column].view(1), above[row, column].view(1, 1)
        )
        assert alone[0].item() == value[row, column] and alone[1].item() == gradient[row, column]


@forms
def test_tensors_that_are_not_contiguous(form, kernels):
    x, bias, above = operands(24, 60)
    expected = differentiated(ours(form), x, bias, above)
    wide = torch.stack([bias, bias], 1)[:, 0]
    found = differentiated(ours(form), x.t().contiguous().t(), wide, above.t().contiguous().t())
    assert not wide.is_contiguous() and all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


@forms
@pytest.mark.parametrize("needed", ["x", "bias", "neither"])
def test_only_the_gradients_that_are_asked_for(form, needed, kernels):
    x, bias, above = operands(40, 48)
    expected = dict(zip(("out", "x", "bias"), differentiated(ours(form), x, bias, above), strict=True))
    given = {"x": x, "bias": bias}
    if needed != "neither":
        given[needed].requires_grad_()
    out = ours(form)(**given)
    assert torch.equal(out, expected["out"]) and out.requires_grad == (needed != "neither")
    if needed != "neither":
        assert torch.equal(torch.autograd.grad(out, given[needed], above)[0], expected[needed])


@forms
def test_what_is_kept_for_backward_is_what_torch_keeps(form, kernels):
    """The product, and the bias, which is there in any case."""
    x, bias, _ = operands(40, 48)
    x.requires_grad_()
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda tensor: kept.append(tensor) or tensor, lambda tensor: tensor):
        ours(form)(x, bias)
    assert {tensor.data_ptr() for tensor in kept} == {x.data_ptr(), bias.data_ptr()}


@forms
def test_nothing_of_nothing(form, kernels):
    for shape in ((0, 4), (4, 0)):
        value, gradient, of_bias = differentiated(ours(form), *operands(*shape))
        assert value.shape == gradient.shape == shape and torch.equal(of_bias, torch.zeros(shape[-1]))


@forms
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_other_types_have_torch(form, dtype):
    x, bias, above = (each.to(dtype) for each in operands(6, 30))
    found = differentiated(ours(form), x, bias, above)
    expected = differentiated(torchs(form), x, bias, above)
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))
