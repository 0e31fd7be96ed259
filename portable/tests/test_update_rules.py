"""The device's optimizer steps (engine/optimizer.py) against float64 formulas and against torch."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import poptorch.engine.pieces
from poptorch import notices, optim
from poptorch.engine.optimizer import DeviceOptimizer
from poptorch.poptorch_core import Error

SHAPES = {"a": (5, 7), "b": (11,), "c": (3, 2, 2), "d": ()}
SWITCHES = ("centered", "nesterov")


def parameters(seed: int = 0, dtype: torch.dtype = torch.float32) -> dict[str, torch.nn.Parameter]:
    generator = torch.Generator().manual_seed(seed)
    return {
        name: torch.nn.Parameter(torch.randn(shape, generator=generator).to(dtype)) for name, shape in SHAPES.items()
    }


def gradients(step: int, scale: float = 1.0, dtype: torch.dtype = torch.float32) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(1000 + step)
    return {name: (scale * torch.randn(shape, generator=generator)).to(dtype) for name, shape in SHAPES.items()}


def device_optimizer(optimizer, host, device=None, *, rounding=False, seed=0):
    device = device or {name: param.detach().clone() for name, param in host.items()}
    made = DeviceOptimizer(
        optimizer,
        host,
        device,
        param_dtypes={name: param.dtype for name, param in host.items()},
        stochastic_rounding=rounding,
        generator=torch.Generator().manual_seed(seed),
    )
    return made, device


def in_two_groups(host, first: dict, second: dict) -> list[dict]:
    return [{"params": [host["a"], host["c"]], **first}, {"params": [host["b"], host["d"]], **second}]


class Reference:
    """The formulas of the specification, one parameter at a time, in float64."""

    def __init__(self, kind, weights, numbers, *, loss_scaling=1.0, max_grad_norm=math.inf, correct=True, tf=False):
        self.kind, self.loss_scaling, self.max_grad_norm = kind, loss_scaling, max_grad_norm
        self.correct, self.tf, self.t = correct, tf, 0
        self.w = {name: weight.detach().double().clone() for name, weight in weights.items()}
        self.numbers = numbers  # by parameter name
        self.memory = {name: [torch.zeros_like(weight) for _ in range(3)] for name, weight in self.w.items()}

    def step(self, grads):
        self.t += 1
        grads = {name: grad.double() for name, grad in grads.items()}
        if self.kind != "SGD":
            grads = {name: grad / self.loss_scaling for name, grad in grads.items()}
        norm = math.sqrt(sum(float((grad * grad).sum()) for grad in grads.values()))
        factor = self.max_grad_norm / max(norm, self.max_grad_norm) if math.isfinite(self.max_grad_norm) else 1.0
        for name, grad in grads.items():
            grad = grad * factor
            if self.kind == "SGD":
                grad = grad / self.loss_scaling
            getattr(self, self.kind)(name, grad, **self.numbers[name])

    def SGD(self, name, g, lr, momentum, dampening, weight_decay, nesterov):
        g = g + weight_decay * self.w[name]
        if momentum:
            self.memory[name][0] = momentum * self.memory[name][0] + (1 - dampening) * g
            g = g + momentum * self.memory[name][0] if nesterov else self.memory[name][0]
        self.w[name] = self.w[name] - lr * g

    def _moments(self, name, g, betas):
        self.memory[name][0] = betas[0] * self.memory[name][0] + (1 - betas[0]) * g
        self.memory[name][1] = betas[1] * self.memory[name][1] + (1 - betas[1]) * g**2
        m, v = self.memory[name][:2]
        return (m / (1 - betas[0] ** self.t), v / (1 - betas[1] ** self.t)) if self.correct else (m, v)

    def Adam(self, name, g, lr, betas, eps, weight_decay):
        m, v = self._moments(name, g + weight_decay * self.w[name], betas)
        self.w[name] = self.w[name] - lr * m / (v.sqrt() + eps)

    def AdamW(self, name, g, lr, betas, eps, weight_decay):
        m, v = self._moments(name, g, betas)
        self.w[name] = self.w[name] - lr * (m / (v.sqrt() + eps) + weight_decay * self.w[name])

    def LAMB(self, name, g, lr, betas, eps, weight_decay, max_weight_norm=None):
        m, v = self._moments(name, g, betas)
        x = m / (v.sqrt() + eps) + weight_decay * self.w[name]
        bound = 65500.0 if max_weight_norm is None else max_weight_norm
        r1, r2 = min(float(self.w[name].norm()), bound), float(x.norm())
        trust = 1.0 if r1 == 0 or r2 == 0 or bound == 0 else r1 / r2
        self.w[name] = self.w[name] - lr * trust * x

    def RMSprop(self, name, g, lr, alpha, eps, weight_decay, momentum, centered):
        memory = self.memory[name]
        g = g + weight_decay * self.w[name]
        memory[0] = alpha * memory[0] + (1 - alpha) * g**2
        variance = memory[0]
        if centered:
            memory[1] = alpha * memory[1] + (1 - alpha) * g
            variance = memory[0] - memory[1] ** 2
        x = g / (variance + eps).sqrt() if self.tf else g / (variance.sqrt() + eps)
        if momentum and self.tf:
            memory[2] = momentum * memory[2] + lr * x
            self.w[name] = self.w[name] - memory[2]
        else:
            memory[2] = momentum * memory[2] + x
            self.w[name] = self.w[name] - lr * memory[2]


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


def assert_close(device, reference, rtol=2e-5, atol=2e-6):
    for name, weight in device.items():
        torch.testing.assert_close(weight.double(), reference.w[name], rtol=rtol, atol=atol)


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


def test_small_pieces_change_nothing(monkeypatch):
    """Cutting tensors into pieces of 8 elements, some of several tensors, gives the result of whole tensors."""
    results = []
    for limit in (1 << 20, 8):
        monkeypatch.setitem(poptorch.engine.pieces._CHUNK_ELEMENTS, "cpu", limit)
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


# -- half ------------------------------------------------------------------------------------------------------------


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


# -- changes and states ----------------------------------------------------------------------------------------------


def run(made, steps, dtype=torch.float32):
    for step in steps:
        made.step(gradients(step, made.loss_scaling, dtype))


CASES = {
    "SGD": lambda p: optim.SGD(p, lr=0.1, momentum=0.9, loss_scaling=3.0),
    "SGD combined": lambda p: optim.SGD(p, lr=0.1, momentum=0.9, use_combined_accum=True, velocity_scaling=5.0),
    "Adam": lambda p: optim.Adam(p, lr=0.01, loss_scaling=3.0, max_grad_norm=1.0),
    "AdamW half": lambda p: optim.AdamW(p, lr=0.01, first_order_momentum_accum_type=torch.float16),
    "torch AdamW": lambda p: torch.optim.AdamW(p, lr=0.01),
    "RMSprop": lambda p: optim.RMSprop(p, lr=0.01, momentum=0.9, centered=True),
    "LAMB": lambda p: optim.LAMB(p, lr=0.01, loss_scaling=3.0),
}


@pytest.mark.parametrize("case", CASES)
def test_saved_and_loaded_goes_on_to_the_bit(case, tmp_path):
    host = parameters()
    made, device = device_optimizer(CASES[case](host.values()), host)
    run(made, range(3))
    torch.save(made.state_dict(), tmp_path / "state.pt")
    again, copies = device_optimizer(
        CASES[case](host.values()), host, {name: weight.clone() for name, weight in device.items()}
    )
    again.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    assert again.loss_scaling == made.loss_scaling
    run(made, range(3, 6))
    run(again, range(3, 6))
    for name in SHAPES:
        assert torch.equal(device[name], copies[name])


def test_loading_takes_variable_numbers_and_leaves_constant_ones():
    host = parameters()
    made, _ = device_optimizer(optim.AdamW(host.values(), lr=0.5, eps=1e-3), host)
    other, _ = device_optimizer(optim.AdamW(host.values(), lr=0.25), host)  # eps is constant here
    other.load_state_dict(made.state_dict())
    params = other.state_dict()["ipu_param"]
    assert float(params["learningRate___specific___a"]) == 0.5
    assert float(params["eps___specific___a"]) == 1e-8


def test_state_keys():
    host = {"w": torch.nn.Parameter(torch.ones(2))}
    made, _ = device_optimizer(optim.SGD(host.values(), lr=0.5, weight_decay=0.25, loss_scaling=4.0), host)
    params = made.state_dict()["ipu_param"]
    assert float(params["lossScaling_FLOAT"]) == 4.0
    assert float(params["scaledLearningRate0___specific___w"]) == 0.125
    assert float(params["weightDecayScaleFactor0___specific___w"]) == 0.875
    made, _ = device_optimizer(optim.Adam(host.values()), host)
    made.step({"w": torch.ones(2)})
    state = made.state_dict()["ipu_state"]
    assert set(state) == {"Accl1___w", "Accl2___w", "Step___w"} and float(state["Step___w"]) == 1.0
    assert torch.equal(state["Accl1___w"], torch.full((2,), 0.1))


def test_bad_states(caplog, monkeypatch):
    host = parameters()
    made, _ = device_optimizer(optim.Adam(host.values()), host)
    for bad in ({}, {"state": {}, "param_groups": []}, {"ipu_state": None, "ipu_param": None}):
        with pytest.raises(RuntimeError, match="Only IPU optimizer states can be loaded onto the IPU"):
            made.load_state_dict(bad)
    state = made.state_dict()
    state["ipu_state"]["Accl2___a"] = torch.zeros(3)
    with pytest.raises(ValueError, match="Accl2___a"):
        made.load_state_dict(state)
    state = made.state_dict()
    del state["ipu_state"]["Accl2___a"], state["ipu_param"]["lossScaling_FLOAT"]
    monkeypatch.setattr(notices.logger, "propagate", True)
    made.load_state_dict(state)
    assert "Accl2___a" in caplog.text and "lossScaling_FLOAT" in caplog.text


def test_set_optimizer_changes_numbers_and_keeps_momenta():
    host = parameters()
    optimizer = torch.optim.AdamW(host.values(), lr=0.01)
    made, device = device_optimizer(optimizer, host)
    numbers = {"lr": 0.01, "betas": (0.9, 0.999), "eps": 1e-8, "weight_decay": 0.01}
    reference = Reference("AdamW", host, {name: dict(numbers) for name in host})
    for step in range(4):
        if step == 2:
            optimizer.param_groups[0]["lr"] = 0.1  # not on the device yet
        if step == 3:
            made.set_optimizer(optimizer)
            for name in host:
                reference.numbers[name]["lr"] = 0.1
        grads = gradients(step)
        reference.step(grads)
        made.step(grads)
    assert_close(device, reference)


def test_changed_loss_scaling_keeps_the_velocity():
    host = parameters()
    made, device = device_optimizer(optim.SGD(host.values(), lr=0.1, momentum=0.9, loss_scaling=8.0), host)
    plain, expected = device_optimizer(optim.SGD(host.values(), lr=0.1, momentum=0.9), host)
    run(made, range(2))
    made.set_optimizer(optim.SGD(host.values(), lr=0.1, momentum=0.9, loss_scaling=32.0))
    run(made, range(2, 4))
    run(plain, range(4))
    for name in SHAPES:
        assert torch.equal(device[name], expected[name])


def test_constant_attributes_may_not_change():
    host = parameters()
    made, _ = device_optimizer(optim.AdamW(host.values(), lr=0.1, eps=1e-6), host)
    made.set_optimizer(optim.AdamW(host.values(), lr=0.2, eps=1e-5))
    for changed in ({"betas": (0.8, 0.999)}, {"weight_decay": 0.5}, {"loss_scaling": 2.0}, {"max_grad_norm": 1.0}):
        with pytest.raises(Error, match=next(iter(changed))):
            made.set_optimizer(optim.AdamW(host.values(), lr=0.2, eps=1e-5, **changed))
    with pytest.raises(Error, match="accum_type"):
        made.set_optimizer(optim.AdamW(host.values(), lr=0.2, eps=1e-5, accum_type=torch.float16))
    with pytest.raises(Error, match="type may not change"):
        made.set_optimizer(optim.Adam(host.values(), lr=0.2))
    marked = optim.AdamW(host.values(), lr=0.1)
    marked.variable_attrs.markAsVariable("betas")
    marked.variable_attrs.markAsConstant("lr")
    made, _ = device_optimizer(marked, host)
    made.set_optimizer(optim.AdamW(host.values(), lr=0.1, betas=(0.5, 0.5)))
    with pytest.raises(Error, match="lr"):
        made.set_optimizer(optim.AdamW(host.values(), lr=0.3))


def test_torch_optimizers_lr_and_non_defaults_are_variable():
    host = parameters()
    made, _ = device_optimizer(torch.optim.SGD(host.values(), lr=0.1, momentum=0.9), host)
    made.set_optimizer(torch.optim.SGD(host.values(), lr=0.2, momentum=0.8))
    with pytest.raises(Error, match="weight_decay"):
        made.set_optimizer(torch.optim.SGD(host.values(), lr=0.2, momentum=0.8, weight_decay=0.1))


def test_refused_optimizers():
    host = parameters()
    with pytest.raises(AssertionError, match="Unsupported optimizer type. Types supported"):
        device_optimizer(torch.optim.Adagrad(host.values()), host)
    with pytest.raises(ValueError, match="amsgrad"):
        device_optimizer(torch.optim.Adam(host.values(), amsgrad=True), host)
    groups = in_two_groups(host, {"centered": True}, {"centered": False})
    with pytest.raises(AssertionError, match="centered"):
        device_optimizer(optim.RMSprop(groups), host)
    optimizer = optim.Adam(host.values())
    optimizer.first_order_momentum_accum_type = torch.bfloat16
    with pytest.raises(ValueError, match="first_order_momentum_accum_type"):
        device_optimizer(optimizer, host)


def test_warnings(monkeypatch):
    said = []
    monkeypatch.setattr(notices, "once", lambda key, message, *level: said.append((message, *level)))

    class Mine(torch.optim.SGD):
        pass

    host = parameters()
    device_optimizer(Mine(host.values(), lr=0.1), host)
    assert "Optimizer `Mine` subclassed from classes in poptorch.optim or torch.optim are unlikely" in said[0][0]
    optimizer = optim.SGD([{"params": list(host.values()), "colour": 3}], lr=0.1)
    torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=1.0, total_steps=10, cycle_momentum=False)
    device_optimizer(optimizer, host)
    assert len(said) == 2 and "['colour']" in said[1][0]
    device_optimizer(torch.optim.SGD(host.values(), lr=0.1, maximize=True), host)
    assert len(said) == 3 and "maximize" in said[2][0]
