"""Many kinds of models, optimizers and counts of micro-batches: training equals a loop in plain torch and float64."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from programs import make_options
from zoo import ZOO

import poptorch

OPTIMIZERS = {
    "SGD": {"lr": 0.05},
    "SGD, momentum": {"lr": 0.05, "momentum": 0.9, "weight_decay": 0.01},
    "SGD, nesterov": {"lr": 0.05, "momentum": 0.5, "nesterov": True},
    "Adam": {"lr": 0.01, "weight_decay": 0.1},
    "AdamW": {"lr": 0.01, "weight_decay": 0.1, "betas": (0.8, 0.9)},
    "RMSprop": {"lr": 0.01, "alpha": 0.9, "momentum": 0.3},
    "RMSprop, centered": {"lr": 0.01, "centered": True},
}


def loop(model, optimizer, inputs, iterations, accumulation, divisor, max_grad_norm=math.inf):
    """The reference: what a call does, by hand. Returns the loss of every micro-batch."""
    losses = []
    for step in zip(*(tensor.chunk(iterations) for tensor in inputs), strict=True):
        optimizer.zero_grad()
        for micro_batch in zip(*(tensor.chunk(accumulation) for tensor in step), strict=True):
            loss = model(*micro_batch)
            (loss / divisor).backward()
            losses.append(loss.detach())
        if not math.isinf(max_grad_norm):
            torch.nn.utils.clip_grad_norm_(model.parameters(), max_grad_norm)
        optimizer.step()
    return torch.stack(losses)


def compare(name, kind, *, iterations=1, accumulation=1, rows=3, calls=3, mean=True, two_groups=False, **arguments):
    make, inputs = ZOO[name]
    torch.manual_seed(7)
    model = make()
    reference = copy.deepcopy(model).double()
    hyper = OPTIMIZERS[kind]
    cls = kind.split(",")[0]

    def groups(module):
        parameters = list(module.parameters())
        if not two_groups or len(parameters) < 2:
            return parameters
        return [{"params": parameters[:1], "lr": 0.02}, {"params": parameters[1:], "weight_decay": 0.05}]

    options = make_options(iterations, accumulation, mode=poptorch.OutputMode.All)
    if not mean:
        options.Training.accumulationAndReplicationReductionType(poptorch.ReductionType.Sum)
    optimizer = getattr(poptorch.optim, cls)(groups(model), **hyper, **arguments)
    executor = poptorch.trainingModel(model, options, optimizer)
    by_hand = getattr(torch.optim, cls)(groups(reference), **hyper)
    generator = torch.Generator().manual_seed(11)
    for _ in range(calls):
        batch = [make_input(rows * iterations * accumulation, generator) for make_input in inputs]
        found = executor(*(tensor.float() if tensor.is_floating_point() else tensor for tensor in batch))
        divisor = accumulation if mean else 1
        limit = arguments.get("max_grad_norm", math.inf)
        expected = loop(reference, by_hand, batch, iterations, accumulation, divisor, limit)
        torch.testing.assert_close(found.double().reshape(-1), expected, rtol=2e-4, atol=2e-5, msg=f"{name}: losses")
    state = model.state_dict()
    for key, value in reference.state_dict().items():
        torch.testing.assert_close(state[key].to(value.dtype), value, rtol=1e-3, atol=5e-5, msg=f"{name}: {key}")


@pytest.mark.parametrize("name", ZOO)
def test_each_model_trains_like_torch(name):
    compare(name, "SGD, momentum", iterations=2, accumulation=2)


@settings(max_examples=25, deadline=None)
@given(
    name=st.sampled_from(sorted(ZOO)),
    kind=st.sampled_from(sorted(OPTIMIZERS)),
    iterations=st.integers(1, 3),
    accumulation=st.integers(1, 3),
    rows=st.integers(2, 4),
    mean=st.booleans(),
    two_groups=st.booleans(),
    loss_scaling=st.sampled_from([1.0, 64.0]),
)
def test_any_combination_trains_like_torch(name, kind, loss_scaling, **counts):
    if kind.startswith("RMSprop") and not counts["mean"]:
        counts["mean"] = True
    compare(name, kind, loss_scaling=loss_scaling, **counts)


@pytest.mark.parametrize("kind", ["SGD, momentum", "Adam", "AdamW"])
def test_clipping_is_that_of_torch(kind):
    compare("LSTM", kind, accumulation=2, max_grad_norm=0.05, calls=5)


@pytest.mark.parametrize("name", ["convolutional, BatchNorm", "LSTM", "encoder layer", "a moving average"])
@pytest.mark.parametrize("training", [False, True])
def test_inference_equals_torch(name, training):
    make, inputs = ZOO[name]
    torch.manual_seed(7)
    model = make().train(training)
    reference = copy.deepcopy(model).double()
    executor = poptorch.inferenceModel(model, make_options(3))
    batch = [make_input(9, torch.Generator().manual_seed(1)) for make_input in inputs]
    found = executor(*(tensor.float() if tensor.is_floating_point() else tensor for tensor in batch))
    with torch.no_grad():
        parts = zip(*(tensor.chunk(3) for tensor in batch), strict=True)
        expected = torch.stack([reference(*part) for part in parts])
    torch.testing.assert_close(found.double(), expected, rtol=1e-4, atol=1e-5)
