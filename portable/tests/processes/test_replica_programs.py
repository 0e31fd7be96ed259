"""Replicas over two processes that differ in more than their data, or share it: the numbers of one process.

Inputs that a group of replicas shares, weights that differ between groups, and automatic loss scaling.
"""

from __future__ import annotations

import os

import pytest
import torch
import torch.nn.functional as F
from launch import together
from test_replicas import Model

import popdist.poptorch
import poptorch

R, A, S, N = 4, 2, 2, 3  # replicas, accumulation, iterations, samples of a micro-batch
CALLS = 2


def options_of(replicas: int, accumulation: int, **popdist_options: int) -> tuple[popdist.poptorch.Options, slice]:
    """Options for so many replicas of all processes, and those of this one."""
    os.environ["POPDIST_NUM_TOTAL_REPLICAS"] = str(replicas)
    options = popdist.poptorch.Options(**popdist_options).randomSeed(3)
    options.Training.gradientAccumulation(accumulation)
    first = options.Distributed.processId * options.replication_factor
    return options, slice(first, first + options.replication_factor)


def trained(executor: poptorch.PoplarExecutor, slices: slice, count: int) -> torch.Tensor:
    """Losses (CALLS, S, A, replicas here) on the micro-batches of these `slices` of `count`."""
    found = []
    for call in range(CALLS):
        generator = torch.Generator().manual_seed(call)
        x, y = (torch.randn(S, A, count, N, width, generator=generator)[:, :, slices] for width in (8, 4))
        found.append(executor(x.flatten(0, 3), y.flatten(0, 3))[1].view(S, A, -1))
    executor.copyWeightsToHost()
    return torch.stack(found)


def with_shared_inputs() -> tuple[torch.Tensor, dict]:
    """Two replicas after each other have the same samples, and other dropout."""
    options, mine = options_of(R, A)
    options.deviceIterations(S).outputMode(poptorch.OutputMode.All)
    options.inputReplicaGrouping(2, poptorch.CommGroupType.Consecutive)
    model = Model(dropout=0.3)
    executor = poptorch.trainingModel(model, options, poptorch.optim.AdamW(model.parameters(), lr=0.01))
    losses = trained(executor, slice(mine.start // 2, mine.stop // 2), R // 2)
    return losses, {name: p.detach().clone() for name, p in model.named_parameters()}


class Grouped(torch.nn.Module):
    """(N, 8), (N, 4) -> prediction, loss; `own` has an entry for each of so many groups of replicas."""

    def __init__(self, groups: int):
        super().__init__()
        torch.manual_seed(0)
        self.own, self.common = torch.nn.Parameter(torch.randn(groups, 8, 4)), torch.nn.Linear(4, 4)

    def forward(self, x, y):
        prediction = self.common(torch.tanh(x @ self.own))
        return prediction, poptorch.identity_loss(F.mse_loss(prediction, y), "mean")


GROUPINGS = {"NoGrouping": (0, R), "Consecutive": (2, 2), "Orthogonal": (2, 2)}  # shards, groups


def with_own_weights() -> dict[str, tuple[torch.Tensor, dict]]:
    found = {}
    for kind, (shards, groups) in GROUPINGS.items():
        options, mine = options_of(R, A)
        options.deviceIterations(S).outputMode(poptorch.OutputMode.All)
        model = Grouped(groups)
        executor = poptorch.trainingModel(model, options, poptorch.optim.AdamW(model.parameters(), lr=0.01))
        grouping = (getattr(poptorch.CommGroupType, kind), shards, poptorch.VariableRetrievalMode.OnePerGroup)
        executor.own.replicaGrouping(*grouping)
        found[kind] = trained(executor, mine, R), {name: p.detach().clone() for name, p in model.named_parameters()}
        executor.destroy()
    return found


class Scaled(torch.nn.Module):
    """(1, 2) half -> the loss, over two IPUs: the gradients are the samples."""

    def __init__(self):
        super().__init__()
        self.first, self.second = (torch.nn.Parameter(torch.ones(1)) for _ in range(2))

    def forward(self, x):
        with poptorch.Block("first", ipu_id=0):
            h = x[:, :1] * self.first
        with poptorch.Block("second", ipu_id=1):
            return poptorch.identity_loss((h + x[:, 1:] * self.second).sum(), "sum")


SIZES, FACTORS = [1.0, 1.0, 6000.0, 1.0, 6000.0, 6000.0], [2, 4, 2, 4, 2, 1]  # by hand: it is halved above 65504 / 8


def factors(replicas: int) -> list[float]:
    """Of automatic loss scaling after each call, in which the last replica's gradient of `second` has that size."""
    options, mine = options_of(replicas, 4, ipus_per_replica=2)
    options.Training.setAutomaticLossScaling(True)
    model = Scaled().half()
    optimizer = poptorch.optim.SGD(model.parameters(), lr=0.0, loss_scaling=4.0 if replicas > 1 else 2.0)
    executor = poptorch.trainingModel(model, options, optimizer)
    found = []
    for size in SIZES:
        samples = torch.ones(4, replicas, 2)
        samples[:, -1, 1] = size
        executor(samples[:, mine].flatten(0, 1).half())
        found.append(optimizer.state_dict()["ipu_state"]["lossScaleUpdateFactor"].item())
    executor.destroy()
    return found


def computed() -> dict:
    scaled = {replicas: factors(replicas) for replicas in (1, 2)}
    return {"inputs": with_shared_inputs(), **with_own_weights(), **scaled}


@pytest.fixture(scope="module")
def one():
    return together(1, computed)[0]


@pytest.fixture(scope="module")
def two():
    return together(2, computed)


@pytest.mark.parametrize("name", ["inputs", *GROUPINGS])
def test_the_numbers_of_one_process(name, one, two):
    """Of weights that differ between replicas the groups of Orthogonal have replicas in both processes."""
    losses, weights = one[name]
    found = torch.cat([each[name][0] for each in two], dim=-1)
    torch.testing.assert_close(found, losses, rtol=1e-5, atol=1e-6)
    for each in two:
        torch.testing.assert_close(each[name][1], weights, rtol=1e-5, atol=1e-6)
    assert name == "inputs" or not torch.equal(*weights["own"][:2])


@pytest.mark.parametrize("replicas", [1, 2])
def test_automatic_loss_scaling_sees_the_gradients_of_all_processes(replicas, one, two):
    """The large ones are in the second process alone, as a stage or as a replica."""
    assert [found[replicas] for found in (one, *two)] == [FACTORS] * 3
