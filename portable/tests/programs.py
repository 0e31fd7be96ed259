"""Small models that the executor's tests share."""

from __future__ import annotations

import torch
import torch.nn.functional as F

import poptorch


def make_options(
    iterations: int = 1,
    accumulation: int = 1,
    replicas: int = 1,
    mode: poptorch.OutputMode | None = None,
    period: int | None = None,
) -> poptorch.Options:
    """Options with S, A and R; EveryN takes `period`."""
    options = poptorch.Options()
    options.deviceIterations(iterations).replicationFactor(replicas)
    options.Training.gradientAccumulation(accumulation)
    if mode is not None:
        options.outputMode(mode, period) if period is not None else options.outputMode(mode)
    return options


class Body(torch.nn.Module):
    """Calls `function(module, *inputs)`: a model in one line."""

    def __init__(self, function, **members):
        super().__init__()
        self._function = function
        for name, member in members.items():
            if isinstance(member, torch.Tensor) and not isinstance(member, torch.nn.Parameter):
                self.register_buffer(name, member)
            else:
                setattr(self, name, member)

    def forward(self, *inputs):
        return self._function(self, *inputs)


class Regression(torch.nn.Module):
    """Two layers and a mean squared error: (N, 3), (N, 2) -> prediction (N, 2), loss."""

    def __init__(self, seed: int = 0):
        super().__init__()
        torch.manual_seed(seed)
        self.first = torch.nn.Linear(3, 5)
        self.second = torch.nn.Linear(5, 2)

    def forward(self, x, y):
        prediction = self.second(torch.tanh(self.first(x)))
        return prediction, F.mse_loss(prediction, y)


def regression_data(samples: int, seed: int = 1) -> tuple[torch.Tensor, torch.Tensor]:
    """(samples, 3), (samples, 2)."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(samples, 3, generator=generator), torch.randn(samples, 2, generator=generator)


def infer(function, *inputs, options: poptorch.Options | None = None, **members):
    """What an inference executor of `Body(function)` returns for `inputs`."""
    return poptorch.inferenceModel(Body(function, **members), options)(*inputs)


def weights(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    """Copies of the parameters."""
    return {name: parameter.detach().clone() for name, parameter in model.named_parameters()}


def train(function, *inputs, options: poptorch.Options | None = None, lr: float = 0.0, **members):
    """One call of a training executor of `Body(function)` with a weight `w` of 1."""
    model = Body(function, w=torch.nn.Parameter(torch.ones(())), **members)
    return poptorch.trainingModel(model, options, torch.optim.SGD(model.parameters(), lr=lr))(*inputs)


def gradient_of(function, *inputs, **members) -> dict[str, torch.Tensor]:
    """The gradients that an executor applies, read off one SGD step with lr 1."""
    model = Body(function, **members)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    executor = poptorch.trainingModel(model, None, torch.optim.SGD(model.parameters(), lr=1.0))
    executor(*inputs)
    return {name: before[name] - p.detach() for name, p in model.named_parameters()}


def assert_trains_like(function, reference, *inputs, **members):
    """`reference(module, *inputs)` is the scalar whose gradient is expected; computed in float64."""
    doubles = Body(reference, **{name: torch.nn.Parameter(p.detach().double()) for name, p in members.items()})
    found = gradient_of(function, *inputs, **members)
    reference(doubles, *[x.double() if x.is_floating_point() else x for x in inputs]).backward()
    for name, parameter in doubles.named_parameters():
        torch.testing.assert_close(found[name].double(), parameter.grad, rtol=2e-5, atol=2e-6)


def parameter(*shape: int, seed: int = 0) -> torch.nn.Parameter:
    """Normally distributed."""
    return torch.nn.Parameter(torch.randn(*shape, generator=torch.Generator().manual_seed(seed)))
