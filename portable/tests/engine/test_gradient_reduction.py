"""How gradients of micro-batches and replicas become one update (spec section 5)."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from programs import Regression, make_options, regression_data
from torch.utils.checkpoint import checkpoint

import poptorch
from poptorch.engine.running.gradients import GradientAccumulator

Type, Strategy = poptorch.ReductionType, poptorch.MeanReductionStrategy


def plain_loop(model, x, y, iterations, divisor, lr):
    """S steps of SGD over S equal parts of the data in float64; gradients are sums over micro-batches of two."""
    model = copy.deepcopy(model).double()
    losses = []
    for part_x, part_y in zip(x.double().chunk(iterations), y.double().chunk(iterations), strict=True):
        model.zero_grad()
        for start in range(0, len(part_x), 2):
            _, loss = model(part_x[start : start + 2], part_y[start : start + 2])
            losses.append(loss.item())
            (loss / divisor).backward()
        with torch.no_grad():
            for parameter in model.parameters():
                parameter -= lr * parameter.grad
    return model, torch.tensor(losses, dtype=torch.float64)


@settings(max_examples=12, deadline=None)
@given(
    st.integers(1, 3), st.integers(1, 4), st.integers(1, 3), st.booleans(), st.booleans(), st.sampled_from([1, 512.0])
)
def test_any_split_equals_one_plain_loop(iterations, accumulation, replicas, mean, running, loss_scaling):
    model = Regression()
    x, y = regression_data(iterations * accumulation * replicas * 2)
    divisor = accumulation * replicas if mean else 1
    reference, losses = plain_loop(model, x, y, iterations, divisor, lr=0.05)
    options = make_options(iterations, accumulation, replicas, poptorch.OutputMode.All)
    options.Training.accumulationAndReplicationReductionType(Type.Mean if mean else Type.Sum)
    options.Training.setMeanAccumulationAndReplicationReductionStrategy(Strategy.Running if running else Strategy.Post)
    optimizer = poptorch.optim.SGD(model.parameters(), lr=0.05, loss_scaling=loss_scaling)
    _, found = poptorch.trainingModel(model, options, optimizer)(x, y)
    torch.testing.assert_close(found.double().reshape(-1), losses, rtol=1e-5, atol=1e-6)
    for (name, parameter), expected in zip(model.named_parameters(), reference.parameters(), strict=True):
        torch.testing.assert_close(parameter.detach().double(), expected, rtol=1e-5, atol=1e-6, msg=name)


def accumulate(gradients, dtype, mean, running):
    parameter = torch.zeros(gradients.shape[1:], requires_grad=True)
    accumulator = GradientAccumulator({"p": parameter}, {"p": dtype}, len(gradients), mean=mean, running=running)
    for number, gradient in enumerate(gradients):
        accumulator.begin_micro_batch(number)
        (parameter * gradient).sum().backward(torch.tensor(accumulator.loss_factor))
    result = accumulator.gradients()["p"].clone()
    accumulator.clear()
    assert parameter.grad is None and accumulator.gradients() == {}
    accumulator.release()
    return result


def test_a_running_mean_in_half_survives_where_a_sum_overflows():
    gradients = torch.full((4, 3), 30000.0)
    assert accumulate(gradients, torch.float16, mean=True, running=True).tolist() == [30000.0] * 3
    assert torch.isinf(accumulate(gradients, torch.float16, mean=False, running=False)).all()


def test_half_accumulators_round_after_every_micro_batch():
    gradients = torch.tensor([[2048.0], [1.0], [1.0], [1.0]])
    assert accumulate(gradients, torch.float16, mean=False, running=False).item() == 2048
    assert accumulate(gradients, torch.float32, mean=False, running=False).item() == 2051
    expected = torch.tensor(0.0)
    for count, gradient in enumerate(gradients):
        scaled = expected.half().mul(count / (count + 1)) if count else expected.half()
        expected = scaled.add(gradient[0].half(), alpha=1 / (count + 1))
    assert accumulate(gradients, torch.float16, mean=True, running=True).item() == expected.item()


def test_half_gradients_are_divided_after_accumulation():
    parameter = torch.zeros(1, dtype=torch.float16, requires_grad=True)
    accumulator = GradientAccumulator({"p": parameter}, {"p": torch.float32}, 4096, mean=True, running=False)
    assert accumulator.loss_factor == 1  # 1e-6 / 4096 is zero in half
    (parameter * 1e-6).sum().backward()
    expected = torch.tensor(1e-6).half().float() / 4096
    torch.testing.assert_close(accumulator.gradients()["p"], expected.reshape(1))


def test_a_parameter_that_took_no_part_is_not_updated():
    class Two(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.used, self.idle = torch.nn.Linear(3, 2), torch.nn.Linear(3, 2)

        def forward(self, x, y):
            return F.mse_loss(self.used(x), y) + 0, self.idle(x)

    model = Two()
    before = model.idle.weight.detach().clone()
    optimizer = poptorch.optim.AdamW(model.parameters(), lr=0.1, weight_decay=0.5)
    poptorch.trainingModel(model, make_options(2, 2), optimizer)(*regression_data(8))
    assert torch.equal(model.idle.weight, before)


def test_tied_parameters_are_one_tensor_whose_gradients_add():
    class Tied(torch.nn.Module):
        def __init__(self):
            super().__init__()
            torch.manual_seed(0)
            self.embedding, self.head = torch.nn.Embedding(7, 4), torch.nn.Linear(4, 7, bias=False)
            self.head.weight = self.embedding.weight

        def forward(self, ids):
            return F.cross_entropy(self.head(self.embedding(ids)).flatten(0, 1), ids.flatten())

    model, ids = Tied(), torch.arange(12).view(4, 3) % 7
    reference = copy.deepcopy(model).double()
    sum(reference(ids[k : k + 1]) for k in range(4)).div(4).backward()
    expected = reference.embedding.weight - reference.embedding.weight.grad
    poptorch.trainingModel(model, make_options(1, 2, 2), torch.optim.SGD(model.parameters(), lr=1.0))(ids)
    assert model.head.weight is model.embedding.weight
    torch.testing.assert_close(model.head.weight.detach().double(), expected.detach(), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("make", [poptorch.optim.AdamW, poptorch.optim.SGD])
@pytest.mark.parametrize("kind", [torch.float32, torch.float16])
def test_lookups_with_sparse_gradients_train_as_others(make, kind):
    """torch's own Adam refuses such gradients. Rows that are not asked for decay all the same."""

    class Bags(torch.nn.Module):
        def __init__(self, sparse):
            super().__init__()
            torch.manual_seed(0)
            self.rows, self.bags = (each(9, 4, sparse=sparse) for each in (torch.nn.Embedding, torch.nn.EmbeddingBag))

        def forward(self, ids):
            looked_up = checkpoint(self.rows, ids, use_reentrant=False).sum(1)
            return poptorch.identity_loss(torch.tanh(looked_up) * self.bags(ids), "mean")

    ids, found = torch.tensor([[0, 1, 1], [2, 3, 0], [5, 1, 6], [7, 7, 7]]), []
    for sparse in (True, False):
        model = Bags(sparse).to(kind)
        executor = poptorch.trainingModel(model, make_options(1, 2), make(model.parameters(), lr=0.1, weight_decay=0.1))
        found.append([executor(ids), executor(ids), *model.state_dict().values()])
    torch.testing.assert_close(*found)


def test_no_float32_copy_of_a_half_accumulator_is_made():
    """Adding float32 to half in one go makes two: for the embedding of GPT-2, 300 MB at the end of a backward pass."""
    parameter = torch.zeros(1 << 22, requires_grad=True)  # 16 MiB
    accumulator = GradientAccumulator({"w": parameter}, {"w": torch.float16}, 2, mean=False, running=False)
    gradients = [torch.rand(1 << 22) for _ in range(2)]
    parameter.backward(gradients[0].clone())
    with torch.profiler.profile(profile_memory=True) as profile:
        parameter.backward(gradients[1])
    large = [event for event in profile.events() if event.self_cpu_memory_usage >= 16 << 20]
    assert len(large) <= 1, "the gradient itself may be copied, for the caller has it, too"
    expected = (gradients[0].half() + gradients[1]).half()
    assert torch.equal(accumulator.gradients()["w"], expected)
