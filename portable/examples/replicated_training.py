"""Two replicas of a model, each with its own part of the data and its own running statistics, train one set of weights.

Shows: replicationFactor with gradient accumulation and several device iterations, the order of a batch, losses that
come back once a replica, buffers that differ between replicas.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F

import poptorch

STEPS, ITERATIONS, ACCUMULATION, REPLICAS, MICRO_BATCH = 20, 2, 2, 2, 5


class Network(torch.nn.Module):
    """(B, 6), (B, 3) -> loss. The running mean of the inputs is subtracted from them."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = torch.nn.Sequential(torch.nn.Linear(6, 16), torch.nn.Tanh(), torch.nn.Linear(16, 3))
        self.register_buffer("mean", torch.zeros(6))

    def forward(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        self.mean.mul_(0.9).add_(x.mean(dim=0), alpha=0.1)
        return F.mse_loss(self.layers(x - self.mean), y)


def make_model() -> Network:
    torch.manual_seed(0)
    return Network()


def make_options() -> poptorch.Options:
    options = poptorch.Options().deviceIterations(ITERATIONS).replicationFactor(REPLICAS).broadcastBuffers(False)
    options.outputMode(poptorch.OutputMode.Sum)
    options.Training.gradientAccumulation(ACCUMULATION)
    options.Training.accumulationAndReplicationReductionType(poptorch.ReductionType.Mean)
    return options


def make_loader() -> poptorch.DataLoader:
    """20 combined batches of 40 samples."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(STEPS * ITERATIONS * ACCUMULATION * REPLICAS * MICRO_BATCH, 6, generator=generator) + 1
    y = torch.stack([x[:, 0] * x[:, 1], x[:, 2].sin(), x[:, 3:].sum(dim=1)], dim=1)
    return poptorch.DataLoader(make_options(), torch.utils.data.TensorDataset(x, y), batch_size=MICRO_BATCH)


def make_optimizer(model: torch.nn.Module) -> torch.optim.Optimizer:
    return poptorch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9, nesterov=True)


def train(model: Network) -> list[float]:
    """The mean loss of each of the 20 calls."""
    executor = poptorch.trainingModel(model, make_options(), make_optimizer(model))
    losses = []
    for x, y in make_loader():
        sums = executor(x, y)  # a replica's sum over its four micro-batches
        assert sums.shape == (REPLICAS,)
        losses.append(sums.mean().item() / (ITERATIONS * ACCUMULATION))
    return losses


def main() -> None:
    model = make_model()
    losses = train(model)
    mean = ", ".join(f"{value:.2f}" for value in model.mean.tolist())
    print(f"loss {losses[0]:.3f} -> {losses[-1]:.3f}; the first replica's running mean: {mean}")


if __name__ == "__main__":
    main()
