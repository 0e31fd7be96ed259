"""Later calls are held to the one that was compiled (spec section 1)."""

from __future__ import annotations

import pytest
import torch
from programs import make_options

import poptorch
from poptorch.execution import signature

HINT = "This error occurred because the inputs passed at runtime don't match the inputs used to compile the model."


class Model(torch.nn.Module):
    def forward(self, x, pair=None, named=None, scale=2, *, offset=0):
        result = x * scale + offset
        for extra in (*(pair or ()), *(named or {}).values()):
            result = result + extra
        return result


@pytest.fixture
def executor():
    model = poptorch.inferenceModel(Model())
    x = torch.ones(2, 3)
    model(x, (x, x), {"a": x, "b": x}, scale=3, offset=1)
    return model


X = torch.ones(2, 3)
GOOD = ((X, X), {"a": X, "b": X})


def test_the_same_call_again(executor):
    assert executor(X, *GOOD, scale=3, offset=1).unique().item() == 8
    assert executor(X, *GOOD, 3, offset=1).unique().item() == 8  # by position or by name
    assert executor(offset=1, scale=3, named={"b": 2 * X, "a": X}, pair=(X, X), x=X).unique().item() == 9


@pytest.mark.parametrize(
    "args, kwargs, text",
    [
        ((X.int(), *GOOD), {"scale": 3, "offset": 1}, "Data type mismatch: expected torch.float32 but got torch.int32"),
        (
            (X[:1], *GOOD),
            {"scale": 3, "offset": 1},
            "Shape mismatch: expected torch.Size\\(\\[2, 3\\]\\) but got torch.Size\\(\\[1, 3\\]\\) for x",
        ),
        ((X, (X, X[0]), GOOD[1]), {"scale": 3, "offset": 1}, "Shape mismatch: expected .* but got .* for pair\\[1\\]"),
        ((X, GOOD[0], {"b": X[0], "a": X}), {"scale": 3, "offset": 1}, "Shape mismatch: .* for named\\['b'\\]"),
        (
            (X, [X, X], GOOD[1]),
            {"scale": 3, "offset": 1},
            "Type mismatch: expected <class 'tuple'> but got <class 'list'>",
        ),
        ((X, (X, X, X), GOOD[1]), {"scale": 3, "offset": 1}, "Length mismatch: expected 2 but got 3"),
        (
            (X, GOOD[0], {"a": X, "c": X}),
            {"scale": 3, "offset": 1},
            "Keys mismatch: expected .* but got .*Unexpected: \\['c'\\], Missing: \\['b'\\]",
        ),
        ((X, GOOD[0], {"a": X, "b": 1}), {"scale": 3, "offset": 1}, "expected a torch.Tensor but got <class 'int'>"),
        ((X, *GOOD), {"scale": 4, "offset": 1}, "Value mismatch: expected 3 but got 4"),
        ((X, *GOOD), {"scale": 3.0, "offset": 1}, "Type mismatch"),
        ((X, *GOOD), {"scale": 3}, "Value mismatch: expected 1 but got 0"),
        ((X, None, GOOD[1]), {"scale": 3, "offset": 1}, "Type mismatch"),
    ],
)
def test_another_call_is_refused(executor, args, kwargs, text):
    with pytest.raises(poptorch.Error, match=text) as error:
        executor(*args, **kwargs)
    assert HINT in str(error.value)
    assert executor(X, *GOOD, scale=3, offset=1).unique().item() == 8  # and does no harm


def test_too_many_and_too_few():
    executor = poptorch.inferenceModel(Model())
    with pytest.raises(AssertionError, match="Too many arguments"):
        executor(X, None, None, 2, 3)
    with pytest.raises(poptorch.Error, match="Mandatory parameter x missing"):
        executor(scale=2)
    with pytest.raises(poptorch.Error, match="unexpected keyword argument 'z'"):
        executor(X, z=1)
    with pytest.raises(poptorch.Error, match="multiple values for argument 'x'"):
        executor(X, x=X)


def test_variadic_forward():
    class Variadic(torch.nn.Module):
        def forward(self, first, *rest, **named):
            return first + sum(rest) + sum(named.values())

    executor = poptorch.inferenceModel(Variadic(), make_options(2))
    x = torch.arange(4.0)
    assert torch.equal(executor(x, x, x, a=x), 4 * x)
    with pytest.raises(poptorch.Error, match="Length mismatch"):
        executor(x, x)
    with pytest.raises(poptorch.Error, match="Missing: \\['a'\\]"):
        executor(x, x, x)


def test_non_contiguous_keyword_inputs():
    data = torch.arange(24.0).view(4, 6)
    executor = poptorch.inferenceModel(Model(), make_options(2))
    assert torch.equal(executor(x=data[:, :-1]), 2 * data[:, :-1])
    assert torch.equal(executor(x=data[:, 1:]), 2 * data[:, 1:])


def test_constants_are_those_of_the_first_call():
    model = Model()
    model.extra = 5

    def forward(x):
        return x + model.extra

    model.forward = forward
    executor = poptorch.inferenceModel(model)
    assert executor(X).unique().item() == 6
    model.extra = 100
    assert executor(X).unique().item() == 6


def test_methods_that_need_a_compiled_model():
    executor = poptorch.inferenceModel(Model())
    for call in (
        executor.copyWeightsToHost,
        executor.copyWeightsToDevice,
        executor.attachToDevice,
        executor.detachFromDevice,
        executor.compilationTime,
        lambda: executor.rng_state,
        lambda: executor.save("unused"),
    ):
        with pytest.raises(poptorch.Error, match="Model has not been compiled or has been destroyed."):
            call()
    executor.destroy()  # does nothing


def test_compile_then_call_and_a_second_compile_only_warns(capsys):
    executor = poptorch.inferenceModel(Model(), make_options(2))
    executor.compile(X)
    assert executor.isCompiled() and executor.isAttachedToDevice()
    executor.compile(X)
    assert "Call to compile() ignored: the executable is already compiled" in capsys.readouterr().err
    assert executor.compilationTime().total_seconds() > 0
    assert executor(X).unique().item() == 2


def test_attach_and_detach():
    executor = poptorch.inferenceModel(Model())
    executor(X)
    with pytest.raises(poptorch.Error, match="Device is already attached"):
        executor.attachToDevice()
    executor.detachFromDevice()
    assert not executor.isAttachedToDevice()
    for call in (executor.detachFromDevice, executor.copyWeightsToHost):
        with pytest.raises(poptorch.Error, match="Device is not attached"):
            call()
    assert executor(X).unique().item() == 2 and executor.isAttachedToDevice()


def test_a_model_compiled_offline_does_not_run():
    executor = poptorch.inferenceModel(Model(), poptorch.Options().connectionType(poptorch.ConnectionType.Never))
    executor.compile(X)
    for call in (lambda: executor(X), executor.attachToDevice):
        with pytest.raises(AssertionError, match="Trying to run a model on an offline device .ConnectionType.Never"):
            call()


def test_options_are_frozen_and_checked():
    options = poptorch.Options()
    executor = poptorch.inferenceModel(Model(), options)
    for frozen in (options, executor.options):
        with pytest.raises(AttributeError, match="Can't modify frozen Options"):
            frozen.deviceIterations(2)
    with pytest.raises(poptorch.Error, match="Invalid type: 'options' is of type"):
        poptorch.inferenceModel(Model(), {"deviceIterations": 2})
    with pytest.raises(poptorch.Error, match="compileEngine"):
        options = poptorch.Options()
        options._Popart.set("compileEngine", False)
        poptorch.inferenceModel(Model(), options)(X)


def test_what_is_no_model_or_no_optimizer_is_refused_at_once():
    with pytest.raises(poptorch.Error, match="Invalid type: 'model' is of type"):
        poptorch.inferenceModel(lambda x: x)
    model = Model()
    for wrong in ("adam", torch.optim.Adagrad([torch.nn.Parameter(X)])):
        with pytest.raises(AssertionError, match="Unsupported optimizer type. Types supported"):
            poptorch.trainingModel(model, None, wrong)
    assert type(model) is Model  # it is not wrapped


def test_on_demand_attaches_when_it_runs():
    executor = poptorch.inferenceModel(Model(), poptorch.Options().connectionType(poptorch.ConnectionType.OnDemand))
    executor.compile(X)
    assert executor.isCompiled() and not executor.isAttachedToDevice()
    executor(X)
    assert executor.isAttachedToDevice()


def test_a_forward_that_was_replaced_is_called_as_it_takes():
    """What a class's forward() takes is found out once; one of the model's own is looked at each time."""

    class Sum(torch.nn.Module):
        def forward(self, x):
            return x + 1

    model = Sum()
    executor = poptorch.inferenceModel(model)
    assert executor(X).unique().item() == 2
    assert executor(x=X).unique().item() == 2
    with pytest.raises(poptorch.Error, match="Shape mismatch"):
        executor(X[:1])
    with pytest.raises(poptorch.Error, match="Data type mismatch"):
        executor(X.int())
    with pytest.raises(AssertionError, match="Too many arguments provided"):
        executor(X, X)
    Sum.forward = lambda self, x, scale: x * scale
    assert poptorch.inferenceModel(Sum())(X, 3 * X).unique().item() == 3
    own = Sum()
    own.forward = lambda x, a, b: x + a + b
    assert poptorch.inferenceModel(own)(X, X, X).unique().item() == 3


def test_a_call_of_tensors_alone_is_compared_quickly(monkeypatch):
    """What is left out has its default, as it had then. A BoundCall a call would take as long as the rest of it."""

    class Defaults(torch.nn.Module):
        def forward(self, x, y=None, scale=2, *, offset=0):
            return x * scale + offset if y is None else x + y

    executor, other = poptorch.inferenceModel(Defaults()), poptorch.inferenceModel(Defaults())
    executor(X)
    other(X, X)
    bound = []
    made = signature.BoundCall.__init__
    monkeypatch.setattr(signature.BoundCall, "__init__", lambda self, *rest: bound.append(self) or made(self, *rest))
    assert executor(X).unique().item() == 2 and other(X, 2 * X).unique().item() == 3 and not bound
    assert executor(X, None).unique().item() == 2 and executor(x=X).unique().item() == 2 and len(bound) == 2
    with pytest.raises(poptorch.Error, match="Type mismatch"):
        executor(X, X)
    with pytest.raises(poptorch.Error, match="Type mismatch"):
        other(X)
    with pytest.raises(poptorch.Error, match="scale"):
        executor(X, None, 3)


def test_a_constant_that_is_no_default_is_not_left_out():
    executor = poptorch.inferenceModel(Model())
    for _ in range(2):
        assert executor(X, None, None, 3).unique().item() == 3
    with pytest.raises(poptorch.Error, match="scale"):
        executor(X)
