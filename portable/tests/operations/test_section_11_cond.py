"""Conditionals: one of two bodies, by a value of the device (section 11). Loops: test_for_loop.py."""

from __future__ import annotations

import copy
import types

import pytest
import torch
from programs import Body, infer, train

import poptorch


def branch(condition, x):
    return poptorch.cond(condition, lambda a: a * 2, [x], lambda a, b: a - b, [x, torch.ones_like(x)])


def test_cond_chooses_at_run_time():
    executor = poptorch.inferenceModel(Body(lambda m, c, x: branch(c > 0, x)))
    x = torch.tensor([5.0])
    assert [executor(torch.tensor([c]), x)[0].item() for c in (1.0, -1.0, 2.0)] == [10, 4, 10]


def test_cond_outside_an_executor_returns_a_list():
    x = torch.tensor([5.0])
    assert [branch(torch.tensor(flag), x)[0].item() for flag in (True, False)] == [10, 4]
    assert isinstance(branch(torch.tensor(True), x), list)


def test_cond_takes_its_inputs_by_value():
    def forward(m, x):
        out = poptorch.cond(x.sum() > 0, lambda a: a.add_(1), [x], lambda a: a.sub_(1), [x])
        return out[0], x * 1

    out, x = infer(forward, torch.ones(1))
    assert (out.item(), x.item()) == (2, 1)


def test_cond_inside_a_loop_and_a_loop_inside_cond():
    def body(a):
        return poptorch.cond(
            a.sum() > 4, lambda b: b - 1, [a], lambda b: poptorch.for_loop(2, lambda c: c * 3, [b]), [a]
        )

    assert infer(lambda m, x: poptorch.for_loop(3, body, [x])[0], torch.ones(1)).item() == 7  # 9, 8, 7


def test_cond_reads_weights_and_writes_buffers():
    def forward(m, x):
        def count(a):
            m.count.add_(1)
            return a + m.w

        return poptorch.cond(x.sum() > 0, count, [x], lambda a: a * 1, [x])[0], m.count * 1

    members = dict(w=torch.nn.Parameter(torch.ones(1)), count=torch.zeros(1))
    executor = poptorch.inferenceModel(Body(forward, **members))
    assert [executor(torch.tensor([v]))[1].item() for v in (1.0, -1.0, 1.0)] == [1, 1, 2]


def test_cond_is_for_inference_only():
    with pytest.raises(poptorch.Error, match=r"poptorch.cond\(\) is only supported in inference"):
        train(lambda m, x: poptorch.identity_loss(branch(x.sum() > 0, x * m.w)[0], "sum"), torch.ones(1))


def test_cond_checks_its_arguments():
    x = torch.ones(1)
    with pytest.raises(ValueError, match="must be of type list"):
        poptorch.cond(torch.tensor(True), lambda a: a, x, lambda a: a, [x])
    with pytest.raises(ValueError, match="one element"):
        poptorch.cond(torch.ones(2), lambda a: a, [x], lambda a: a, [x])
    with pytest.raises(poptorch.Error, match="same number, shapes and types"):
        infer(lambda m, x: poptorch.cond(x.sum() > 0, lambda a: a, [x], lambda a: a.long(), [x])[0], x)


def test_a_residual_of_half_in_a_branch_and_in_a_loop(monkeypatch):
    """What a body takes from outside was without a type for those who choose how products of half are computed."""
    monkeypatch.setenv("POPTORCH_PORTABLE_HALF", "bfloat16")
    torch.manual_seed(0)
    norm, layer = torch.nn.LayerNorm(8), torch.nn.Linear(8, 8)

    def block(m, x):
        for _ in range(2):
            x = x + m.layer(m.norm(x))
        return x

    def branches(m, x, wanted):
        return poptorch.cond(wanted, lambda t: block(m, t), [x], lambda t: t, [x])[0]

    def loop(m, x, wanted):
        return poptorch.for_loop(1, lambda t: block(m, t), [x])[0]

    x = torch.randn(4, 8)
    half = {"norm": copy.deepcopy(norm).half(), "layer": copy.deepcopy(layer).half()}
    expected = block(types.SimpleNamespace(norm=norm, layer=layer), x)
    for function in (branches, loop):
        found = infer(function, x.half(), torch.tensor([True]), **half)
        torch.testing.assert_close(found.float(), expected, rtol=5e-2, atol=5e-2)
