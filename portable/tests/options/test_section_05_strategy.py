"""How the mean of gradients is formed is settled by options and optimizer (spec section 5)."""

from __future__ import annotations

import pytest
import torch
from programs import Body, make_options

import poptorch

Strategy = poptorch.MeanReductionStrategy
X = torch.tensor([[1.0], [2.0], [3.0], [6.0]])


def trainer(dtype=torch.float32, options=None, **arguments):
    def forward(m, x):
        return poptorch.identity_loss((x.to(m.w.dtype) * m.w).float().sum(), "none")

    model = Body(forward, w=torch.nn.Parameter(torch.ones(1, dtype=dtype)))
    optimizer = poptorch.optim.SGD(model.parameters(), lr=1.0, **arguments)
    return poptorch.trainingModel(model, options or make_options(1, 4), optimizer)


def strategy(executor):
    return executor.options.Training.meanAccumulationAndReplicationReductionStrategy


@pytest.mark.parametrize(
    "dtype, arguments, expected",
    [
        (torch.float32, {}, Strategy.Post),
        (torch.float32, {"accum_type": torch.float32}, Strategy.Post),
        (torch.float32, {"accum_type": torch.float16}, Strategy.Running),
        (torch.float16, {}, Strategy.Running),
        (torch.float16, {"accum_type": torch.float32}, Strategy.Post),
        (torch.float16, {"use_combined_accum": True}, Strategy.Post),
        (torch.float32, {"use_combined_accum": True, "accum_type": torch.float16}, Strategy.Post),
    ],
)
def test_section5_half_accumulators_choose_the_running_mean(dtype, arguments, expected):
    options = make_options(1, 4)
    executor = trainer(dtype, options, **arguments)
    assert strategy(executor) is expected
    assert options.Training.meanAccumulationAndReplicationReductionStrategy is Strategy.Post  # the program's own
    executor(X)
    assert executor.model.w.item() == pytest.approx(1 - 3, abs=2e-3)  # either way it is the mean


def test_section5_the_program_may_choose_the_running_mean_itself():
    options = make_options(1, 4)
    options.Training.setMeanAccumulationAndReplicationReductionStrategy(Strategy.Running)
    executor = trainer(options=options)
    assert strategy(executor) is Strategy.Running
    executor(X)
    assert executor.model.w.item() == pytest.approx(-2)


def test_section5_a_model_may_become_half_before_it_is_compiled():
    executor = trainer()
    executor.model.half()
    executor(X)
    assert strategy(executor) is Strategy.Running and executor.model.w.dtype == torch.float16


def test_section5_the_choice_is_made_until_compilation():
    executor = trainer()
    half = poptorch.optim.SGD(executor.model.parameters(), lr=1.0, accum_type=torch.float16)
    executor.setOptimizer(half)
    assert strategy(executor) is Strategy.Running
    executor(X)
    with pytest.raises(ValueError, match="is already compiled"):
        executor.setOptimizer(poptorch.optim.SGD(executor.model.parameters(), lr=1.0, accum_type=torch.float32))
    executor.destroy()
    executor.setOptimizer(poptorch.optim.SGD(executor.model.parameters(), lr=1.0))
    assert strategy(executor) is Strategy.Post
    executor(X)
    with pytest.raises(ValueError, match="is already compiled"):
        executor.setOptimizer(half)


@pytest.mark.parametrize("kind", [poptorch.ReductionType.NoReduction, "Mean", None])
def test_section5_only_mean_and_sum(kind):
    with pytest.raises(ValueError, match="Mean or Sum"):
        poptorch.Options().Training.accumulationAndReplicationReductionType(kind)


def test_section5_reduction_changes_neither_losses_nor_outputs():
    found = []
    for kind in (poptorch.ReductionType.Mean, poptorch.ReductionType.Sum):
        options = make_options(1, 4, mode=poptorch.OutputMode.All)
        options.Training.accumulationAndReplicationReductionType(kind)
        executor = trainer(options=options)
        found.append(executor(X).tolist())
        found.append(executor.model.w.item())
    assert found == [[1, 2, 3, 6], 1 - 3, [1, 2, 3, 6], 1 - 12]
