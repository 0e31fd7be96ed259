"""Intermediate tensors anchored by the names of their modules (spec section 3)."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from programs import Body, make_options

import poptorch

All = poptorch.OutputMode.All


class Model(torch.nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.body = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.ReLU(inplace=True))
        self.norm = torch.nn.LayerNorm(4)
        self.head = torch.nn.Linear(4, 2)

    def forward(self, x, y):
        hidden = self.norm(self.body(x) + 1) + 2
        logits = self.head(hidden)
        return logits.argmax(-1), F.cross_entropy(logits, y)


X, Y = torch.randn(6, 3, generator=torch.Generator().manual_seed(1)), torch.tensor([0, 1, 1, 0, 1, 0])


def test_section3_intermediate_tensors_by_module():
    options = make_options(3)
    for name in ("body/0/Gemm:0", "Add:0/1", "head/Gemm:0"):
        options.anchorTensor(name, name, All)
    options.anchorTensor("last", "head/Gemm:0", poptorch.OutputMode.Final)
    model = Model()
    executor = poptorch.trainingModel(model, options, torch.optim.SGD(model.parameters(), lr=0.0))
    executor(X, Y)
    found = executor.getAnchoredTensor
    with torch.no_grad():
        before = model.body[0](X)
        hidden = model.norm(before.relu() + 1) + 2
        torch.testing.assert_close(found("body/0/Gemm:0"), before)  # not what the ReLU makes of it in place
        torch.testing.assert_close(found("Add:0/1"), hidden)
        torch.testing.assert_close(found("head/Gemm:0"), model.head(hidden))
        torch.testing.assert_close(found("last"), model.head(hidden)[-2:])


def test_section3_tensor_names_in_program_order():
    model = Model()
    executor = poptorch.trainingModel(model)
    executor.compile(X, Y)
    names = executor.getTensorNames()
    expected = ["body/0/Gemm:0", "body/1/Relu:0", "Add:0", "norm/GroupNormalization:0", "Add:0/1", "head/Gemm:0"]
    assert [name for name in names if name in expected] == expected


def test_section3_anchored_logits_of_a_fused_loss():
    """A projection with its cross-entropy is computed without the logits, unless they are asked for."""
    weight = torch.nn.Parameter(torch.randn(40, 8, generator=torch.Generator().manual_seed(0)))
    hidden = torch.randn(6, 8, generator=torch.Generator().manual_seed(1))
    labels = torch.arange(6)
    losses = []
    for anchored in (False, True):
        options = make_options(1, 2)
        if anchored:
            options.anchorTensor("logits", "Gemm:0", All)
        model = Body(lambda m, x, y: F.cross_entropy(F.linear(x, m.w), y), w=weight)
        executor = poptorch.trainingModel(model, options, torch.optim.SGD(model.parameters(), lr=0.0))
        losses.append(executor(hidden, labels))
        if anchored:
            torch.testing.assert_close(executor.getAnchoredTensor("logits"), F.linear(hidden, weight).detach())
        executor.destroy()
    torch.testing.assert_close(losses[0], losses[1])


@pytest.mark.parametrize("replicas, accumulation", [(2, 1), (1, 3)])
def test_section3_intermediate_tensors_over_replicas_and_accumulation(replicas, accumulation):
    options = make_options(1, accumulation, replicas)
    options.anchorTensor("doubled", "Mul:0", All)
    options.anchorTensor("total", "Mul:0", poptorch.OutputMode.Sum)
    model = Body(lambda m, x: poptorch.identity_loss(x * m.w, "sum"), w=torch.nn.Parameter(torch.tensor(2.0)))
    executor = poptorch.trainingModel(model, options, torch.optim.SGD(model.parameters(), lr=0.0))
    x = torch.arange(6.0)
    executor(x)
    assert torch.equal(executor.getAnchoredTensor("doubled"), 2 * x)
    expected = 2 * x if replicas == 2 else (2 * x).view(3, 2).sum(0)
    assert torch.equal(executor.getAnchoredTensor("total"), expected)


def test_section3_a_model_may_anchor_in_inference_and_over_stages():
    class Two(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.first = poptorch.BeginBlock(torch.nn.Linear(3, 3), ipu_id=0)
            self.second = poptorch.BeginBlock(torch.nn.Linear(3, 3), ipu_id=1)

        def forward(self, x):
            return self.second(torch.tanh(self.first(x)))

    options = make_options(2)
    options.anchorTensor("inner", "first/Gemm:0", All)
    model = Two()
    executor = poptorch.inferenceModel(model, options)
    executor(X)
    torch.testing.assert_close(executor.getAnchoredTensor("inner"), model.first(X).detach())


@pytest.mark.parametrize(
    ("iterations", "accumulation", "period", "rows"),
    [(1, 1, 2, []), (3, 1, 2, [1]), (1, 2, 2, []), (3, 2, 2, [2, 3]), (5, 1, 5, [4])],
)
def test_section3_a_period_need_not_divide_the_iterations(iterations, accumulation, period, rows):
    options = make_options(iterations, accumulation)
    options.anchorTensor("doubled", "Mul:0", poptorch.OutputMode.EveryN, period)
    options.anchorTensor("total", "loss", poptorch.OutputMode.EveryN, period)
    options.anchorTensor("weight", "UpdatedVar___w", poptorch.OutputMode.EveryN, period)
    model = Body(lambda m, x: poptorch.identity_loss(x * m.w, "sum"), w=torch.nn.Parameter(torch.tensor(2.0)))
    executor = poptorch.trainingModel(model, options, torch.optim.SGD(model.parameters(), lr=0.0))
    x = torch.arange(2.0 * iterations * accumulation)
    executor(x)
    expected = 2 * x.view(-1, 2)[rows]
    assert torch.equal(executor.getAnchoredTensor("doubled"), expected.flatten())
    total = expected.sum(1)
    assert torch.equal(executor.getAnchoredTensor("total"), total[0] if len(rows) == 1 else total)
    updates = len(rows) // accumulation
    assert executor.getAnchoredTensor("weight").tolist() == (2.0 if updates == 1 else [2.0] * updates)
