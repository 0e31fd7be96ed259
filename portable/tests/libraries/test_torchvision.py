"""A ResNet-18 of torchvision as it is installed, trained on four replicas."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F

import poptorch

pytestmark = pytest.mark.programs


@pytest.fixture
def models():
    """torchvision.models.

    An index with torch's CPU builds may have torchvision's CUDA builds alone, whose C++ operators cannot be loaded
    then. A ResNet has none of them, but the import asks for the schemas of two, which it is given.
    """
    try:
        import torchvision
    except RuntimeError as error:
        if "torchvision::nms" not in str(error):
            raise
        for name in ("nms", "qnms"):
            schema = "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"
            torch.library.define(f"torchvision::{name}", schema)
        import torchvision
    return torchvision.models


class ResNet(torch.nn.Module):
    """torchvision's ResNet-18 with its loss: (N, 3, 64, 64), (N,) -> logits (N, 10), the loss."""

    def __init__(self, models):
        super().__init__()
        torch.manual_seed(0)
        self.layers = models.resnet18(num_classes=10)

    def forward(self, images, labels):
        logits = self.layers(images)
        return logits, F.cross_entropy(logits, labels)


def test_a_resnet_on_four_replicas(models):
    """Gradients are the mean of the replicas', which see their own part each and have statistics of their own.

    Images of 64 x 64 leave the last batch norm 2 x 2 values of each sample: with one, a rounding error grows a
    thousandfold in a step, in plain torch as here.
    """
    model = ResNet(models).train()
    reference = copy.deepcopy(model)
    replicas = 4
    options = poptorch.Options().replicationFactor(replicas).outputMode(poptorch.OutputMode.All)
    executor = poptorch.trainingModel(model, options, poptorch.optim.SGD(model.parameters(), lr=0.005, momentum=0.9))
    optimizer = torch.optim.SGD(reference.parameters(), lr=0.005, momentum=0.9)
    generator = torch.Generator().manual_seed(3)
    for _ in range(3):
        images = torch.randn(4 * replicas, 3, 64, 64, generator=generator)
        labels = torch.randint(0, 10, (4 * replicas,), generator=generator)
        _, losses = executor(images, labels)
        optimizer.zero_grad()
        expected = [reference(*part)[1] for part in zip(images.chunk(replicas), labels.chunk(replicas), strict=True)]
        (sum(expected) / replicas).backward()
        optimizer.step()
        torch.testing.assert_close(losses, torch.stack(expected).detach(), rtol=1e-4, atol=1e-4)
    for (name, found), wanted in zip(model.named_parameters(), reference.parameters(), strict=True):
        torch.testing.assert_close(found.detach(), wanted.detach(), rtol=1e-3, atol=1e-4, msg=lambda m: f"{name}: {m}")  # noqa: B023
