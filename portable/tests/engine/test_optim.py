"""poptorch.optim as objects: signatures, defaults, errors, and use as ordinary torch optimizers."""

from __future__ import annotations

import copy
import inspect
import math
import pickle

import pytest
import torch

from poptorch import notices, optim

TYPES = "accum_type=None, first_order_momentum_accum_type=None, second_order_momentum_accum_type=None"
SIGNATURES = {
    "SGD": "(params, lr, momentum=None, dampening=None, weight_decay=None, nesterov=None, maximize=None, foreach=None, "
    "differentiable=None, loss_scaling=None, velocity_scaling=None, use_combined_accum=None, accum_type=None, "
    "velocity_accum_type=None, max_grad_norm=None)",
    "Adam": "(params, lr=None, betas=None, eps=None, weight_decay=None, amsgrad=None, foreach=None, maximize=None, "
    f"capturable=None, differentiable=None, fused=None, loss_scaling=None, {TYPES}, max_grad_norm=None)",
    "AdamW": "(params, lr=None, betas=None, eps=None, weight_decay=None, amsgrad=None, maximize=None, foreach=None, "
    f"capturable=None, differentiable=None, fused=None, loss_scaling=None, bias_correction=None, {TYPES}, "
    "max_grad_norm=None)",
    "RMSprop": "(params, lr=None, alpha=None, eps=None, weight_decay=None, momentum=None, centered=None, foreach=None, "
    f"maximize=None, differentiable=None, loss_scaling=None, {TYPES}, use_tf_variant=None)",
    "LAMB": "(params, lr=None, betas=None, eps=None, weight_decay=None, bias_correction=None, loss_scaling=None, "
    f"max_weight_norm=None, {TYPES})",
    "VariableAttributes": "(variable_attributes, allowed_attributes)",
    "Optimizer": "()",
}
METHODS = {
    optim.Optimizer.state_dict: "(self)",
    optim.Optimizer.load_state_dict: "(self, state)",
    optim.Optimizer.get_state_dict: "(self)",
    optim.Optimizer.set_state_dict: "(self, state)",
    optim.Optimizer.has_state: "(self)",
    optim.VariableAttributes.isConstant: "(self, attr)",
    optim.VariableAttributes.markAsConstant: "(self, attr)",
    optim.VariableAttributes.markAsVariable: "(self, attr)",
}
CLASSES = [optim.SGD, optim.Adam, optim.AdamW, optim.RMSprop, optim.LAMB]


def bare(function) -> str:
    """A signature without annotations."""
    signature = inspect.signature(function)
    parameters = [p.replace(annotation=inspect.Parameter.empty) for p in signature.parameters.values()]
    return str(signature.replace(parameters=parameters, return_annotation=inspect.Signature.empty))


def weights(count: int = 2) -> list[torch.nn.Parameter]:
    generator = torch.Generator().manual_seed(0)
    return [torch.nn.Parameter(torch.randn(4, 3, generator=generator)) for _ in range(count)]


def make(cls, params=None, **numbers):
    return cls(params or weights(), lr=0.1, **numbers)


def test_signatures():
    for name, expected in SIGNATURES.items():
        assert bare(getattr(optim, name)) == expected
    for method, expected in METHODS.items():
        assert bare(method) == expected


def test_lamb_step_takes_a_closure():
    params = weights(1)

    def closure():
        params[0].grad = None
        loss = params[0].square().sum()
        loss.backward()
        return loss

    before = float(params[0].detach().square().sum())
    assert optim.LAMB(params, lr=0.01).step(closure).item() == pytest.approx(before)
    assert float(params[0].detach().square().sum()) < before


def test_defaults():
    expected = {
        optim.SGD: {"lr": 0.1, "momentum": 0, "dampening": 0, "weight_decay": 0, "velocity_scaling": 1.0},
        optim.Adam: {"lr": 1e-3, "betas": (0.9, 0.999), "eps": 1e-8, "weight_decay": 0},
        optim.AdamW: {"lr": 1e-3, "betas": (0.9, 0.999), "eps": 1e-8, "weight_decay": 1e-2},
        optim.RMSprop: {"lr": 1e-2, "alpha": 0.99, "eps": 1e-8, "weight_decay": 0, "momentum": 0, "centered": False},
        optim.LAMB: {"lr": 1e-3, "betas": (0.9, 0.999), "eps": 1e-8, "weight_decay": 1e-2, "max_weight_norm": 65500},
    }
    for cls, numbers in expected.items():
        optimizer = cls(weights(), 0.1) if cls is optim.SGD else cls(weights())
        assert numbers.items() <= optimizer.param_groups[0].items()
        assert optimizer.loss_scaling == 1.0 and optimizer.accum_type == torch.float32
        if cls is optim.SGD:
            assert optimizer.use_combined_accum is False and optimizer.velocity_accum_type == torch.float32
        else:
            assert optimizer.first_order_momentum_accum_type == torch.float32
            assert optimizer.second_order_momentum_accum_type == torch.float32
        if cls in (optim.SGD, optim.Adam, optim.AdamW):
            assert optimizer.max_grad_norm == math.inf
        if cls in (optim.AdamW, optim.LAMB):
            assert optimizer.bias_correction is True


def test_classes_are_torchs():
    for name in ("SGD", "Adam", "AdamW", "RMSprop"):
        assert issubclass(getattr(optim, name), (getattr(torch.optim, name)))
        assert issubclass(getattr(optim, name), optim.Optimizer)
    assert issubclass(optim.LAMB, torch.optim.Optimizer) and issubclass(optim.LAMB, optim.Optimizer)
    assert not issubclass(optim.AdamW, optim.Adam)


@pytest.mark.parametrize("cls", CLASSES)
def test_errors(cls):
    with pytest.raises(AssertionError, match="accum_type must be torch.float16 or torch.float32"):
        make(cls, accum_type=torch.bfloat16)
    with pytest.raises(AssertionError, match="loss_scaling"):
        make(cls, loss_scaling=0.0)
    with pytest.raises(ValueError):
        cls(weights(), lr=-1.0)
    if cls in (optim.Adam, optim.AdamW):
        with pytest.raises(ValueError, match="amsgrad"):
            make(cls, amsgrad=True)
    if cls is optim.LAMB:
        with pytest.raises(ValueError, match="betas"):
            make(cls, betas=(0.9, 1.0))


def test_sgd_combined_and_separate_arguments(monkeypatch):
    said = []
    monkeypatch.setattr(notices.logger, "warning", said.append)
    with pytest.raises(AssertionError, match="velocity_accum_type"):
        make(optim.SGD, use_combined_accum=True, velocity_accum_type=torch.float32)
    for dtype in (torch.float16, torch.float32):
        assert make(optim.SGD, use_combined_accum=True, accum_type=dtype).accum_type == dtype
    make(optim.SGD, use_combined_accum=True, velocity_scaling=2.0)
    assert not said
    make(optim.SGD, velocity_scaling=2.0)
    assert len(said) == 1 and "velocity_scaling" in said[0]


def test_variable_attributes():
    attributes = optim.VariableAttributes(["lr"], ["lr", "eps"])
    assert not attributes.isConstant("lr") and attributes.isConstant("eps")
    attributes.markAsConstant("lr")
    attributes.markAsVariable("eps")
    assert attributes.isConstant("lr") and not attributes.isConstant("eps")
    for call in (attributes.markAsConstant, attributes.markAsVariable):
        with pytest.raises(AssertionError, match="colour"):
            call("colour")


def test_given_arguments_are_variable_and_others_constant():
    optimizer = optim.AdamW(weights(), lr=0.1, weight_decay=0.01, loss_scaling=2.0)
    variable = {"lr", "weight_decay", "loss_scaling"}
    for name in ("lr", "betas", "eps", "weight_decay", "loss_scaling"):
        assert optimizer.variable_attrs.isConstant(name) == (name not in variable)


@pytest.mark.parametrize(
    "name, numbers",
    [
        ("SGD", {"momentum": 0.9, "nesterov": True}),
        ("Adam", {"weight_decay": 0.1}),
        ("AdamW", {"betas": (0.8, 0.9), "foreach": True}),
        ("RMSprop", {"centered": True, "momentum": 0.5}),
    ],
)
def test_step_is_torchs(name, numbers):
    ours, theirs = weights(), weights()
    pair = [getattr(optim, name)(ours, lr=0.1, **numbers), getattr(torch.optim, name)(theirs, lr=0.1, **numbers)]
    schedules = [torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 / (step + 1)) for optimizer in pair]
    for _ in range(3):
        for params, optimizer, schedule in zip([ours, theirs], pair, schedules, strict=True):
            optimizer.zero_grad()
            sum(param.pow(3).sum() for param in params).backward()
            optimizer.step()
            schedule.step()
    assert pair[0].param_groups[0]["lr"] == pytest.approx(0.1 / 4)
    for mine, other in zip(ours, theirs, strict=True):
        assert torch.equal(mine, other)


@pytest.mark.parametrize("correct", [True, False])
def test_lamb_step_is_the_formula(correct):
    params = weights()
    optimizer = optim.LAMB(
        [{"params": params[:1]}, {"params": params[1:], "max_weight_norm": 0}],
        lr=0.1,
        weight_decay=0.1,
        bias_correction=correct,
    )
    w = [param.detach().double() for param in params]
    moments = [[torch.zeros(4, 3).double(), torch.zeros(4, 3).double()] for _ in params]
    for t in (1, 2, 3):
        for i, param in enumerate(params):
            param.grad = torch.sin(param.detach() * (t + i))
            g = param.grad.double()
            moments[i] = [0.9 * moments[i][0] + 0.1 * g, 0.999 * moments[i][1] + 0.001 * g * g]
            m, v = moments[i]
            if correct:
                m, v = m / (1 - 0.9**t), v / (1 - 0.999**t)
            x = m / (v.sqrt() + 1e-8) + 0.1 * w[i]
            trust = float(w[i].norm() / x.norm()) if i == 0 else 1.0
            w[i] = w[i] - 0.1 * trust * x
        kept = params[0].grad.clone()
        optimizer.step()
        assert torch.equal(params[0].grad, kept)
    for param, expected in zip(params, w, strict=True):
        torch.testing.assert_close(param.detach().double(), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("cls", CLASSES)
@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda o: pickle.loads(pickle.dumps(o))])
def test_pickle_and_deepcopy_keep_the_attributes(cls, duplicate):
    optimizer = make(cls, loss_scaling=3.0, accum_type=torch.float16)
    optimizer.variable_attrs.markAsVariable("weight_decay")
    torch.optim.lr_scheduler.ConstantLR(optimizer)  # patches step() of the original
    again = duplicate(optimizer)
    assert type(again) is cls and again.loss_scaling == 3.0 and again.accum_type == torch.float16
    assert not again.variable_attrs.isConstant("weight_decay")
    assert again.param_groups[0]["lr"] == optimizer.param_groups[0]["lr"]
    assert again.state_dict()["ipu_state"] is None
    params = again.param_groups[0]["params"]
    before = params[0].detach().clone()
    params[0].grad = torch.ones(4, 3)
    again.step()
    assert not torch.equal(params[0], before)


@pytest.mark.parametrize("cls", CLASSES)
def test_state_dicts(cls):
    optimizer = make(cls)
    state = optimizer.state_dict()
    assert state["ipu_state"] is None and state["ipu_param"] is None and len(state["param_groups"]) == 1
    assert not optimizer.has_state()
    for empty in ({}, state):
        with pytest.raises(RuntimeError, match="empty"):
            optimizer.load_state_dict(empty)
    with pytest.raises(RuntimeError, match="Only IPU optimizer states can be loaded onto the IPU."):
        optimizer.load_state_dict(torch.optim.SGD(weights(), lr=1.0).state_dict())
    kept = {"ipu_state": {"Accl1___w": torch.ones(2)}, "ipu_param": {"lossScaling_FLOAT": torch.tensor(2.0)}}
    optimizer.set_state_dict(kept)
    assert optimizer.has_state() and optimizer.get_state_dict() == kept
    optimizer.param_groups[0]["lr"] = 0.7
    other = make(cls)
    other.load_state_dict(optimizer.state_dict())
    assert other.get_state_dict() == kept and other.param_groups[0]["lr"] == 0.7


def test_linked_state_is_live():
    class Device:
        def __init__(self):
            self.state = {"ipu_state": {"x": torch.zeros(1)}, "ipu_param": {}}

        def write(self, state):
            self.state = state

    optimizer, device = make(optim.Adam), Device()
    optimizer._link_device(lambda: device.state, device.write)
    assert optimizer.has_state() and optimizer.state_dict()["ipu_state"] is device.state["ipu_state"]
    new = {"ipu_state": {"x": torch.ones(1)}, "ipu_param": {}}
    optimizer.load_state_dict({**optimizer.state_dict(), **new})
    assert torch.equal(device.state["ipu_state"]["x"], torch.ones(1))
    again = pickle.loads(pickle.dumps(optimizer))
    assert torch.equal(again.state_dict()["ipu_state"]["x"], torch.ones(1))
    optimizer._unlink_device()
    device.write({"ipu_state": {}, "ipu_param": {}})
    assert torch.equal(optimizer.state_dict()["ipu_state"]["x"], torch.ones(1))
