"""The one shallow copy of the user's model: it runs, `.model` returns it, attributes reach it (spec section 1)."""

from __future__ import annotations

import pytest
import torch

import poptorch


class TenTimesInTraining(torch.nn.Module):
    """10 l(x) in training mode, l(x) otherwise."""

    def __init__(self):
        super().__init__()
        self.l = torch.nn.Linear(2, 2)
        self.factor = 10.0

    def forward(self, x):
        y = self.l(x)
        return self.factor * y if self.training else y


class Loss(TenTimesInTraining):
    def forward(self, x):
        y = super().forward(x)
        return y, poptorch.identity_loss(y, reduction="mean")


X = torch.tensor([[1.0, 2.0]])


def plain(model):
    return model.l(X).detach()


@pytest.mark.parametrize(
    "switch",
    [lambda e: e.eval(), lambda e: e.train(False), lambda e: e.model.eval(), lambda e: setattr(e, "training", False)],
    ids=["eval", "train(False)", "model.eval", "training"],
)
def test_the_mode_of_the_executor_is_what_runs(switch):
    model = TenTimesInTraining()
    executor = poptorch.inferenceModel(model)
    switch(executor)
    torch.testing.assert_close(executor(X), plain(model))
    assert model.training and not executor.training and not executor.model.training
    executor.train()  # the program is there: its mode stays
    torch.testing.assert_close(executor(X), plain(model))
    assert executor.model.training and executor.model is not model


def test_the_users_mode_after_the_executor_was_made_is_not_looked_at():
    model = TenTimesInTraining().eval()
    executor = poptorch.inferenceModel(model)
    model.training = True
    torch.testing.assert_close(executor(X), plain(model))


def test_a_training_executor_of_a_model_in_eval_mode():
    model = Loss().eval()
    executor = poptorch.trainingModel(model, None, torch.optim.SGD(model.parameters(), lr=0.0))
    torch.testing.assert_close(executor(X)[0], plain(model))
    assert not executor.model.training
    executor.destroy()
    executor.train()
    torch.testing.assert_close(executor(X)[0], 10 * plain(model))
    assert not model.training


def test_an_inference_executor_made_from_a_training_executor():
    model = Loss()
    training = poptorch.trainingModel(model, None, torch.optim.SGD(model.parameters(), lr=0.5))
    inference = poptorch.inferenceModel(training)
    inference.eval()
    before = plain(model)
    torch.testing.assert_close(training(X)[0], 10 * before)
    torch.testing.assert_close(inference(X)[0], plain(model))
    assert model.training and training.model.training and not torch.equal(plain(model), before)


@pytest.mark.parametrize("inference", [False, True])
def test_a_training_executor_made_from_a_destroyed_one(inference):
    """It is that of the user's model, as if the executor had never been."""
    model = Loss()
    first = poptorch.trainingModel(model, None, torch.optim.SGD(model.parameters(), lr=0.5))
    follower = poptorch.inferenceModel(first)
    first(X)
    with pytest.raises(RuntimeError, match="already been wrapped"):
        poptorch.trainingModel(first)
    first.destroy()
    source = follower if inference else first
    second = poptorch.trainingModel(source, None, torch.optim.SGD(model.parameters(), lr=0.5))
    before = plain(model)
    torch.testing.assert_close(second(X)[0], 10 * before)
    assert not torch.equal(plain(model), before)
    second.destroy()
    assert type(model) is Loss


def test_attributes_are_those_of_the_copy():
    model = TenTimesInTraining()
    executor = poptorch.inferenceModel(model)
    executor.factor = 2.0
    assert model.factor == 10.0 and executor.factor == executor.model.factor == 2.0
    torch.testing.assert_close(executor(X), 2 * plain(model))
    executor.fresh = "new"
    assert executor.model.fresh == executor.fresh == "new" and not hasattr(model, "fresh")
    with pytest.raises(AttributeError, match="unheard_of"):
        _ = executor.unheard_of


def test_the_copy_of_a_training_executor_reads_and_writes_the_device():
    model = Loss()
    executor = poptorch.trainingModel(model, None, torch.optim.SGD(model.parameters(), lr=0.5))
    executor(X)
    assert torch.equal(executor.model.state_dict()["l.weight"], model.state_dict()["l.weight"])
    assert executor.model.l is model.l
    zeros = {name: torch.zeros_like(value) for name, value in model.state_dict().items()}
    executor.model.load_state_dict(zeros)
    assert executor(X)[0].abs().sum() == 0
    assert type(executor.model) is type(model) is not Loss
    executor.destroy()
    assert type(executor.model) is type(model) is Loss


def test_what_is_saved_is_the_copy(tmp_path):
    model = TenTimesInTraining()
    executor = poptorch.inferenceModel(model)
    executor.eval()
    executor(X)
    executor.save(tmp_path / "executor")
    torch.testing.assert_close(poptorch.load(tmp_path / "executor")(X), plain(model))
