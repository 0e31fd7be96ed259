"""Static loss scaling, as an executor's program sees it (section 6). Automatic scaling: test_section_10_executor.py."""

from __future__ import annotations

import pytest
import torch
from programs import Body, make_options, regression_data, weights

import poptorch

SMALL = 2.0**-26  # below the smallest number of float16, 2^-24


def trained(loss_scaling: float, dtype: torch.dtype = torch.float32, gradient: float = 1.0, **arguments):
    """The weight (4,) and the returned loss after one step of SGD whose gradient is `gradient` everywhere."""
    model = Body(
        lambda m, x: poptorch.identity_loss((m.w * x).float().sum() * gradient, "sum"),
        w=torch.nn.Parameter(torch.ones(4, dtype=dtype)),
    )
    optimizer = poptorch.optim.SGD(model.parameters(), lr=0.5, loss_scaling=loss_scaling, **arguments)
    loss = poptorch.trainingModel(model, None, optimizer)(torch.ones(4, dtype=dtype))
    return model.w.detach(), loss


@pytest.mark.parametrize("loss_scaling", [1.0, 1024.0])
def test_the_returned_loss_and_the_update_are_not_scaled(loss_scaling):
    weight, loss = trained(loss_scaling)
    assert loss.item() == 4.0 and weight.tolist() == [0.5] * 4


@pytest.mark.parametrize("mean", [True, False])
def test_it_does_not_depend_on_how_gradients_are_reduced(mean):
    x, y = regression_data(8)
    found = []
    for loss_scaling in (1.0, 64.0):
        torch.manual_seed(0)
        model = Body(lambda m, x, y: torch.nn.functional.mse_loss(m.linear(x), y), linear=torch.nn.Linear(3, 2))
        options = make_options(2, 2, 2)
        reduction = poptorch.ReductionType.Mean if mean else poptorch.ReductionType.Sum
        options.Training.accumulationAndReplicationReductionType(reduction)
        optimizer = poptorch.optim.Adam(model.parameters(), lr=0.1, loss_scaling=loss_scaling)
        loss = poptorch.trainingModel(model, options, optimizer)(x, y)
        found.append((loss, weights(model)))
    assert torch.equal(found[0][0], found[1][0])
    assert all(torch.equal(found[0][1][name], value) for name, value in found[1][1].items())


def test_it_decides_whether_a_small_half_gradient_is_seen(monkeypatch):
    monkeypatch.setenv("POPTORCH_PORTABLE_HALF", "native")

    def velocity(loss_scaling):
        model = Body(
            lambda m, x: poptorch.identity_loss((m.w * x).float().sum() * SMALL, "sum"),
            w=torch.nn.Parameter(torch.ones(4).half()),
        )
        types = {"accum_type": torch.float16, "velocity_accum_type": torch.float32}
        optimizer = poptorch.optim.SGD(model.parameters(), lr=1.0, momentum=0.5, loss_scaling=loss_scaling, **types)
        poptorch.trainingModel(model, None, optimizer)(torch.ones(4).half())
        return optimizer.state_dict()["ipu_state"]["Accl1___w"] / loss_scaling

    assert velocity(1.0).tolist() == [0.0] * 4  # the gradient has underflown
    assert velocity(1024.0).tolist() == [SMALL] * 4
