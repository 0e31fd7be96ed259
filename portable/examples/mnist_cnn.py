"""A convolutional network learns generated images of ten kinds, like MNIST's digits; then its accuracy is measured.

Shows: several device iterations a call, a DataLoader whose batches another process makes, batch normalisation, a
training and an inference executor that share their weights.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F

import poptorch

CLASSES, SIZE = 10, 28


class Images(torch.utils.data.Dataset):
    """Image i: float32 (1, 28, 28), the blurred pattern of class i % 10, shifted and with noise; label int64."""

    def __init__(self, count: int) -> None:
        self._count = count
        patterns = torch.rand(CLASSES, 1, 7, 7, generator=torch.Generator().manual_seed(0))
        self._patterns = F.interpolate(patterns, size=(SIZE, SIZE), mode="bilinear")

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, index: int) -> tuple[torch.Tensor, torch.Tensor]:
        generator = torch.Generator().manual_seed(index)
        shift = torch.randint(-2, 3, (2,), generator=generator).tolist()
        image = self._patterns[index % CLASSES].roll(shift, dims=(1, 2))
        return image + 0.3 * torch.randn(1, SIZE, SIZE, generator=generator), torch.tensor(index % CLASSES)


class Network(torch.nn.Module):
    """(B, 1, 28, 28) -> logits (B, 10), and with labels (B,) the loss too."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = torch.nn.Sequential(
            torch.nn.Conv2d(1, 8, 5, padding=2),
            torch.nn.BatchNorm2d(8),
            torch.nn.ReLU(),
            torch.nn.MaxPool2d(4),
            torch.nn.Conv2d(8, 16, 3),
            torch.nn.ReLU(),
            torch.nn.Flatten(),
            torch.nn.Linear(16 * 5 * 5, CLASSES),
        )

    def forward(self, images: torch.Tensor, labels: torch.Tensor | None = None):
        logits = self.layers(images)
        return logits if labels is None else (logits, F.cross_entropy(logits, labels))


def make_model() -> Network:
    torch.manual_seed(0)
    return Network()


def make_options() -> poptorch.Options:
    return poptorch.Options().deviceIterations(4).outputMode(poptorch.OutputMode.All).randomSeed(0)


def make_loader(mode: poptorch.DataLoaderMode = poptorch.DataLoaderMode.Async) -> poptorch.DataLoader:
    return poptorch.DataLoader(make_options(), Images(20 * 4 * 8), batch_size=8, mode=mode)


def make_optimizer(model: torch.nn.Module) -> torch.optim.Optimizer:
    return poptorch.optim.SGD(model.parameters(), lr=0.02, momentum=0.9)


def train(model: Network, loader: poptorch.DataLoader) -> list[float]:
    """One epoch of 20 calls; the losses of all their 80 optimizer steps."""
    executor = poptorch.trainingModel(model, loader.options, make_optimizer(model))
    losses = []
    for images, labels in loader:
        _, loss = executor(images, labels)  # a loss for each of the four iterations
        losses += loss.tolist()
    return losses


def accuracy(model: Network) -> float:
    """Of images that were not trained on. `model` is left in evaluation mode."""
    model.eval()
    executor = poptorch.inferenceModel(model, poptorch.Options())
    images = Images(1160)
    held_out = [images[index] for index in range(1000, 1160)]
    found = executor(torch.stack([image for image, _ in held_out])).argmax(dim=1)
    return (found == torch.stack([label for _, label in held_out])).float().mean().item()


def main() -> None:
    model, loader = make_model(), make_loader()
    losses = train(model, loader)
    loader.terminate()
    print(f"loss {losses[0]:.3f} -> {losses[-1]:.3f}, accuracy on new images {accuracy(model):.1%}")


if __name__ == "__main__":  # the DataLoader's process imports this file
    main()
