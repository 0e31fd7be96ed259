"""The device's optimizer steps (engine/updating/optimizer.py) against float64 formulas and against torch."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from optimizer_reference import SHAPES, Reference, assert_close, device_optimizer, gradients, in_two_groups, parameters

import poptorch.engine.updating.pieces
from poptorch import notices, optim


def numbers_of(kind):
    """A strategy for one group's hyper-parameters."""
    common = {"lr": st.floats(1e-4, 0.1), "weight_decay": st.sampled_from([0.0, 0.01, 0.2])}
    if kind == "SGD":
        return st.fixed_dictionaries(
            {
                **common,
                "momentum": st.sampled_from([0.0, 0.5, 0.9]),
                "dampening": st.sampled_from([0.0, 0.3]),
                "nesterov": st.booleans(),
            }
        ).map(lambda n: {**n, "nesterov": n["nesterov"] and n["momentum"] > 0 and n["dampening"] == 0})
    common["eps"] = st.sampled_from([1e-8, 1e-6, 1e-3])
    if kind == "RMSprop":
        return st.fixed_dictionaries({**common, "alpha": st.floats(0.5, 0.99), "momentum": st.sampled_from([0.0, 0.9])})
    common["betas"] = st.tuples(st.floats(0.0, 0.95), st.floats(0.5, 0.999))
    if kind == "LAMB":
        common["max_weight_norm"] = st.sampled_from([None, 0, 0.5, 100.0])
    return st.fixed_dictionaries(common)


@pytest.mark.parametrize("kind", ["SGD", "Adam", "AdamW", "LAMB", "RMSprop"])
@pytest.mark.parametrize("source", ["poptorch", "torch"])
def test_agrees_with_the_formula(kind, source):
    if (kind, source) == ("LAMB", "torch"):
        return  # torch has none

    @settings(max_examples=25, deadline=None)
    @given(st.data())
    def check(data):
        first, second = data.draw(numbers_of(kind)), data.draw(numbers_of(kind))
        whole, further = {}, {}
        if kind == "RMSprop":
            centered = data.draw(st.booleans())
            first["centered"] = second["centered"] = centered
        if source == "poptorch":
            whole["loss_scaling"] = further["loss_scaling"] = data.draw(st.sampled_from([1.0, 128.0, 50000.0]))
            if kind in ("SGD", "Adam", "AdamW"):
                further["max_grad_norm"] = whole["max_grad_norm"] = data.draw(st.sampled_from([math.inf, 1.0, 1e3]))
            if kind == "RMSprop":
                whole["use_tf_variant"] = further["tf"] = data.draw(st.booleans())
            if kind == "LAMB":
                whole["bias_correction"] = further["correct"] = data.draw(st.booleans())
        host = parameters()
        cls = getattr(optim if source == "poptorch" else torch.optim, kind)
        made, device = device_optimizer(cls(in_two_groups(host, first, second), lr=1.0, **whole), host)
        numbers = {"a": first, "c": first, "b": second, "d": second}
        reference = Reference(kind, host, numbers, **further)
        for step in range(4):
            grads = gradients(step, made.loss_scaling)
            reference.step(grads)
            made.step(grads)
        assert_close(device, reference, rtol=1e-4, atol=2e-5)

    check()


@pytest.mark.parametrize(
    "cls, numbers",
    [
        (torch.optim.SGD, {"lr": 0.1, "momentum": 0.9, "weight_decay": 0.01, "nesterov": True}),
        (torch.optim.SGD, {"lr": 0.1}),
        (torch.optim.Adam, {"lr": 0.01, "weight_decay": 0.1}),
        (torch.optim.AdamW, {"lr": 0.01, "weight_decay": 0.1}),
        (torch.optim.RMSprop, {"lr": 0.01, "momentum": 0.5, "weight_decay": 0.1}),
        (torch.optim.RMSprop, {"lr": 0.01, "centered": True}),
    ],
)
def test_agrees_with_torch(cls, numbers):
    host = parameters()
    optimizer = cls(host.values(), **numbers)
    made, device = device_optimizer(optimizer, host)
    for step in range(5):
        grads = gradients(step)
        for name, param in host.items():
            param.grad = grads[name].clone()
        optimizer.step()
        made.step(grads)
    for name, weight in device.items():
        torch.testing.assert_close(weight, host[name].detach(), rtol=1e-5, atol=1e-6)


@settings(max_examples=50, deadline=None)
@given(st.dictionaries(st.text(max_size=3), st.integers(1, 40), max_size=6), st.integers(1, 30))
def test_buckets_hold_every_element_once_and_no_more_than_the_limit(sizes, limit):
    seen = {name: [] for name in sizes}
    for bucket in poptorch.engine.updating.pieces.buckets(sizes, limit):
        assert 0 < sum(stop - start for _, start, stop in bucket) <= limit
        for name, start, stop in bucket:
            seen[name] += range(start, stop)
    assert seen == {name: list(range(size)) for name, size in sizes.items()}


def test_small_pieces_change_nothing(monkeypatch):
    """Cutting tensors into pieces of 8 elements, some of several tensors, gives the result of whole tensors."""
    results = []
    for limit in (1 << 20, 8):
        monkeypatch.setitem(poptorch.engine.updating.pieces._CHUNK_ELEMENTS, "cpu", limit)
        weights = []
        for cls in (optim.AdamW, optim.LAMB, optim.SGD, optim.RMSprop):
            host = parameters()
            more = {"momentum": 0.9} if cls in (optim.SGD, optim.RMSprop) else {}
            if cls in (optim.AdamW, optim.SGD):
                more["max_grad_norm"] = 0.5
            made, device = device_optimizer(cls(host.values(), lr=0.01, accum_type=torch.float16, **more), host)
            for step in range(3):
                made.step(gradients(step, dtype=torch.float16))
            weights += device.values()
        results.append(weights)
    for whole, cut in zip(*results, strict=True):
        torch.testing.assert_close(cut, whole, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("cls", [optim.SGD, optim.Adam, optim.AdamW, optim.LAMB, optim.RMSprop])
@pytest.mark.parametrize("scaling", [4.0, 1024.0])
def test_loss_scaling_does_not_show(cls, scaling):
    """A power of two as loss scaling changes nothing, to the bit."""
    weights = []
    for loss_scaling in (1.0, scaling):
        host = parameters()
        more = {"momentum": 0.9, "weight_decay": 0.1} if cls is optim.SGD else {}
        made, device = device_optimizer(cls(host.values(), lr=0.01, loss_scaling=loss_scaling, **more), host)
        assert made.loss_scaling == loss_scaling
        for step in range(3):
            made.step(gradients(step, loss_scaling))
        weights.append(device)
    for name in SHAPES:
        assert torch.equal(weights[0][name], weights[1][name])


def test_clipping_is_of_scaled_gradients_for_sgd_only():
    """Gradients of norm n, loss scaling 100: a bound of 10 n bites SGD, whose scaled norm is 100 n, but not Adam."""
    norm = math.sqrt(sum(float((grad * grad).sum()) for grad in gradients(0).values()))
    host = parameters()
    made, device = device_optimizer(optim.SGD(host.values(), lr=1.0, loss_scaling=100.0, max_grad_norm=10 * norm), host)
    made.step(gradients(0, 100.0))
    for name, grad in gradients(0).items():
        torch.testing.assert_close(host[name].detach() - device[name], grad / 10, rtol=1e-4, atol=1e-5)
    moments = []
    for bound in (None, 10 * norm):
        made, _ = device_optimizer(optim.Adam(host.values(), loss_scaling=100.0, max_grad_norm=bound), host)
        made.step(gradients(0, 100.0))
        moments.append(made.state_dict()["ipu_state"]["Accl1___a"])
    torch.testing.assert_close(*moments)


def test_parameters_in_no_group_and_frozen_ones_and_missing_gradients():
    host = parameters()
    host["d"].requires_grad_(False)
    optimizer = optim.SGD([{"params": [host["a"]], "lr": 0.5}], lr=0.25)
    made, device = device_optimizer(optimizer, host)
    grads = gradients(0)
    del grads["c"]
    expected = {"a": host["a"] - 0.5 * grads["a"], "b": host["b"] - 0.25 * grads["b"], "c": host["c"], "d": host["d"]}
    made.step(grads)
    for name, weight in device.items():
        torch.testing.assert_close(weight, expected[name].detach())


def test_lamb_zero_norms():
    """A zero weight or a zero direction has trust ratio 1; so has a group whose max_weight_norm is 0."""
    host = parameters()
    with torch.no_grad():
        host["a"].zero_()
    numbers = {"lr": 0.1, "betas": (0.9, 0.999), "eps": 1e-6, "weight_decay": 0.0, "max_weight_norm": 2.0}
    off = {**numbers, "max_weight_norm": 0}
    made, device = device_optimizer(optim.LAMB(in_two_groups(host, numbers, off)), host)
    reference = Reference("LAMB", host, {"a": numbers, "c": numbers, "b": off, "d": off})
    grads = gradients(0)
    grads["c"].zero_()
    reference.step(grads)
    made.step(grads)
    assert_close(device, reference)
    assert torch.equal(device["c"], host["c"].detach())
    # Without decay the first step of size-one elements: lr * sign(g) where the trust ratio is 1.
    torch.testing.assert_close(device["a"], -0.1 * grads["a"].sign(), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("value", ["absent", None])
def test_lamb_default_max_weight_norm(value):
    host = {"w": torch.nn.Parameter(torch.full((4,), 1e6))}
    group = {"params": list(host.values()), **({} if value == "absent" else {"max_weight_norm": value})}
    made, device = device_optimizer(optim.LAMB([group], lr=0.1, weight_decay=0.0), host)
    made.step({"w": torch.ones(4)})
    # ||x|| = 2, trust = 65500 / 2
    torch.testing.assert_close(device["w"], torch.full((4,), 1e6 - 0.1 * 65500 / 2))


def test_adamw_without_bias_correction_corrects_and_says_so(monkeypatch):
    said = []
    monkeypatch.setattr(notices, "once", lambda key, message, *_: said.append(message))
    host = parameters()
    numbers = {"lr": 0.1, "betas": (0.9, 0.999), "eps": 1e-6, "weight_decay": 0.0}
    made, device = device_optimizer(optim.AdamW(host.values(), bias_correction=False, **numbers), host)
    reference = Reference("AdamW", host, dict.fromkeys(host, numbers))
    grads = gradients(0)
    reference.step(grads)
    made.step(grads)
    assert_close(device, reference)
    assert len(said) == 1 and "bias_correction" in said[0]
