"""engine/passes/unread.py: what nobody reads is not computed; all else that a program does stays."""

from __future__ import annotations

import torch
from programs import Body, make_options

import poptorch


def operations(executor) -> list[str]:
    graphs = [part.module.graph for stage in executor.program.stages for part in stage.segments]
    return [node.target.name() for graph in graphs for node in graph.nodes if hasattr(node.target, "name")]


def test_what_nobody_reads_is_not_computed():
    def forward(m, x):
        torch.exp(x.t().reshape(-1)).sum()
        return x * 2

    executor = poptorch.inferenceModel(Body(forward))
    x = torch.randn(2, 3)
    assert torch.equal(executor(x), x * 2)
    assert operations(executor) == ["aten::mul.Tensor"]


def test_in_training_neither():
    def forward(m, x):
        torch.exp(m.weight)
        return poptorch.identity_loss(x * m.weight, reduction="sum")

    model = Body(forward, weight=torch.nn.Parameter(torch.ones(3)))
    executor = poptorch.trainingModel(model, make_options(), torch.optim.SGD(model.parameters(), lr=1.0))
    executor(torch.full((1, 3), 0.25))
    assert model.weight.tolist() == [0.75] * 3
    assert "aten::exp" not in operations(executor)


def test_writes_stay():
    def forward(m, x):
        m.count.add_(1)
        view = m.total[0]
        view += x.sum()
        return x + 0

    executor = poptorch.inferenceModel(Body(forward, count=torch.zeros(1), total=torch.zeros(2)))
    executor(torch.ones(2, 2))
    assert any(name.startswith("aten::add_") for name in operations(executor))
    x = torch.zeros(2)

    def written(m, x):
        x[1] = 3.0
        return x * 2

    executor = poptorch.inferenceModel(Body(written))
    executor(x)
    assert x.tolist() == [0.0, 3.0]


def test_random_numbers_are_those_with_the_draws_that_nobody_reads():
    def drawn(unread: bool) -> torch.Tensor:
        def forward(m, x):
            if unread:
                torch.rand(5)
            return torch.rand(3) + x

        options = make_options()
        options.randomSeed(7)
        return poptorch.inferenceModel(Body(forward), options)(torch.zeros(3))

    assert not torch.equal(drawn(True), drawn(False))
