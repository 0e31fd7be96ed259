"""Later calls are held to the one that was compiled (spec section 1)."""

from __future__ import annotations

import collections
import enum
import functools

import numpy as np
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


class Applied(torch.nn.Module):
    """forward(x, how) is function(x, how)."""

    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, x, how):
        return self.function(x, how)


@pytest.mark.parametrize(
    "first, again, other",
    [
        (np.float32(3), np.float32(3), np.float32(4)),
        (np.bool_(True), np.bool_(True), np.bool_(False)),
        (np.array([3.0, np.nan]), np.array([3.0, np.nan]), np.array([4.0, np.nan])),
        (np.array([3.0]), np.array([3.0]), np.array([3.0, 3.0])),
        (float("nan"), float("nan"), 1.0),
    ],
)
def test_constants_of_numpy_and_nan_are_compared_by_value(first, again, other):
    """Another scalar or array was taken for the first one, and NaN for another number."""
    executor = poptorch.inferenceModel(Applied(lambda x, how: x + float(np.ravel(how)[0])))
    expected = X + float(np.ravel(first)[0])
    for how in (first, again):
        torch.testing.assert_close(executor(X, how), expected, equal_nan=True)
    with pytest.raises(poptorch.Error, match="Value mismatch: expected .* for how"):
        executor(X, other)


@pytest.mark.parametrize(
    "constant, change",
    [
        (np.ones(3), lambda constant: constant.fill(2)),
        ({1, 2}, lambda constant: constant.add(3)),
        (bytearray(b"ab"), lambda constant: constant.extend(b"c")),
        ([1, {"a": 2}], lambda constant: constant[1].update(a=3)),
    ],
)
def test_a_constant_that_is_changed_in_place_is_another(constant, change):
    """It was compared with itself."""
    executor = poptorch.inferenceModel(Applied(lambda x, how: x))
    for _ in range(2):
        executor(X, constant)
    change(constant)
    with pytest.raises(poptorch.Error, match="Value mismatch: expected .* for how"):
        executor(X, constant)


class Mode(enum.Enum):
    MEAN = 1
    SUM = 2


@pytest.mark.parametrize(
    "first, other",
    [
        (Mode.MEAN, Mode.SUM),
        (torch.float16, torch.float32),
        (torch.nn.ReLU, torch.nn.GELU),
        (lambda x: x, lambda x: -x),
    ],
)
def test_members_types_and_functions_are_what_they_are(first, other):
    """Another one was taken for the first."""
    executor = poptorch.inferenceModel(Applied(lambda x, how: x))
    for _ in range(2):
        executor(X, first)
    with pytest.raises(poptorch.Error, match="Value mismatch: expected .* for how"):
        executor(X, other)


def test_a_function_defined_in_each_call_is_the_same_one():
    executor = poptorch.inferenceModel(Applied(lambda x, how: how(x)))
    for _ in range(2):
        assert executor(X, lambda x: x + 1).unique().item() == 2


class Holder:
    def __init__(self, tensor):
        self.tensor = tensor


@pytest.mark.parametrize(
    "wrapped, inside",
    [
        (Holder, lambda how: how.tensor),
        (lambda x: collections.deque([x]), lambda how: how[0]),
        (lambda x: collections.UserDict(a=x), lambda how: how["a"]),
    ],
)
def test_other_tensors_in_an_object_are_refused(wrapped, inside):
    """They were those of the first call, or their comparison ended in torch's error."""
    executor = poptorch.inferenceModel(Applied(lambda x, how: x + inside(how).sum().item()))
    for _ in range(2):
        assert executor(X, wrapped(X)).unique().item() == 7
    with pytest.raises(poptorch.Error, match="(?s)other tensors than .*ICustomArgParser.*" + HINT):
        executor(X, wrapped(2 * X))
    with pytest.raises(poptorch.Error, match="other tensors than"):
        executor(X, wrapped(X.int()))


class Pair(tuple):
    def __new__(cls, left, right):
        return super().__new__(cls, (left, right))


class Listed(list):
    def __init__(self, left, right):
        super().__init__((left, right))


class Slotted(tuple):
    __slots__ = ()

    def __new__(cls, left, right):
        return super().__new__(cls, (left, right))


class Ordered(collections.OrderedDict):
    def __init__(self, name, **items):
        self.name = name
        super().__init__(**items)


class Attributes(dict):
    __getattr__ = dict.__getitem__


class OwnAttributes(dict):
    def __init__(self, **items):
        super().__init__(**items)
        self.__dict__ = self


@pytest.mark.parametrize(
    "made, function",
    [
        (lambda x: Pair(x, 2), lambda pair: pair[0] * pair[1]),
        (lambda x: Slotted(x, 2), lambda pair: pair[0] * pair[1]),
        (lambda x: Listed(x, 2), lambda pair: pair[0] * pair[1]),
        (lambda x: Ordered("named", a=x, b=2), lambda found: found["a"] * found["b"] * (found.name == "named")),
        (lambda x: Attributes(a=x, b=2), lambda found: found.a * found.b),
        (lambda x: OwnAttributes(a=x, b=2), lambda found: found.a * found.b),
    ],
)
def test_classes_of_ones_own_for_lists_tuples_and_dicts(made, function):
    """They are what they were in forward() and in outputs, whatever their constructors take."""

    class Given(torch.nn.Module):
        def forward(self, given):
            assert type(given) is type(made(X))
            return function(given), made(function(given))

    executor = poptorch.inferenceModel(Given())
    for number in (1, 2):
        product, returned = executor(made(number * X))
        assert product.unique().item() == 2 * number
        assert type(returned) is type(made(X)) and function(returned).unique().item() == 4 * number
    if type(made(X)) in (Attributes, OwnAttributes):
        swapped = type(made(X))(b=2, a=X)
        assert executor(swapped)[0].unique().item() == 2


def test_what_comes_by_name_does_so_in_hooks_and_call():
    """Arguments came by position, defaults among them."""

    class Doubled(Model):
        def __call__(self, x):
            return 2 * super().__call__(x)

    executor = poptorch.inferenceModel(Doubled())
    assert [executor(X).unique().item() for _ in range(2)] == [4, 4]

    model, seen = Model(), []

    def hook(module, args, kwargs):
        seen.append((len(args), sorted(kwargs)))
        return args, {**kwargs, "x": kwargs["x"] + 1}

    model.register_forward_pre_hook(hook, with_kwargs=True)
    executor = poptorch.inferenceModel(model)
    assert [executor(scale=3, x=X).unique().item() for _ in range(2)] == [6, 6]
    assert seen == [(0, ["scale", "x"])]


def test_a_default_that_is_a_tensor_is_an_input():
    class Default(torch.nn.Module):
        def forward(self, x, y=X, *, z=X):
            return x + y + z

    executor = poptorch.inferenceModel(Default())
    assert [executor(X).unique().item(), executor(X, 2 * X).unique().item()] == [3, 4]


def test_forward_of_a_class_or_of_none():
    class Static(torch.nn.Module):
        @staticmethod
        def forward(x, scale=2):
            return x * scale

    class OfClass(torch.nn.Module):
        factor = 3

        @classmethod
        def forward(cls, x, scale=2):
            return x * scale * cls.factor

    class Partial(torch.nn.Module):
        def scaled(self, scale, x):
            return x * scale

        forward = functools.partialmethod(scaled, 5)

    for kind, expected in ((Static, 2), (OfClass, 6), (Partial, 5)):
        executor = poptorch.inferenceModel(kind())
        assert executor(X).unique().item() == executor(x=X).unique().item() == expected


@pytest.mark.parametrize("tensor", [X.to_sparse(), X.to("meta")])
def test_tensors_without_dense_values_are_refused(tensor):
    with pytest.raises(poptorch.Error, match="Unsupported input: a .* tensor"):
        poptorch.inferenceModel(Model())(tensor)


def test_an_input_of_inference_mode_is_written_to():
    class Counts(torch.nn.Module):
        def forward(self, x):
            return x.add_(1)

    executor = poptorch.inferenceModel(Counts())
    with torch.inference_mode():
        x = torch.zeros(2, 3)
        for count in (1, 2):
            assert executor(x).unique().item() == count
        assert x.unique().item() == 2
