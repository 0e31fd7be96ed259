"""Optimizer steps with half weights, half gradients and half states."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from optimizer_reference import SHAPES, Reference, assert_close, device_optimizer, gradients, in_two_groups, parameters

from poptorch import optim
from poptorch.device import half_products, native
from poptorch.device.native import adam
from poptorch.engine.updating import pieces
from poptorch.engine.updating.optimizer import DeviceOptimizer
from poptorch.engine.updating.spread import Spread

needs_kernels = pytest.mark.skipif(not native.available(), reason="the kernels are not built (run `make`)")


def half_adamw(host, **more):
    types = {
        "accum_type": torch.float16,
        "first_order_momentum_accum_type": torch.float16,
        "second_order_momentum_accum_type": torch.float32,
    }
    return optim.AdamW(host.values(), lr=0.01, weight_decay=0.1, eps=1e-6, loss_scaling=64.0, **types, **more)


def test_half_states_are_kept_in_half():
    host = parameters()
    made, device = device_optimizer(half_adamw(host), host)
    numbers = {"lr": 0.01, "betas": (0.9, 0.999), "eps": 1e-6, "weight_decay": 0.1}
    reference = Reference("AdamW", host, dict.fromkeys(host, numbers), loss_scaling=64.0)
    for step in range(5):
        grads = gradients(step, 64.0, torch.float16)
        reference.step(grads)
        made.step(grads)
    assert all(made.accum_dtype(name) == torch.float16 for name in host)
    state = made.state_dict()["ipu_state"]
    assert state["Accl1___a"].dtype == torch.float16 and state["Accl2___a"].dtype == torch.float32
    # Only the stored first moment is rounded (relative 2^-11), so updates differ by a few thousandths of lr.
    assert_close(device, reference, rtol=0, atol=5e-4 * 0.05)
    torch.testing.assert_close(state["Accl1___a"].double(), reference.memory["a"][0], rtol=2e-3, atol=1e-4)


@pytest.mark.parametrize(
    "make",
    [
        lambda p: optim.AdamW(p, lr=0.01, weight_decay=0.1),
        lambda p: optim.LAMB(p, lr=0.01),
        lambda p: optim.SGD(p, lr=0.01, momentum=0.9, use_combined_accum=False),
        lambda p: optim.RMSprop(p, lr=0.01, momentum=0.9, centered=True),
    ],
    ids=["AdamW", "LAMB", "SGD", "RMSprop"],
)
def test_states_in_another_memory_have_the_same_numbers(make, monkeypatch):
    """Piece by piece through copies, as where the device is not the host; here both memories are one."""
    monkeypatch.setitem(pieces._CHUNK_ELEMENTS, "cpu", 7)
    host = parameters()
    made = [device_optimizer(make(host.values()), host, apart=apart) for apart in (False, True)]
    copied = []
    original = pieces.Float32Views.__init__

    def watched(self, stored, device=None):
        copied.append(device is not None)
        original(self, stored, device)

    monkeypatch.setattr(pieces.Float32Views, "__init__", watched)
    for step in range(3):
        for optimizer, _ in made:
            optimizer.step(gradients(step, 1.0, torch.float32))
    for name in host:
        torch.testing.assert_close(made[1][1][name], made[0][1][name], rtol=1e-6, atol=1e-7)
    states = [optimizer.state_dict()["ipu_state"] for optimizer, _ in made]
    assert any(copied) and states[0].keys() == states[1].keys()
    for name, state in states[0].items():
        torch.testing.assert_close(states[1][name], state, rtol=1e-6, atol=1e-7)


def watched(monkeypatch):
    """The numbers of tensors that each call of Adam's kernel gets."""
    calls, kernel = [], adam.adam

    def counted(weights, *arguments, **numbers):
        calls.append(len(weights))
        kernel(weights, *arguments, **numbers)

    monkeypatch.setattr(adam, "adam", counted)
    return calls


@needs_kernels
@pytest.mark.parametrize("cls", [optim.Adam, optim.AdamW])
@pytest.mark.parametrize("types", list(itertools.product([torch.float32, torch.float16], repeat=4)), ids=str)
def test_adams_kernel_gives_what_the_pieces_give(cls, types, monkeypatch):
    """Weights, accumulators and states of either type, clipped gradients, two groups of numbers."""
    weight, accumulator, *moments = types
    roles = ("accum_type", "first_order_momentum_accum_type", "second_order_momentum_accum_type")
    more = dict(zip(roles, (accumulator, *moments), strict=True))
    host = parameters(dtype=weight)
    groups = [{"weight_decay": 0.1, "lr": 0.01}, {"betas": (0.0, 0.9), "lr": 0.02}]
    calls, found = watched(monkeypatch), []
    for kernel in (True, False):
        if not kernel:
            monkeypatch.setattr(native, "library", lambda: None)
        optimizer = cls(in_two_groups(host, *groups), lr=1.0, loss_scaling=64.0, max_grad_norm=1.0, eps=1e-4, **more)
        made, device = device_optimizer(optimizer, host)
        for step in range(4):
            made.step(gradients(step, 64.0, accumulator))
        found.append({**device, **made.state_dict()["ipu_state"]})
        assert calls == [2, 2] * 4
    for name, tensor in found[0].items():
        # A last digit of float32 may decide which way a half is rounded, once a step.
        bound = {"rtol": 2e-6, "atol": 2e-7} if torch.float16 not in types else {"rtol": 4e-3, "atol": 1e-4}
        assert tensor.dtype == found[1][name].dtype
        torch.testing.assert_close(tensor, found[1][name], **bound)


@needs_kernels
def test_what_adams_kernel_leaves_to_the_pieces(monkeypatch):
    calls = watched(monkeypatch)
    for dtype, rounding, taken in [
        (torch.float16, True, False),  # weights rounded stochastically
        (torch.float16, False, True),
        (torch.float32, True, True),
    ]:
        host = parameters(dtype=dtype)
        made, _ = device_optimizer(torch.optim.Adam(host.values()), host, rounding=rounding)
        made.step(gradients(0))
        assert calls == [len(host)] * taken
        calls.clear()
    for cls in (optim.SGD, optim.LAMB, optim.RMSprop):
        host = parameters()
        made, _ = device_optimizer(cls(host.values(), lr=0.1), host)
        made.step(gradients(0))
    made, _ = device_optimizer(optim.Adam(host.values()), host, apart=True)
    made.step(gradients(0))
    assert not calls


class HalfOfEach(Spread):
    """Two processes of which this is the first; the other one's half of each weight becomes 5."""

    def own_entries(self, name, state, elements):
        return state.view(-1)[: -(-state.numel() // 2)]

    def spread(self, parameters, names):
        for name in names:
            parameters[name].view(-1)[-(-parameters[name].numel() // 2) :] = 5.0


@needs_kernels
def test_the_copy_of_a_weight_that_comes_in_shards_is_rounded_anew(monkeypatch):
    calls = watched(monkeypatch)
    host, weight = {"w": torch.nn.Parameter(torch.randn(8).half())}, torch.randn(8).requires_grad_()
    half_products.keep_rounded(weight)
    half_products.rounded_weight(weight, torch.bfloat16)
    made = DeviceOptimizer(
        optim.AdamW(host.values(), lr=0.1),
        host,
        {"w": weight},
        param_dtypes={"w": torch.float16},
        stochastic_rounding=False,
        generator=None,
        spread=HalfOfEach(),
    )
    before = weight.detach().clone()
    made.step({"w": torch.ones(8)})
    assert calls == [1] and weight[4:].tolist() == [5.0] * 4 and (weight[:4] != before[:4]).all()
    assert torch.equal(half_products.rounded_weight(weight, torch.bfloat16), weight.detach().bfloat16())


@pytest.mark.parametrize("cls", [optim.SGD, optim.Adam, optim.AdamW, optim.LAMB, optim.RMSprop])
def test_model_half_means_half_accumulators_unless_asked(cls):
    for dtype, asked, expected in [
        (torch.float16, None, torch.float16),
        (torch.float16, torch.float32, torch.float32),
        (torch.float32, None, torch.float32),
        (torch.float32, torch.float16, torch.float16),
    ]:
        host = parameters(dtype=dtype)
        made, _ = device_optimizer(cls(host.values(), lr=0.1, accum_type=asked), host)
        assert {made.accum_dtype(name) for name in host} == {expected}


def test_half_weights_rounded_to_nearest_lose_small_updates_and_stochastically_keep_them():
    count, steps = 4096, 32
    host = {"w": torch.nn.Parameter(torch.ones(count, dtype=torch.float16))}
    update = 2.0**-14  # an eighth of the distance to the next number below 1, 2^-11
    means = {}
    for rounding in (False, True):
        made, device = device_optimizer(torch.optim.SGD(host.values(), lr=update), host, rounding=rounding)
        assert device["w"].dtype == torch.float16
        for _ in range(steps):
            made.step({"w": torch.ones(count, dtype=torch.float16)})
        means[rounding] = float(device["w"].double().mean())
    assert means[False] == 1.0
    # Each step adds a variance of at most (2^-11)^2 / 4 per element.
    deviation = 2.0**-12 * math.sqrt(steps / count)
    assert abs(means[True] - (1 - steps * update)) < 5 * deviation


def test_float32_masters_of_a_half_program_are_not_rounded():
    host = parameters(dtype=torch.float16)
    masters = {name: param.detach().float() for name, param in host.items()}
    before = {name: master.clone() for name, master in masters.items()}
    made, _ = device_optimizer(torch.optim.SGD(host.values(), lr=1.0), host, masters, rounding=True)
    made.step({name: torch.full(shape, 2.0**-10, dtype=torch.float16) for name, shape in SHAPES.items()})
    for name, master in masters.items():
        assert torch.equal(master, before[name] - 2.0**-10)


def test_half_gradients_are_clipped_by_a_norm_that_does_not_overflow():
    host = {"w": torch.nn.Parameter(torch.zeros(10_000))}
    made, device = device_optimizer(optim.SGD(host.values(), lr=1.0, accum_type=torch.float16, max_grad_norm=1.0), host)
    made.step({"w": torch.full((10_000,), 60000.0, dtype=torch.float16)})
    torch.testing.assert_close(device["w"], torch.full((10_000,), -0.01))


@pytest.mark.parametrize("combined", [False, True])
def test_half_velocity_does_not_underflow(combined):
    """Velocities below float16's smallest number survive because they are stored scaled."""
    host = {"w": torch.nn.Parameter(torch.zeros(8, dtype=torch.float16 if combined else torch.float32))}
    more = {"use_combined_accum": True, "velocity_scaling": 1024.0} if combined else {}
    more.update({} if combined else {"velocity_accum_type": torch.float16})
    masters = {"w": torch.zeros(8)}
    optimizer = optim.SGD(host.values(), lr=1.0, momentum=0.5, loss_scaling=1024.0, **more)
    made, _ = device_optimizer(optimizer, host, masters)
    key = "Accl___w" if combined else "Accl1___w"
    for _ in range(2):
        made.step({"w": torch.full((8,), 2.0**-26 * 1024, dtype=made.accum_dtype("w"))})
    assert made.state_dict()["ipu_state"][key].dtype == torch.float16
    assert torch.equal(masters["w"], torch.full((8,), -(2.0**-26) * (1 + 1.5)))
