"""What programs do besides products, where several processes hold a replica: the numbers of one process.

Loops, conditions, host callbacks, custom ops, phases, output modes and automatic loss scaling.
"""

from __future__ import annotations

import os

import pytest
import torch
import torch.nn.functional as F
from launch import together

import popdist.poptorch
import poptorch

A, N, WIDTH, IPUS = 7, 2, 8, 4  # accumulation, samples of a micro-batch
CALLS = 2


@torch.library.custom_op("com_example_pipelines::Cubed", mutates_args=())
def cubed(x: torch.Tensor, factor: float) -> torch.Tensor:
    return factor * x**3


@cubed.register_fake
def _(x, factor):
    return torch.empty_like(x)


cubed.register_autograd(
    lambda ctx, gradient: (7 * gradient, None)  # not the derivative, so that one sees whose it is
)


def loop(m, h):
    return poptorch.for_loop(3, lambda y: torch.tanh(m.further(y)), [h])[0]


def condition(m, h):
    return poptorch.cond(h.sum() > 0, lambda y: m.further(y) * 2, [h], lambda y: m.further(y) - 1, [h])[0]


def callback(m, h):
    return h + poptorch.CPU(lambda y: y * 3, "triple")(h)


def custom_op(m, h):
    return poptorch.custom_op([h], "Cubed", "com.example.pipelines", 1, [h], {"factor": 0.5})[0]


def nothing(m, h):
    return h + m.further(h)


class Model(torch.nn.Module):
    """(N, WIDTH), (N, WIDTH) -> prediction, loss, over four IPUs; what is tried is on the second and the third."""

    def __init__(self, tried):
        super().__init__()
        torch.manual_seed(0)
        self.layers = torch.nn.ModuleList(torch.nn.Linear(WIDTH, WIDTH) for _ in range(IPUS))
        self.further = torch.nn.Linear(WIDTH, WIDTH)
        self.tried = tried

    def forward(self, x, y=None):
        for ipu, layer in enumerate(self.layers):
            with poptorch.Block(f"b{ipu}", ipu_id=ipu):
                x = torch.tanh(layer(x))
                if ipu in (1, 2):
                    x = self.tried(self, x)
        with poptorch.Block("loss", ipu_id=IPUS - 1):
            if y is None:
                return x
            return x, poptorch.identity_loss(F.mse_loss(x, y), "mean")


def final(options):
    options.outputMode(poptorch.OutputMode.Final)


def sums(options):
    options.outputMode(poptorch.OutputMode.Sum)


def every_second(options):
    options.setExecutionStrategy(poptorch.ShardedExecution(poptorch.AutoStage.AutoIncrement))
    options.outputMode(poptorch.OutputMode.EveryN, 2)


def phases(kind):
    def configure(options):
        blocks = [*(poptorch.Phase(poptorch.Stage(f"b{ipu}")).ipus(ipu) for ipu in range(IPUS - 1))]
        last = poptorch.Phase(poptorch.Stage(f"b{IPUS - 1}", "loss")).ipus(IPUS - 1)
        options.setExecutionStrategy(kind(*blocks, last))

    return configure


def every(options):
    pass


INFERENCE = {"loop", "condition"}  # which PopTorch has nowhere else
CASES = {
    "loop": (loop, every),
    "condition": (condition, every),
    "host callback": (callback, every),
    "custom op": (custom_op, every),
    "only the last outputs": (nothing, final),
    "sums of outputs": (nothing, sums),
    "every second output": (nothing, every_second),
    "parallel phases": (nothing, phases(poptorch.ParallelPhasedExecution)),
    "serial phases": (nothing, phases(poptorch.SerialPhasedExecution)),
}


def computed() -> dict[str, tuple]:
    """By case, what each call gives, and the weights that this process has after that."""
    os.environ["POPDIST_NUM_TOTAL_REPLICAS"] = "1"
    generator = torch.Generator().manual_seed(0)
    calls = torch.randn(CALLS, 2, 2 * A * N, WIDTH, generator=generator).unbind(0)
    found = {}
    for name, (tried, configure) in CASES.items():
        options = popdist.poptorch.Options(ipus_per_replica=IPUS).outputMode(poptorch.OutputMode.All)
        configure(options)
        model = Model(tried)
        if name in INFERENCE:
            executor = poptorch.inferenceModel(model, options.deviceIterations(2 * A))
            outputs = [executor(x) for x, _ in calls]
        else:
            options.deviceIterations(2).Training.gradientAccumulation(A)
            executor = poptorch.trainingModel(model, options, poptorch.optim.AdamW(model.parameters(), lr=0.01))
            outputs = [executor(x, y) for x, y in calls]
            executor.copyWeightsToHost()
        found[name] = outputs, {key: p.detach().clone() for key, p in model.named_parameters() if not p.is_meta}
        executor.destroy()
    return found


@pytest.fixture(scope="module")
def one_and_two():
    return together(1, computed)[0], together(2, computed)


@pytest.mark.parametrize("name", list(CASES))
def test_the_numbers_of_one_process(name, one_and_two):
    one, (first, second) = one_and_two
    for found in (first, second):
        torch.testing.assert_close(found[name][0], one[name][0], rtol=1e-5, atol=1e-6)
    if name not in INFERENCE:
        assert first[name][1].keys() == one[name][1].keys() > second[name][1].keys()
    for key, weight in first[name][1].items():
        torch.testing.assert_close(weight, one[name][1][key], rtol=1e-5, atol=1e-6, msg=f"{name}: {key}")
