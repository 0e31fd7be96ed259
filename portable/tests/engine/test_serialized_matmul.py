"""serializedMatMul: torch.matmul in steps (spec section 11)."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from programs import Body, gradient_of, infer

import poptorch

Mode = poptorch.MatMulSerializationMode
SIZES = {Mode.InputChannels: 0, Mode.ReducingDim: 1, Mode.OutputChannels: 2}


def operands(batch, m, k, n, batched_rhs):
    generator = torch.Generator().manual_seed(m * 100 + k * 10 + n)
    lhs = torch.randn(*batch, m, k, generator=generator, dtype=torch.float64)
    return lhs, torch.randn(*(batch if batched_rhs else ()), k, n, generator=generator, dtype=torch.float64)


@settings(max_examples=40, deadline=None)
@given(
    st.sampled_from([*SIZES, Mode.Disabled]),
    st.sampled_from([(), (2,), (2, 3)]),
    st.integers(1, 3),
    st.tuples(st.integers(1, 3), st.integers(1, 3), st.integers(1, 3)),
    st.booleans(),
    st.booleans(),
)
def test_product_and_gradients_equal_matmul(mode, batch, factor, sizes, batched_rhs, keep_precision):
    sizes = [size * (factor if SIZES.get(mode) == position else 1) for position, size in enumerate(sizes)]
    lhs, rhs = operands(batch, *sizes, batched_rhs)
    ours = [tensor.clone().requires_grad_() for tensor in (lhs, rhs)]
    plain = [tensor.clone().requires_grad_() for tensor in (lhs, rhs)]
    result = poptorch.serializedMatMul(*ours, mode, factor, keep_precision)
    expected = torch.matmul(*plain)
    torch.testing.assert_close(result, expected, rtol=1e-6, atol=1e-6)
    weights = torch.arange(expected.numel(), dtype=torch.float64).view_as(expected)
    (result * weights).sum().backward()
    (expected * weights).sum().backward()
    for mine, reference in zip(ours, plain, strict=True):
        torch.testing.assert_close(mine.grad, reference.grad, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("mode", list(SIZES))
def test_in_a_program(mode):
    x, w = torch.randn(2, 4, 6), torch.randn(6, 8)
    found = infer(lambda m, x: poptorch.serializedMatMul(x, m.w, mode, 2), x, w=torch.nn.Parameter(w))
    torch.testing.assert_close(found, x @ w)
    weight = torch.nn.Parameter(w.clone())
    gradient = gradient_of(
        lambda m, x: poptorch.identity_loss(poptorch.serializedMatMul(x, m.w, mode, 2), "sum"), x, w=weight
    )["w"]
    torch.testing.assert_close(gradient, x.sum((0, 1)).unsqueeze(-1).expand(6, 8))


def test_a_vector_on_the_left():
    x, w = torch.randn(4), torch.randn(4, 6)
    for mode, factor in ((Mode.ReducingDim, 2), (Mode.OutputChannels, 3)):
        torch.testing.assert_close(poptorch.serializedMatMul(x, w, mode, factor), x @ w)


def test_partial_sums_of_half_operands():
    lhs, rhs = torch.tensor([[2048.0, 1, 1]]).half(), torch.ones(3, 1).half()
    rounded = poptorch.serializedMatMul(lhs, rhs, Mode.ReducingDim, 3)
    exact = poptorch.serializedMatMul(lhs, rhs, Mode.ReducingDim, 3, keep_precision=True)
    assert rounded.dtype == exact.dtype == torch.float16
    assert rounded.item() == 2048 and exact.item() == 2050


def test_what_is_refused():
    x = torch.ones(4, 6)
    with pytest.raises(
        poptorch.Error, match="the output_channels dimension \\(4\\) is not divisible by the factor \\(3\\)"
    ):
        poptorch.serializedMatMul(x, x.t(), Mode.OutputChannels, 3)
    for arguments in ((x.tolist(), x, Mode.Disabled), (x, x, "none"), (x, x.t(), Mode.ReducingDim, 2.0)):
        with pytest.raises(AssertionError):
            poptorch.serializedMatMul(*arguments)


def test_the_wish_stays_visible_in_the_graph():
    executor = poptorch.inferenceModel(Body(lambda m, x: poptorch.serializedMatMul(x, x.t(), Mode.OutputChannels, 2)))
    executor(torch.ones(4, 3))
    nodes = executor.program.stages[0].segments[0].module.graph.nodes
    assert any("serialized_matmul" in str(node.target) for node in nodes)
