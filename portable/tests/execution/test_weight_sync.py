"""Weights on the host and on the device (spec sections 1 and 9)."""

from __future__ import annotations

import copy
import io
import pickle

import pytest
import torch
from programs import Regression, make_options, regression_data, weights

import poptorch

X, Y = regression_data(4)


class Nested(torch.nn.Module):
    """A model inside another, as training wrappers have it."""

    def __init__(self):
        super().__init__()
        self.inner = Regression()

    def forward(self, x, y):
        return self.inner(x, y)


def trained(model=None, calls: int = 1):
    """(model, executor) after some calls, and nobody has read the model since."""
    model = Regression() if model is None else model
    executor = poptorch.trainingModel(model, None, torch.optim.SGD(model.parameters(), lr=0.1))
    for _ in range(calls):
        executor(X, Y)
    return model, executor


def expected(calls: int = 1) -> Regression:
    reference = Regression()
    optimizer = torch.optim.SGD(reference.parameters(), lr=0.1)
    for _ in range(calls):
        optimizer.zero_grad()
        reference(X, Y)[1].backward()
        optimizer.step()
    return reference


READS = {
    "parameter": lambda m: m.first.weight,
    "data": lambda m: m.first.weight.data,
    "numpy": lambda m: torch.from_numpy(m.first.weight.detach().numpy()),
    "submodule": lambda m: next(m.first.parameters()),
    "state_dict": lambda m: m.state_dict()["first.weight"],
    "submodule_state_dict": lambda m: m.first.state_dict()["weight"],
    "named_parameters": lambda m: dict(m.named_parameters())["first.weight"],
    "deepcopy": lambda m: copy.deepcopy(m).first.weight,
    "deepcopy_of_parameter": lambda m: copy.deepcopy(m.first.weight),
    "pickle": lambda m: pickle.loads(pickle.dumps(m)).first.weight,
    "torch_save": lambda m: _through_file(m).first.weight,
    "torch_save_state": lambda m: _through_file(m.state_dict())["first.weight"],
    "arithmetic": lambda m: m.first.weight + 0,
    "indexing": lambda m: torch.stack([row for row in m.first.weight]),
    "forward": lambda m: m.first(torch.eye(3)).t() - m.first.bias.unsqueeze(-1),
}


def _through_file(value):
    file = io.BytesIO()
    torch.save(value, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


@pytest.mark.parametrize("name", list(READS))
def test_whoever_reads_the_model_sees_the_weights_of_the_device(name):
    model, executor = trained()
    first = READS[name](model).detach().clone()
    torch.testing.assert_close(first, expected().first.weight.detach(), rtol=1e-6, atol=1e-6)
    executor(X, Y)
    torch.testing.assert_close(READS[name](model).detach(), expected(2).first.weight.detach(), rtol=1e-6, atol=1e-6)


def test_a_parameter_held_from_before_is_read_from_the_device():
    model = Regression()
    held = model.second.weight
    trained(model)
    assert torch.equal(held, expected().second.weight)
    assert f"{held}" == f"{expected().second.weight}"


def test_reading_copies_once_and_only_if_needed():
    model, executor = trained()
    assert executor.copyWeightsToHostIfNeeded()
    assert not executor.copyWeightsToHostIfNeeded()
    executor(X, Y)
    fetched = []
    fetch = executor._source._fetch
    executor._source._fetch = lambda: fetched.append(1) or fetch()
    assert model.first.weight.shape == (5, 3) and model.first.weight.dtype == torch.float32
    assert not fetched  # shapes and types are not values
    for name in READS:
        READS[name](model)
    assert len(fetched) == 1


def test_what_is_copied_out_is_plain():
    model, _ = trained()
    for plain in (copy.deepcopy(model), pickle.loads(pickle.dumps(model)), _through_file(model)):
        assert type(plain) is Regression and type(plain.first.weight) is torch.nn.Parameter
    assert all(type(value) is torch.Tensor for value in model.state_dict().values())
    assert isinstance(model, Regression) and type(model).__name__ == "PoptorchModel"
    assert isinstance(model.first.weight, torch.nn.Parameter)
    assert repr(model.first.weight).startswith("Parameter containing:\ntensor(")


def test_a_state_dict_is_a_copy_and_keeps_ties():
    model, executor = trained()
    state = model.state_dict()
    before = copy.deepcopy(state)
    executor(X, Y)
    assert not torch.equal(model.first.weight, before["first.weight"])
    assert all(torch.equal(state[name], before[name]) for name in before)

    tied = Nested()
    tied.inner.twin = tied.inner.first
    trained(tied)
    state = tied.state_dict()
    assert state["inner.twin.weight"].data_ptr() == state["inner.first.weight"].data_ptr()
    assert len(list(copy.deepcopy(tied).parameters())) == 4


def test_edits_of_the_host_are_invisible_until_they_are_copied():
    model, executor = trained(calls=0)
    executor.compile(X, Y)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
    executor(X, Y)
    torch.testing.assert_close(model.first.weight, expected().first.weight)
    with torch.no_grad():
        model.first.weight.zero_()
    executor.copyWeightsToDevice()
    prediction, _ = poptorch.inferenceModel(model)(X, Y)
    assert torch.equal(prediction[0], prediction[1])
    executor(X, Y)
    assert not torch.equal(model.second.bias, expected().second.bias)


def test_copying_to_the_device_drops_what_was_not_brought_back():
    model, executor = trained(calls=0)
    executor.compile(X, Y)
    before = weights(model)
    executor(X, Y)
    executor.copyWeightsToDevice()  # the host still has the weights from before
    executor.copyWeightsToHost()
    assert torch.equal(model.first.weight, before["first.weight"])


@pytest.mark.parametrize("through_model", [True, False])
def test_loading_a_state_dict_reaches_the_device(through_model):
    model, executor = trained(calls=2)
    fresh = Regression(seed=5)
    (model if through_model else executor).load_state_dict(fresh.state_dict())
    _, loss = executor(X, Y)
    torch.testing.assert_close(loss, fresh(X, Y)[1].detach())
    with pytest.raises(RuntimeError, match="Missing key"):
        model.load_state_dict({})


def test_inference_follows_training():
    model, executor = trained(calls=0)
    follower = poptorch.inferenceModel(executor)
    assert follower.model.first is model.first and follower.model.second is model.second
    for calls in range(1, 4):
        executor(X, Y)
        torch.testing.assert_close(follower(X, Y)[1], expected(calls)(X, Y)[1].detach())


@pytest.mark.parametrize("inference_first", [True, False])
def test_inference_of_a_submodule_follows_training_of_the_whole(inference_first):
    model = Nested()
    follower = poptorch.inferenceModel(model.inner)
    if inference_first:
        follower(X, Y)
    _, executor = trained(model)
    for calls in range(1, 3):
        torch.testing.assert_close(follower(X, Y)[1], expected(calls)(X, Y)[1].detach())
        executor(X, Y)
    executor.destroy()  # the last training call counts too
    torch.testing.assert_close(follower(X, Y)[1], expected(3)(X, Y)[1].detach())


def test_inference_does_not_upload_without_need():
    model, executor = trained()
    follower = poptorch.inferenceModel(model)
    follower(X, Y)
    uploads = []
    upload = follower._session.upload
    follower._session.upload = lambda: uploads.append(1) or upload()
    follower(X, Y)
    assert not uploads
    executor(X, Y)
    follower(X, Y)
    follower(X, Y)
    assert len(uploads) == 1


def test_a_model_is_wrapped_once():
    model, executor = trained(calls=0)
    text = (
        "Model has already been wrapped in 'poptorch.trainingModel'. Call model.destroy\\(\\) on the model to unwrap "
        "before wrapping again."
    )
    for _ in range(2):
        with pytest.raises(RuntimeError, match=text):
            poptorch.trainingModel(model)
        model.destroy()  # does nothing, for it was never compiled
    executor(X, Y)
    model.destroy()
    assert type(model) is Regression and type(model.first.weight) is torch.nn.Parameter
    assert not executor.isCompiled()
    torch.testing.assert_close(model.first.weight, expected().first.weight)
    poptorch.trainingModel(model, None, torch.optim.SGD(model.parameters(), lr=0.1))(X, Y)
    torch.testing.assert_close(model.first.weight, expected(2).first.weight)


def test_a_destroyed_executor_compiles_again():
    model, executor = trained()
    executor.destroy()
    executor(X, Y)
    torch.testing.assert_close(model.first.weight, expected(2).first.weight)
    assert type(model).__name__ == "PoptorchModel"


@pytest.mark.parametrize("kind", [poptorch.optim.Adam, torch.optim.Adam])
def test_detaching_keeps_momenta_and_attaching_uploads_the_host(kind):
    models = [Regression(), Regression()]
    executors = [poptorch.trainingModel(m, None, kind(m.parameters(), lr=0.1)) for m in models]
    for k in range(4):
        for executor in executors:
            executor(X, Y)
        if k == 1:
            executors[1].detachFromDevice()
            executors[1].attachToDevice()
    assert torch.equal(models[0].first.weight, models[1].first.weight)
    executors[1].detachFromDevice()
    with torch.no_grad():
        models[1].first.weight.fill_(1)
    executors[1].attachToDevice()
    executors[1].copyWeightsToHost()
    assert models[1].first.weight.unique().item() == 1


def test_the_model_that_runs_is_a_shallow_copy():
    class Switched(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.gain = 2.0
            self.dropout = torch.nn.Dropout(0.5)

        def forward(self, x):
            return x * self.gain * (3 if self.training else 1) * (5 if self.dropout.training else 1)

    model = Switched()
    executor = poptorch.inferenceModel(model)
    model.eval()  # the submodule is shared, the flag and the attributes of the top are not
    model.gain = 7.0
    assert executor(torch.ones(1)).item() == 6


def test_train_and_eval_are_never_called():
    class Refusing(Regression):
        def train(self, mode=True):
            raise AssertionError("train() was called")

    model = Refusing()
    poptorch.trainingModel(model)(X, Y)
    poptorch.inferenceModel(model)(X, Y)
    assert model.training


def test_the_executor_hands_attributes_of_the_model_through():
    model, executor = trained()
    assert executor.first is model.first and executor.options.device_iterations == 1
    with pytest.raises(AttributeError):
        executor.nothing  # noqa: B018
    assert "Linear" in repr(executor)


def test_device_iterations_of_weights_reach_the_host_together():
    model = Regression()
    x, y = regression_data(12)
    executor = poptorch.trainingModel(model, make_options(3), torch.optim.SGD(model.parameters(), lr=0.1))
    executor(x, y)
    reference = Regression()
    optimizer = torch.optim.SGD(reference.parameters(), lr=0.1)
    for k in range(3):
        optimizer.zero_grad()
        reference(x[4 * k : 4 * k + 4], y[4 * k : 4 * k + 4])[1].backward()
        optimizer.step()
    torch.testing.assert_close(model.first.weight, reference.first.weight)
