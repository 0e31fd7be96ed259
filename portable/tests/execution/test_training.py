"""Training with each optimizer against a plain torch loop; setOptimizer (spec sections 5 to 7)."""

from __future__ import annotations

import copy

import pytest
import torch
from programs import Regression, make_options, regression_data, weights

import poptorch
from poptorch.engine.as_one.number import VARIABLE

OPTIMIZERS = {
    "SGD": (poptorch.optim.SGD, torch.optim.SGD, {"lr": 0.05, "momentum": 0.9, "weight_decay": 0.01}),
    "Adam": (poptorch.optim.Adam, torch.optim.Adam, {"lr": 0.01, "weight_decay": 0.01}),
    "AdamW": (poptorch.optim.AdamW, torch.optim.AdamW, {"lr": 0.01, "weight_decay": 0.1, "betas": (0.8, 0.95)}),
    "RMSprop": (poptorch.optim.RMSprop, torch.optim.RMSprop, {"lr": 0.01, "momentum": 0.5, "centered": True}),
}


def reference_loop(model, optimizer, x, y, steps, accumulation):
    for step_x, step_y in zip(x.double().chunk(steps), y.double().chunk(steps), strict=True):
        optimizer.zero_grad()
        for micro_x, micro_y in zip(step_x.chunk(accumulation), step_y.chunk(accumulation), strict=True):
            (model(micro_x, micro_y)[1] / accumulation).backward()
        optimizer.step()


def assert_same_weights(model, reference):
    for name, parameter in reference.named_parameters():
        found = dict(model.named_parameters())[name].detach().double()
        torch.testing.assert_close(found, parameter.detach(), rtol=2e-4, atol=2e-6, msg=name)


@pytest.mark.parametrize("name", list(OPTIMIZERS))
@pytest.mark.parametrize("ours, loss_scaling", [(True, 1.0), (True, 1024.0), (False, 1.0)])
def test_five_steps_equal_a_plain_loop(name, ours, loss_scaling):
    wrapped, plain, arguments = OPTIMIZERS[name]
    model = Regression()
    reference = copy.deepcopy(model).double()
    x, y = regression_data(5 * 3 * 2)
    reference_loop(reference, plain(reference.parameters(), **arguments), x, y, steps=5, accumulation=3)
    extra = {"loss_scaling": loss_scaling} if ours else {}
    optimizer = (wrapped if ours else plain)(model.parameters(), **arguments, **extra)
    executor = poptorch.trainingModel(model, make_options(1, 3), optimizer)
    for k in range(5):
        executor(x[6 * k : 6 * k + 6], y[6 * k : 6 * k + 6])
    assert_same_weights(model, reference)


def test_each_device_iteration_is_a_step():
    model, (x, y) = Regression(), regression_data(5 * 2 * 2)
    reference = copy.deepcopy(model).double()
    reference_loop(reference, torch.optim.Adam(reference.parameters(), lr=0.01), x, y, steps=5, accumulation=2)
    poptorch.trainingModel(model, make_options(5, 2), poptorch.optim.Adam(model.parameters(), lr=0.01))(x, y)
    assert_same_weights(model, reference)


def test_lamb_equals_its_own_host_step():
    model, (x, y) = Regression(), regression_data(12)
    reference = copy.deepcopy(model)
    host = poptorch.optim.LAMB(reference.parameters(), lr=0.02, weight_decay=0.1)
    executor = poptorch.trainingModel(model, None, poptorch.optim.LAMB(model.parameters(), lr=0.02, weight_decay=0.1))
    for k in range(3):
        executor(x[4 * k : 4 * k + 4], y[4 * k : 4 * k + 4])
        host.zero_grad()
        reference(x[4 * k : 4 * k + 4], y[4 * k : 4 * k + 4])[1].backward()
        host.step()
    assert_same_weights(model, reference.double())


def test_the_default_optimizer_is_sgd_with_a_rate_of_a_hundredth():
    model, (x, y) = Regression(), regression_data(4)
    reference = copy.deepcopy(model).double()
    reference_loop(reference, torch.optim.SGD(reference.parameters(), lr=0.01), x, y, steps=1, accumulation=1)
    poptorch.trainingModel(model)(x, y)
    assert_same_weights(model, reference)


def test_a_schedule_reaches_the_device_through_set_optimizer_and_only_so():
    model, (x, y) = Regression(), regression_data(16)
    reference = copy.deepcopy(model).double()
    plain = torch.optim.AdamW(reference.parameters(), lr=0.1)
    plain_schedule = torch.optim.lr_scheduler.ExponentialLR(plain, 0.5)
    optimizer = poptorch.optim.AdamW(model.parameters(), lr=0.1)
    schedule = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.5)
    executor = poptorch.trainingModel(model, None, optimizer)
    for k in range(4):
        part = slice(4 * k, 4 * k + 4)
        executor(x[part], y[part])
        reference_loop(reference, plain, x[part], y[part], steps=1, accumulation=1)
        plain_schedule.step()
        schedule.step()
        executor.setOptimizer(optimizer)
    assert_same_weights(model, reference)
    before = weights(model)
    optimizer.param_groups[0]["lr"] = 0.0
    executor(x[:4], y[:4])
    assert not torch.equal(model.first.weight, before["first.weight"])  # the rate on the device is the old one
    executor.setOptimizer(optimizer)
    before = weights(model)
    executor(x[:4], y[:4])
    assert torch.equal(model.first.weight, before["first.weight"])


def test_another_optimizer_object_continues_with_the_momenta_of_the_device():
    x, y = regression_data(4)
    models = [Regression(), Regression()]
    executors = []
    for model in models:
        optimizer = poptorch.optim.Adam(model.parameters(), lr=0.1)
        executors.append(poptorch.trainingModel(model, None, optimizer))
    for _ in range(3):
        for index, executor in enumerate(executors):
            executor(x, y)
            if index:
                executor.setOptimizer(poptorch.optim.Adam(models[1].parameters(), lr=0.1))
    assert torch.equal(models[0].first.weight, models[1].first.weight)


def test_the_type_of_the_optimizer_may_not_change_and_unknown_ones_are_refused():
    model, (x, y) = Regression(), regression_data(4)
    executor = poptorch.trainingModel(model, None, torch.optim.Adam(model.parameters()))
    executor(x, y)
    with pytest.raises(poptorch.Error):
        executor.setOptimizer(torch.optim.SGD(model.parameters(), lr=0.1))
    other = Regression()
    with pytest.raises(AssertionError, match="Unsupported optimizer type. Types supported"):
        poptorch.trainingModel(other, None, torch.optim.Adagrad(other.parameters()))


def test_groups_have_their_own_settings_and_the_others_the_defaults():
    model, (x, y) = Regression(), regression_data(4)
    reference = copy.deepcopy(model).double()

    def groups(m):
        return [{"params": [m.first.weight], "lr": 0.5}, {"params": [m.second.weight], "weight_decay": 0.3}]

    plain = torch.optim.SGD(groups(reference), lr=0.1)
    plain.add_param_group({"params": [reference.first.bias, reference.second.bias]})
    reference_loop(reference, plain, x, y, steps=1, accumulation=1)
    poptorch.trainingModel(model, None, torch.optim.SGD(groups(model), lr=0.1))(x, y)
    assert_same_weights(model, reference)


@pytest.mark.parametrize("context", [torch.no_grad, torch.inference_mode])
def test_training_does_not_depend_on_the_state_of_autograd(context):
    model, (x, y) = Regression(), regression_data(4)
    reference = copy.deepcopy(model).double()
    reference_loop(reference, torch.optim.SGD(reference.parameters(), lr=0.01), x, y, steps=1, accumulation=1)
    with context():
        x, y = x.clone(), y.clone()
        poptorch.trainingModel(model)(x, y)
    assert_same_weights(model, reference)


def test_inputs_that_require_grad_are_detached():
    model, (x, y) = Regression(), regression_data(4)
    x.requires_grad_()
    prediction, _ = poptorch.trainingModel(model)(x, y)
    assert x.grad is None and not prediction.requires_grad


def test_an_interrupted_call_leaves_no_gradients_behind(monkeypatch):
    monkeypatch.setenv(VARIABLE, "1")  # there is something between micro-batches that can be interrupted
    model, (x, y) = Regression(), regression_data(8)
    other = Regression()
    executor = poptorch.trainingModel(model, make_options(1, 4))
    expected = poptorch.trainingModel(other, make_options(1, 4))
    executor.compile(x, y)
    runner = executor._session.runner
    run, calls = runner._micro_batch, []

    def interrupted(*args):
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return run(*args)

    runner._micro_batch = interrupted
    with pytest.raises(KeyboardInterrupt):
        executor(x, y)
    runner._micro_batch = run
    executor(x, y)
    expected(x, y)
    assert torch.equal(model.first.weight, other.first.weight)
