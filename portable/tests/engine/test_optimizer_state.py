"""What an optimizer on the device keeps: over setOptimizer(), and saved and loaded."""

from __future__ import annotations

import pytest
import torch
from optimizer_reference import SHAPES, Reference, assert_close, device_optimizer, gradients, in_two_groups, parameters

from poptorch import notices, optim
from poptorch.poptorch_core import Error


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
    with pytest.raises(ValueError, match="accum_type.* is already compiled"):
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


def test_the_same_kind_of_either_module_may_follow():
    """torch's AdamW is AdamW, not its base class Adam."""
    host = parameters()
    made, _ = device_optimizer(torch.optim.AdamW(host.values(), lr=0.1), host)
    made.set_optimizer(optim.AdamW(host.values(), lr=0.2))
    with pytest.raises(Error, match="it was AdamW and is now Adam"):
        made.set_optimizer(torch.optim.Adam(host.values(), lr=0.1))


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
    assert "Poptorch does not run Python optimizer code directly" in said[0][0]
    optimizer = optim.SGD([{"params": list(host.values()), "colour": 3}], lr=0.1)
    torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=1.0, total_steps=10, cycle_momentum=False)
    device_optimizer(optimizer, host)
    assert len(said) == 2 and "['colour']" in said[1][0]
    device_optimizer(torch.optim.SGD(host.values(), lr=0.1, maximize=True), host)
    assert len(said) == 3 and "maximize" in said[2][0]
