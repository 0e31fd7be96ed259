"""Weights that several models or modules share, and buffers that libraries write in their own way (spec section 9)."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from programs import Body, make_options

import poptorch

X = torch.randn(4, 3, generator=torch.Generator().manual_seed(0))


class Pull(torch.nn.Module):
    """Trains a shared layer towards a constant."""

    def __init__(self, layer, goal):
        super().__init__()
        self.layer = layer
        self.goal = goal

    def forward(self, x):
        return F.mse_loss(self.layer(x), torch.full_like(x[:, :2], self.goal))


def trainer(model, lr=0.1):
    return poptorch.trainingModel(model, None, torch.optim.SGD(model.parameters(), lr=lr))


def reference_steps(layer, *goals):
    """The layer after an SGD step towards each goal in turn."""
    layer = copy.deepcopy(layer)
    for goal in goals:
        grads = torch.autograd.grad(Pull(layer, goal)(X), list(layer.parameters()))
        with torch.no_grad():
            for parameter, grad in zip(layer.parameters(), grads, strict=True):
                parameter -= 0.1 * grad
    return layer


def test_a_second_model_starts_from_what_the_first_one_trained():
    """As the two models of a GAN: each has weights of its own on the device, the host's are those trained last."""
    layer = torch.nn.Linear(3, 2)
    start = copy.deepcopy(layer)
    first, second = trainer(Pull(layer, 1.0)), trainer(Pull(layer, -1.0))
    first(X)
    second(X)
    torch.testing.assert_close(layer.weight.detach(), reference_steps(start, 1.0, -1.0).weight.detach())
    first(X)  # goes on from its own weights
    torch.testing.assert_close(layer.weight.detach(), reference_steps(start, 1.0, 1.0).weight.detach())
    second.copyWeightsToDevice()
    second(X)
    torch.testing.assert_close(layer.weight.detach(), reference_steps(start, 1.0, 1.0, -1.0).weight.detach())


def test_destroying_one_of_two_leaves_the_other_attached():
    layer = torch.nn.Linear(3, 2)
    start = copy.deepcopy(layer)
    first, second = trainer(Pull(layer, 1.0)), trainer(Pull(layer, -1.0))
    first(X)
    second(X)
    first.destroy()
    second(X)
    torch.testing.assert_close(layer.weight.detach(), reference_steps(start, 1.0, -1.0, -1.0).weight.detach())
    second.destroy()
    assert type(layer.weight) is torch.nn.Parameter


def test_an_inference_model_of_a_shared_part_follows():
    layer = torch.nn.Linear(3, 2)
    start = copy.deepcopy(layer)
    first = trainer(Pull(layer, 1.0))
    follower = poptorch.inferenceModel(layer)
    for calls in (1, 2):
        first(X)
        torch.testing.assert_close(follower(X), reference_steps(start, *[1.0] * calls)(X).detach())


def test_tied_parameters_have_both_names_in_the_state_and_one_in_the_list():
    class Tied(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.embedding = torch.nn.Embedding(5, 3)
            self.head = torch.nn.Linear(3, 5, bias=False)
            self.head.weight = self.embedding.weight

        def forward(self, tokens):
            return F.cross_entropy(self.head(self.embedding(tokens)), tokens)

    model = Tied()
    executor = trainer(model)
    executor(torch.tensor([0, 1, 2, 3]))
    assert [name for name, _ in model.named_parameters()] == ["embedding.weight"]
    assert set(model.state_dict()) == {"embedding.weight", "head.weight"}
    assert model.head.weight is model.embedding.weight
    names = executor.getTensorNames()
    assert "embedding.weight" in names and "head.weight" not in names


@pytest.mark.parametrize("kind", ["parametrizations", "hook"])
def test_spectral_norm_writes_its_buffers_through_out(kind):
    wrap = torch.nn.utils.parametrizations.spectral_norm if kind == "parametrizations" else torch.nn.utils.spectral_norm
    torch.manual_seed(0)
    layer = wrap(torch.nn.Linear(3, 2))
    plain = copy.deepcopy(layer)
    model = Pull(layer, 1.0)
    executor = poptorch.trainingModel(model, make_options(2), torch.optim.SGD(model.parameters(), lr=0.1))
    optimizer = torch.optim.SGD(plain.parameters(), lr=0.1)
    executor(X)
    for part in X.split(2):
        optimizer.zero_grad()
        Pull(plain, 1.0)(part).backward()
        optimizer.step()
    expected, found = plain.state_dict(), layer.state_dict()
    assert any("_u" in name for name in expected)
    for name in expected:
        torch.testing.assert_close(found[name], expected[name], rtol=1e-4, atol=1e-5)


def test_a_buffer_that_is_not_saved_is_on_the_device_all_the_same():
    model = Body(lambda m, x: x + m.count.add_(1))
    model.register_buffer("count", torch.zeros(1), persistent=False)
    model.register_buffer("absent", None)
    executor = poptorch.inferenceModel(model)
    assert [executor(torch.zeros(1)).item() for _ in range(3)] == [1, 2, 3]
    assert model.count.item() == 0  # inference writes nothing back by itself
    executor.copyWeightsToHost()
    assert model.count.item() == 3


def test_moving_and_changing_the_wrapped_model_on_the_host():
    model = Pull(torch.nn.Linear(3, 2), 1.0)
    executor = trainer(model)
    executor(X)
    weight = model.layer.weight.detach().clone()
    model.to("cpu").float().eval().train().zero_grad()
    assert torch.equal(model.layer.weight, weight)
    model.layer.bias = torch.nn.Parameter(torch.zeros(2))
    executor.copyWeightsToDevice()
    follower = poptorch.inferenceModel(model.layer)
    torch.testing.assert_close(follower(X), F.linear(X, weight))
