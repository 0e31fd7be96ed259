"""Optimizers as executors use them (section 7). The formulas: test_update_rules.py; the objects: test_optim.py."""

from __future__ import annotations

import pytest
import torch
from programs import Body

import poptorch
from poptorch import notices, optim

W = [1.0, -2.0, 3.0]


def compiled(make, *, calls: int = 1, options: poptorch.Options | None = None):
    """A training executor whose gradient of `w` (3,) is the input, called with ones."""
    model = Body(lambda m, x: poptorch.identity_loss((m.w * x).sum(), "sum"), w=torch.nn.Parameter(torch.tensor(W)))
    optimizer = make(model.parameters())
    executor = poptorch.trainingModel(model, options, optimizer)
    for _ in range(calls):
        executor(torch.ones(3))
    return executor, optimizer


def test_step_of_the_python_object_is_never_called():
    def refuse(*args, **kwargs):
        raise AssertionError("called")

    def make(params):
        optimizer = torch.optim.SGD(params, lr=0.5)
        optimizer.step = optimizer.zero_grad = refuse
        return optimizer

    executor, _ = compiled(make, calls=2)
    assert executor.model.w.tolist() == [w - 1.0 for w in W]


@pytest.mark.parametrize("name", ["SGD", "Adam", "AdamW"])
@pytest.mark.parametrize("switch", ["foreach", "fused", "maximize", "differentiable"])
def test_how_torch_would_compute_a_step_does_not_matter(name, switch):
    if (name, switch) == ("SGD", "fused"):
        return  # PopTorch's SGD has no such argument
    results = [
        compiled(lambda p, more=more: getattr(optim, name)(p, lr=0.1, **more))[0].model.w.detach()
        for more in ({}, {switch: True})
    ]
    assert torch.equal(*results)


def test_the_norms_of_lamb_are_formed_in_float(monkeypatch):
    monkeypatch.setenv("POPTORCH_PORTABLE_HALF", "native")
    model = Body(
        lambda m, x: poptorch.identity_loss((m.w * x).float().sum(), "sum"),
        w=torch.nn.Parameter(torch.full((100,), 1000.0).half()),  # a norm of 10,000, whose square half cannot hold
    )
    optimizer = optim.LAMB(model.parameters(), lr=0.25, weight_decay=0.0, eps=0.0)
    poptorch.trainingModel(model, None, optimizer)(torch.ones(100).half())
    # The first step's direction is 1 everywhere, a norm of 10: trust 1000, so w -= 0.25 * 1000.
    assert model.w.tolist() == [750.0] * 100


@pytest.mark.parametrize("relax", [False, True])
def test_unexpected_group_attributes_are_told_once_unless_relaxed(relax, capsys, monkeypatch):
    monkeypatch.setattr(notices, "_said", set())
    options = poptorch.Options().relaxOptimizerAttributesChecks(relax)
    executor, optimizer = compiled(lambda p: optim.SGD([{"params": list(p), "colour": 1}], lr=0.1), options=options)
    executor.setOptimizer(optimizer)
    assert capsys.readouterr().err.count("unexpected group attributes in SGD optimizer: ['colour']") == (not relax)


@pytest.mark.parametrize("relax", [False, True])
def test_attributes_added_after_compilation_are_told_once_unless_relaxed(relax, capsys):
    options = poptorch.Options().relaxOptimizerAttributesChecks(relax)
    executor, optimizer = compiled(lambda p: optim.SGD(p, lr=0.1), options=options)
    optimizer.colour = "red"
    for _ in range(2):
        executor.setOptimizer(optimizer)
    told = "Ignoring unexpected optimizer attributes in SGD optimizer: ['colour']"
    assert capsys.readouterr().err.count(told) == (not relax)
    optimizer.shape = optimizer.colour
    executor.setOptimizer(optimizer)
    assert ("unexpected optimizer attributes in SGD optimizer: ['shape']" in capsys.readouterr().err) == (not relax)


@pytest.mark.parametrize("replacement", [torch.optim.SGD, optim.SGD])
def test_attributes_that_belong_to_an_optimizer_are_not_unexpected(replacement, capsys):
    def make(params):
        optimizer = torch.optim.SGD(params, lr=0.1)
        optimizer.colour = "red"  # before compilation
        return optimizer

    executor, _ = compiled(make)
    optimizer = replacement(executor.model.parameters(), lr=0.1)
    torch.optim.lr_scheduler.LinearLR(optimizer)
    executor.setOptimizer(optimizer)
    assert "unexpected" not in capsys.readouterr().err


def test_the_state_of_a_replaced_optimizer_is_read_back_and_its_own():
    executor, old = compiled(lambda p: optim.SGD(p, lr=0.0, momentum=0.5))
    new = optim.SGD(executor.model.parameters(), lr=0.0, momentum=0.5)
    executor.setOptimizer(new)
    executor(torch.ones(3))
    assert old.has_state() and old.state_dict()["ipu_state"]["Accl1___w"].tolist() == [1.0] * 3
    assert new.state_dict()["ipu_state"]["Accl1___w"].tolist() == [1.5] * 3


@pytest.mark.parametrize(
    ("make", "state", "attributes"),
    [
        (lambda p: optim.SGD(p, lr=0.5), [], "momentum dampening weightDecay velocityScaling"),
        (lambda p: optim.SGD(p, lr=0.5, momentum=0.9), ["Accl1"], "momentum dampening weightDecay velocityScaling"),
        (
            lambda p: optim.SGD(p, lr=0.5, momentum=0.9, use_combined_accum=True),
            ["Accl"],
            "momentum dampening weightDecay velocityScaling",
        ),
        (lambda p: optim.Adam(p, lr=0.5), ["Accl1", "Accl2", "Step"], "beta1 beta2 eps weightDecay"),
        (lambda p: optim.AdamW(p, lr=0.5), ["Accl1", "Accl2", "Step"], "beta1 beta2 eps weightDecay"),
        (lambda p: optim.LAMB(p, lr=0.5), ["Accl1", "Accl2", "Step"], "beta1 beta2 eps weightDecay maxWeightNorm"),
        (
            lambda p: optim.RMSprop(p, lr=0.5, centered=True, momentum=0.9),
            ["Accl1", "Accl2", "Accl3", "Step"],
            "alpha eps weightDecay momentum",
        ),
    ],
)
def test_keys_of_the_state(make, state, attributes):
    _, optimizer = compiled(make, calls=2)
    found = optimizer.state_dict()
    assert set(found["ipu_state"]) == {f"{role}___w" for role in state}
    if "Step" in state:
        assert found["ipu_state"]["Step___w"].item() == 2.0
    numbers = ["learningRate", *attributes.split()]
    if isinstance(optimizer, optim.SGD):
        numbers += ["scaledLearningRate0", "weightDecayScaleFactor0"]
    assert set(found["ipu_param"]) == {"lossScaling_FLOAT"} | {f"{number}___specific___w" for number in numbers}
    assert found["ipu_param"]["learningRate___specific___w"].item() == 0.5
    assert make([torch.nn.Parameter(torch.ones(1))]).state_dict()["ipu_state"] is None  # before it is compiled
