"""Execution strategies in training: the same numbers under all of them (section 8). Blocks: test_blocks.py."""

from __future__ import annotations

import pytest
import torch
from programs import Body, make_options, regression_data, weights

import poptorch
from poptorch import Phase, Stage

X, Y = regression_data(16)
STRATEGIES = {
    "SameAsIpu": poptorch.PipelinedExecution(poptorch.AutoStage.SameAsIpu),
    "AutoIncrement": poptorch.AutoStage.AutoIncrement,
    "pipelined": poptorch.PipelinedExecution(Stage("a", "b").ipu(0), Stage("c").ipu(1)),
    "sharded": poptorch.ShardedExecution("a", Stage("b", "c")),
    "parallel": poptorch.ParallelPhasedExecution(Phase(Stage("a"), Stage("b")).ipus(0, 2), Phase("c").ipus(1)),
    "serial": poptorch.SerialPhasedExecution("a", ["b"], Stage("c")).setTensorsLiveness(
        poptorch.Liveness.OffChipAfterEachPhase
    ),
}


def trained(strategy, ids=("a", "b", "c"), ipus=(0, 1, 0)):
    """Weights after two calls of S = 2, A = 8, and the number of stages."""

    def forward(m, x, y):
        for number, (block, ipu) in enumerate(zip(ids, ipus, strict=True)):
            poptorch.Block.start(block, ipu_id=ipu)
            x = torch.tanh(m.layers[number](x))
        return torch.nn.functional.mse_loss(x, y)

    torch.manual_seed(0)
    layers = [torch.nn.Linear(3, 3), torch.nn.Linear(3, 3), torch.nn.Linear(3, 2)]
    model = Body(forward, layers=torch.nn.ModuleList(layers))
    options = make_options(2, 8).autoRoundNumIPUs(True)
    if strategy is not None:
        options.setExecutionStrategy(strategy)
    executor = poptorch.trainingModel(model, options, torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9))
    for _ in range(2):
        executor(X, Y)
    return weights(model), executor.program.stages


@pytest.mark.parametrize("name", STRATEGIES)
def test_every_strategy_gives_the_numbers_of_plain_accumulation(name):
    expected, _ = trained(None, ipus=(0, 0, 0))
    found, stages = trained(STRATEGIES[name])
    assert len(stages) > 1
    assert all(torch.equal(found[key], value) for key, value in expected.items())


def test_without_blocks_everything_is_one_stage_on_ipu_0():
    executor = poptorch.inferenceModel(Body(lambda m, x: x + 1))
    executor.compile(torch.ones(1))
    assert [(stage.ipu, stage.blocks) for stage in executor.program.stages] == [(0, ())]


def test_explicit_stages_take_the_place_of_the_ipus_of_blocks():
    _, stages = trained(poptorch.PipelinedExecution(Stage("a").ipu(1), Stage("b").ipu(1), Stage("c").ipu(3)))
    assert [(stage.ipu, stage.blocks) for stage in stages] == [(1, ("a", "b")), (3, ("c",))]
