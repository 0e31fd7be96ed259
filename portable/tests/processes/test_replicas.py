"""Training by processes that hold whole replicas: the numbers of one process that holds them all."""

from __future__ import annotations

import functools
import gc
import os
import weakref

import pytest
import torch
import torch.nn.functional as F
from launch import together

import popdist.poptorch
import poptorch
from poptorch.engine.running.runner import Runner

R, A, S, N = 4, 2, 2, 3  # replicas, accumulation, iterations, samples of a micro-batch
CALLS = 3


class Model(torch.nn.Module):
    """(N, 8), (N, 4) -> prediction (N, 4), loss. Batch norm, dropout and a weight that is used twice on demand."""

    def __init__(self, dropout: float = 0.0, norm: bool = False):
        super().__init__()
        torch.manual_seed(0)
        self.first, self.second = torch.nn.Linear(8, 24), torch.nn.Linear(24, 4)
        self.square = torch.nn.Linear(24, 24)
        self.norm = torch.nn.BatchNorm1d(24) if norm else torch.nn.Identity()
        self.dropout = torch.nn.Dropout(dropout)

    def forward(self, x, y):
        hidden = self.norm(self.square(torch.tanh(self.square(torch.tanh(self.first(x))))))
        prediction = self.second(self.dropout(hidden))
        return prediction, poptorch.identity_loss(F.mse_loss(prediction, y), "mean")


def sharded(options):
    location = poptorch.TensorLocationSettings().useReplicatedTensorSharding(True)
    options.TensorLocations.setOptimizerLocation(location.minElementsForReplicatedTensorSharding(16))


def running_mean(options):
    options.Training.setMeanAccumulationAndReplicationReductionStrategy(poptorch.MeanReductionStrategy.Running)


def post(options):
    options.Training.setMeanAccumulationAndReplicationReductionStrategy(poptorch.MeanReductionStrategy.Post)


def sums(options):
    options.Training.accumulationAndReplicationReductionType(poptorch.ReductionType.Sum)


def nothing(options):
    pass


OPTIM = poptorch.optim
CASES = {
    "adamw": (functools.partial(OPTIM.AdamW, lr=0.01, weight_decay=0.1), nothing, {}),
    "adamw, sharded": (functools.partial(OPTIM.AdamW, lr=0.01, weight_decay=0.1), sharded, {}),
    "clipped": (functools.partial(OPTIM.AdamW, lr=0.01, max_grad_norm=0.05), nothing, {}),
    "clipped, sharded": (functools.partial(OPTIM.AdamW, lr=0.01, max_grad_norm=0.05), sharded, {}),
    "lamb": (functools.partial(OPTIM.LAMB, lr=0.01), nothing, {}),
    "lamb, sharded": (functools.partial(OPTIM.LAMB, lr=0.01), sharded, {}),
    "momentum": (functools.partial(OPTIM.SGD, lr=0.05, momentum=0.9, use_combined_accum=False), sharded, {}),
    "running": (functools.partial(OPTIM.SGD, lr=0.05), running_mean, {}),
    "post": (functools.partial(OPTIM.SGD, lr=0.05), post, {}),
    "sums": (functools.partial(OPTIM.SGD, lr=0.005), sums, {}),
    "dropout": (functools.partial(OPTIM.AdamW, lr=0.01), nothing, {"dropout": 0.3}),
    "batch norm": (functools.partial(OPTIM.SGD, lr=0.05), nothing, {"norm": True}),
}


def data(call: int) -> tuple[torch.Tensor, torch.Tensor]:
    """(S, A, R, N, 8), (S, A, R, N, 4)."""
    generator = torch.Generator().manual_seed(call)
    return torch.randn(S, A, R, N, 8, generator=generator), torch.randn(S, A, R, N, 4, generator=generator)


def trained(names: list[str]) -> dict[str, tuple]:
    """By case: losses (calls, S, A, this process's replicas), weights, optimizer state and elements of it held here."""
    os.environ["POPDIST_NUM_TOTAL_REPLICAS"] = str(R)
    return {name: _trained(*CASES[name]) for name in names}


def _trained(make_optimizer, configure, arguments) -> tuple:
    options = popdist.poptorch.Options().deviceIterations(S).outputMode(poptorch.OutputMode.All).randomSeed(3)
    options.Training.gradientAccumulation(A)
    configure(options)
    model = Model(**arguments)
    optimizer = make_optimizer(model.parameters())
    executor = poptorch.trainingModel(model, options, optimizer)
    local = options.replication_factor
    first = options.Distributed.processId * local
    losses = []
    for call in range(CALLS):
        parts = [part[:, :, first : first + local].flatten(0, 3) for part in data(call)]
        losses.append(executor(*parts)[1].view(S, A, local))
    held = sum(tensor.numel() for states in executor._session.optimizer._states.values() for tensor in states.values())
    executor.copyWeightsToHost()
    state = {name: value for name, value in optimizer.state_dict()["ipu_state"].items() if value.dim()}
    return torch.stack(losses), {name: p.detach().clone() for name, p in model.state_dict().items()}, state, held


# What four processes, with a replica each, add to two that have two.
OF_FOUR = ["adamw", "adamw, sharded", "lamb", "lamb, sharded", "dropout", "batch norm"]


@pytest.fixture(scope="module", params=[2, 4])
def several(request):
    return together(request.param, trained, list(CASES) if request.param == 2 else OF_FOUR)


@pytest.fixture(scope="module")
def one():
    (found,) = together(1, trained, list(CASES))
    return found


@pytest.mark.parametrize("name", list(CASES))
def test_the_numbers_of_one_process(name, one, several):
    if name not in several[0]:
        pytest.skip("the same as in two processes")
    losses, weights, state, _ = one[name]
    found = torch.cat([each[name][0] for each in several], dim=-1)
    torch.testing.assert_close(found, losses, rtol=1e-5, atol=1e-7)
    for each in several:
        found = each[name][1]
        if each is not several[0]:  # running statistics are those of a process's own first replica
            found = {key: weights[key] if "running" in key else value for key, value in found.items()}
        torch.testing.assert_close(found, weights, rtol=1e-5, atol=1e-6)
        if each is several[0] or not any(value.is_meta for value in each[name][2].values()):
            torch.testing.assert_close(each[name][2], state, rtol=1e-5, atol=1e-7)
        else:  # of shards of the states only the first process gets all, the others know what there is
            assert CASES[name][1] is sharded
            assert {key: (value.device.type, value.shape) for key, value in each[name][2].items()} == {
                key: ("meta", value.shape) for key, value in state.items()
            }


def test_the_statistics_of_the_first_process_are_those_of_one(one, several):
    torch.testing.assert_close(several[0]["batch norm"][1], one["batch norm"][1], rtol=1e-5, atol=1e-6)
    assert not torch.equal(several[1]["batch norm"][1]["norm.running_mean"], one["batch norm"][1]["norm.running_mean"])


def test_float64_by_hand(one):
    """The same steps in plain torch, all micro-batches of an update as one batch."""
    model = Model().double()
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01, weight_decay=0.1)
    losses = []
    for call in range(CALLS):
        x, y = (part.double() for part in data(call))
        for s in range(S):
            optimizer.zero_grad()
            each = [[F.mse_loss(model(x[s, a, r], y[s, a, r])[0], y[s, a, r]) for r in range(R)] for a in range(A)]
            losses.append([[loss.item() for loss in row] for row in each])
            torch.stack([loss for row in each for loss in row]).mean().backward()
            optimizer.step()
    found, weights, _, _ = one["adamw"]
    torch.testing.assert_close(
        found.double().view(-1, A, R), torch.tensor(losses, dtype=torch.float64), rtol=1e-4, atol=1e-6
    )
    torch.testing.assert_close({n: w.double() for n, w in weights.items()}, model.state_dict(), rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("kind", ["adamw", "lamb"])
def test_a_process_holds_its_share_of_sharded_states(kind, several):
    for each in several:
        whole, shard = each[kind][3], each[f"{kind}, sharded"][3]
        assert shard < whole / len(several) * 1.1


def dropped() -> bool:
    """Whether what was on the device goes with an executor that has trained."""
    runners, run = [], Runner.run
    Runner.run = lambda self, leaves: (runners.append(weakref.ref(self)), run(self, leaves))[1]
    options = popdist.poptorch.Options()
    options.Training.gradientAccumulation(A)
    poptorch.trainingModel(Model(), options)(*(part[0, :, 0].flatten(0, 1) for part in data(0)))
    gc.collect()
    return runners[0]() is None


def test_an_executor_that_nobody_holds_is_freed():
    assert together(2, dropped) == [True, True]


def disagreeing() -> list[str]:
    """What processes are told that were started with something else, or that cannot go together."""
    rank = int(os.environ["RANK"])
    messages = []
    for accumulation, width in ((1 + rank, 4), (1, 4 + rank)):
        options = poptorch.Options()
        options.Distributed.configureProcessId(rank, 2)
        options.Training.gradientAccumulation(accumulation)
        executor = poptorch.trainingModel(_Loss(torch.nn.Linear(4, width), torch.nn.L1Loss()), options)
        with pytest.raises(poptorch.Error) as caught:
            executor(torch.ones(2 * accumulation, 4))
        messages.append(str(caught.value))
    return messages


class _Loss(torch.nn.Module):
    def __init__(self, body, loss):
        super().__init__()
        self.body, self.loss = body, loss

    def forward(self, x):
        y = self.body(x)
        return self.loss(y, torch.zeros_like(y))


def test_a_process_with_another_program_is_named():
    for messages in together(2, disagreeing):
        assert all("process 1 has another " in message for message in messages), messages
        assert "number of micro-batches" in messages[0] and "instead of" in messages[0]
        assert "program" in messages[1] or "parameters" in messages[1], messages[1]


def by_hand() -> torch.Tensor:
    """A program that says by itself which process it is: PopTorch's own convention."""
    os.environ["OF"], os.environ["ME"] = os.environ.pop("WORLD_SIZE"), os.environ.pop("RANK")
    options = poptorch.Options()
    options.Distributed.setEnvVarNames("OF", "ME")
    model = _Loss(torch.nn.Linear(2, 1, bias=False), torch.nn.MSELoss())
    torch.nn.init.ones_(model.body.weight)
    executor = poptorch.trainingModel(model, options, torch.optim.SGD(model.parameters(), lr=0.5))
    executor(torch.full((1, 2), 1.0 + options.Distributed.processId))
    return model.body.weight.detach().clone()


def test_a_program_that_names_its_processes():
    # d/dw (w.x)^2 = 2 (w.x) x: 4 for x = (1, 1), 16 for x = (2, 2); the mean is 10, and 1 - 0.5 * 10 = -4.
    for weight in together(2, by_hand):
        assert weight.tolist() == [[-4.0, -4.0]]


def unreachable() -> str:
    options = poptorch.Options()
    options.Distributed.configureProcessId(int(os.environ["RANK"]), 2)
    with pytest.raises(poptorch.Error) as caught:
        poptorch.trainingModel(_Loss(torch.nn.Linear(2, 1), torch.nn.MSELoss()), options)(torch.ones(1, 2))
    return str(caught.value)


def test_processes_that_do_not_meet():
    (message,) = together(1, unreachable, POPTORCH_PORTABLE_TIMEOUT="1")
    assert "process 0 of 2 cannot meet the others at 127.0.0.1:" in message and "start all of them" in message


def test_processes_that_are_not_told_where(monkeypatch):
    monkeypatch.delenv("MASTER_ADDR", raising=False)
    monkeypatch.setenv("RANK", "0")
    assert "MASTER_ADDR" in unreachable()
