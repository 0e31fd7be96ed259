"""Causal attention without dropout: by the kernel of device/native/ where it is faster, else by torch's."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from programs import Body, make_options

import poptorch
from poptorch.device import native
from poptorch.device.dropout_attention import causal_attention
from poptorch.engine.as_one.number import VARIABLE

SDPA = torch.ops.aten.scaled_dot_product_attention.default
WIDTH, HEADS, LONG = 24, 3, 96

pytestmark = pytest.mark.skipif(not native.available(), reason="the kernels are not built (run `make`)")


def heads(m, x):
    """(B, T, C) -> queries, keys and values, (B, H, T, D) each"""
    parts = F.linear(x, m.weight).chunk(3, -1)
    return [part.unflatten(-1, (HEADS, -1)).transpose(1, 2) for part in parts]


def joined(m, context):
    return context.transpose(1, 2).flatten(2), poptorch.identity_loss(context.sin().mean(), "mean")


def of_torch(**how):
    return lambda m, x: joined(m, F.scaled_dot_product_attention(*heads(m, x), **how))


def written_out(m, x):
    query, key, value = heads(m, x)
    seen = torch.ones(x.shape[1], x.shape[1], dtype=torch.bool).tril()
    scores = torch.matmul(query, key.transpose(-1, -2)) / math.sqrt(WIDTH // HEADS)
    return joined(m, torch.matmul(torch.softmax(torch.where(seen, scores, -1e9), -1), value))


def trained(forward, length, samples=2, dtype=torch.float32, accumulation=1):
    """Output, gradient and the operations of one step of SGD with rate 1, and both in float64 by torch."""
    generator = torch.Generator().manual_seed(1)
    weight = torch.randn(3 * WIDTH, WIDTH, generator=generator) / 3
    x = torch.randn(samples, length, WIDTH, generator=generator)
    wide = Body(forward, weight=torch.nn.Parameter(weight.double()))
    expected, loss = wide(x.double())
    loss.backward()
    model = Body(forward, weight=torch.nn.Parameter(weight.clone().to(dtype)))
    options = make_options(accumulation=accumulation, mode=poptorch.OutputMode.All)
    executor = poptorch.trainingModel(model, options, torch.optim.SGD(model.parameters(), lr=1.0))
    context, _ = executor(x.to(dtype))
    executor.copyWeightsToHost()
    found = {
        node.target for stage in executor.program.stages for part in stage.segments for node in part.module.graph.nodes
    }
    return (context.double(), weight.double() - model.weight.double()), (expected.detach(), wide.weight.grad), found


@pytest.mark.parametrize("forward", [written_out, of_torch(is_causal=True), of_torch(is_causal=True, scale=0.7)])
def test_it_serves_what_is_causal(forward):
    found, expected, operations = trained(forward, LONG)
    assert causal_attention in operations and SDPA not in operations
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("number", ["1", "4"])
def test_micro_batches_as_one(number, monkeypatch):
    monkeypatch.setenv(VARIABLE, number)
    found, expected, operations = trained(written_out, LONG, samples=4, accumulation=4)
    assert causal_attention in operations
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


def uneven(m, x):
    query, key, value = heads(m, x)
    return joined(m, F.scaled_dot_product_attention(query, key[:, :, ::2], value[:, :, ::2], is_causal=True))


def masked(m, x):
    mask = torch.ones(x.shape[1], x.shape[1], dtype=torch.bool).tril(5)
    return joined(m, F.scaled_dot_product_attention(*heads(m, x), attn_mask=mask))


OTHERS = {
    "not causal": (of_torch(), LONG),
    "another mask": (masked, LONG),
    "fewer keys": (uneven, LONG),
    "short": (of_torch(is_causal=True), 32),
}


@pytest.mark.parametrize("case", OTHERS)
def test_torch_serves_the_rest(case):
    found, expected, operations = trained(*OTHERS[case])
    assert SDPA in operations and causal_attention not in operations
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


def test_without_a_library_torch_serves(monkeypatch):
    monkeypatch.setattr(native, "available", lambda: False)
    found, expected, operations = trained(written_out, LONG)
    assert SDPA in operations
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


def test_a_program_in_half_has_products_of_its_own(monkeypatch):
    monkeypatch.setenv("POPTORCH_PORTABLE_HALF", "bfloat16")
    _, _, operations = trained(written_out, LONG, dtype=torch.float16)
    assert causal_attention not in operations


def test_inference_takes_it_too():
    model = Body(lambda m, x: joined(m, F.scaled_dot_product_attention(*heads(m, x), is_causal=True))[0])
    model.weight = torch.nn.Parameter(torch.randn(3 * WIDTH, WIDTH, generator=torch.Generator().manual_seed(2)) / 3)
    x = torch.randn(1, LONG, WIDTH, generator=torch.Generator().manual_seed(3))
    executor = poptorch.inferenceModel(model)
    torch.testing.assert_close(executor(x), model(x).detach(), rtol=1e-5, atol=1e-5)
    assert any(
        node.target is causal_attention
        for stage in executor.program.stages
        for part in stage.segments
        for node in part.module.graph.nodes
    )
