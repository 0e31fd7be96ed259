"""Loss scaling as a program sees it (section 6). More of automatic scaling: test_section_10_executor.py."""

from __future__ import annotations

import pytest
import torch
from programs import Body, make_options, regression_data, weights

import poptorch

Mode = poptorch.OutputMode
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


def automatic(gradients: list[float], settings: dict[str, float]) -> float:
    """The factor after one step whose half gradients are these times a loss scaling of 2."""
    model = Body(
        lambda m, x: poptorch.identity_loss((m.w * x).sum(), "sum"),
        w=torch.nn.Parameter(torch.zeros(len(gradients)).half()),
    )
    options = poptorch.Options()
    options.Training.setAutomaticLossScaling(True)
    for name, value in settings.items():
        options._Popart.set(f"automaticLossScalingSettings.{name}", value)
    optimizer = poptorch.optim.SGD(model.parameters(), lr=0.0, loss_scaling=2.0)
    executor = poptorch.trainingModel(model, options, optimizer)
    executor(torch.tensor(gradients).half())
    return optimizer.state_dict()["ipu_state"]["lossScaleUpdateFactor"].item()


@pytest.mark.parametrize(
    ("largest", "settings", "factor"),
    [
        (4093.0, {}, 2.0),  # 8186 is below 0.125 * 65504 = 8188
        (4096.0, {}, 0.5),
        (4096.0, {"binEdgeLocation": 0.25}, 2.0),
        (4096.0, {"thresholdUpperCountProportion": 0.25}, 2.0),  # a quarter is not more than that
        (4096.0, {"thresholdUpperCountProportion": 0.2}, 0.5),
    ],
)
def test_a_share_of_gradients_above_the_edge_halves_the_automatic_factor(largest, settings, factor):
    assert automatic([largest, 1.0, -2.0, 3.0], settings) == factor


@pytest.mark.parametrize("enabled", [False, True])
def test_automatic_loss_scaling_makes_the_attribute_variable(enabled):
    model = Body(lambda m, x: poptorch.identity_loss(m.w * x, "sum"), w=torch.nn.Parameter(torch.ones(1)))
    options = poptorch.Options()
    options.Training.setAutomaticLossScaling(enabled)
    executor = poptorch.trainingModel(model, options, poptorch.optim.SGD(model.parameters(), lr=0.5))
    executor(torch.ones(1))
    changed = poptorch.optim.SGD(model.parameters(), lr=0.5, loss_scaling=8.0)
    if enabled:
        executor.setOptimizer(changed)
        assert changed.state_dict()["ipu_param"]["lossScaling_FLOAT"].item() == 8.0
    else:
        with pytest.raises(poptorch.Error, match="loss_scaling of the optimizer is constant"):
            executor.setOptimizer(changed)


def test_the_final_loss_scale_can_be_anchored():
    """What the losses of a call were multiplied by: the initial scaling times the factor, which doubles here."""
    options = make_options(3, 2)
    options.Training.setAutomaticLossScaling(True)
    options.anchorTensor("last", "finalLossScale").anchorTensor("all", "finalLossScale", Mode.All)
    model = Body(
        lambda m, x: poptorch.identity_loss((m.w * x).float().sum(), "sum"),
        w=torch.nn.Parameter(torch.ones(4).half()),
    )
    optimizer = poptorch.optim.SGD(model.parameters(), lr=0.0, loss_scaling=8.0)
    executor = poptorch.trainingModel(model, options, optimizer)
    for call in range(2):
        executor(torch.ones(24).half())
        first = 8.0 * 8**call
        assert executor.getAnchoredTensor("all").tolist() == [first, first, 2 * first, 2 * first, 4 * first, 4 * first]
        assert executor.getAnchoredTensor("last").item() == 4 * first
    assert optimizer.state_dict()["ipu_state"]["lossScaleUpdateFactor"] == 64
    assert "finalLossScale" in executor.getTensorNames()


def test_without_automatic_scaling_there_is_no_final_loss_scale():
    options = make_options().anchorTensor("scale", "finalLossScale")
    model = Body(lambda m, x: poptorch.identity_loss(m.w * x, "sum"), w=torch.nn.Parameter(torch.ones(4)))
    with pytest.raises(poptorch.Error, match="has no tensor 'finalLossScale'"):
        poptorch.trainingModel(model, options)(torch.ones(4))
