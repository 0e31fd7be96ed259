"""Updates within the backward pass: the same weights to the bit, without what gradients would take."""

from __future__ import annotations

import copy
import gc
import weakref

import pytest
import torch
import torch.nn.functional as F
from programs import Body, make_options, weights
from test_recompute import LiveBytes

import poptorch
from poptorch.device import native
from poptorch.engine.running import early_updates
from poptorch.engine.running.runner import Runner
from poptorch.engine.updating.optimizer import DeviceOptimizer

pytestmark = pytest.mark.skipif(not native.available(), reason="the kernels are not built (run `make`)")
WIDTH, ROWS = 256, 8
LARGE = {"first.weight", "second.weight", "inner"}


def objective(model: Body, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """Three large weights, one of them the other way round; biases and a norm are small."""
    hidden = F.gelu(model.first(x))
    if model.checkpoint:
        hidden = poptorch.recomputationCheckpoint(hidden)
    hidden = model.norm(hidden @ model.inner)
    return F.mse_loss(model.second(hidden).float(), y.float())


def made(half: bool = False, checkpoint: bool = False, function=objective) -> Body:
    torch.manual_seed(0)
    model = Body(
        function,
        first=torch.nn.Linear(WIDTH, WIDTH),
        inner=torch.nn.Parameter(torch.randn(WIDTH, WIDTH) / 16),
        norm=torch.nn.LayerNorm(WIDTH),
        second=torch.nn.Linear(WIDTH, WIDTH),
    )
    model.checkpoint = checkpoint
    return model.half() if half else model


def optimizer_of(model: torch.nn.Module, **more) -> poptorch.optim.AdamW:
    half = next(model.parameters()).dtype == torch.float16
    types = {"accum_type": torch.float16, "first_order_momentum_accum_type": torch.float16} if half else {}
    return poptorch.optim.AdamW(model.parameters(), lr=0.01, weight_decay=0.1, loss_scaling=64.0, **types, **more)


def trained(model: Body, monkeypatch, options=None, early: bool = True, steps: int = 3, **more):
    """Weights, states, and the names that each step of the optimizer was given."""
    given, step = [], DeviceOptimizer.step
    options = make_options() if options is None else options
    with monkeypatch.context() as patch:
        patch.setattr(DeviceOptimizer, "step", lambda self, grads: (given.append(set(grads)), step(self, grads))[1])
        if not early:
            patch.setattr("poptorch.engine.running.runner.early", lambda *_: frozenset())
        optimizer = optimizer_of(model, **more)
        executor = poptorch.trainingModel(model, options, optimizer)
        generator = torch.Generator().manual_seed(1)
        samples = ROWS * options.device_iterations * options.Training.gradient_accumulation * options.replication_factor
        dtype = next(model.parameters()).dtype
        for _ in range(steps):
            inputs = [torch.randn(samples, WIDTH, generator=generator).to(dtype) for _ in range(2)]
            executor(*inputs)
        states = optimizer.state_dict()["ipu_state"]
        executor.copyWeightsToHost()
        executor.destroy()
    return weights(model), states, given


def assert_same(found, expected):
    for ours, theirs in zip(found[:2], expected[:2], strict=True):
        assert ours.keys() == theirs.keys()
        for name, tensor in theirs.items():
            assert torch.equal(ours[name], tensor), name


@pytest.mark.parametrize("checkpoint", [False, True])
@pytest.mark.parametrize("accumulation", [1, 4])
@pytest.mark.parametrize("half", [False, True])
def test_weights_and_states_are_those_of_updates_after_it(half, accumulation, checkpoint, monkeypatch):
    """With an accumulation of 4 its micro-batches run as one."""
    options = [make_options(iterations=2, accumulation=accumulation) for _ in range(2)]
    found = trained(made(half, checkpoint), monkeypatch, options[0])
    expected = trained(made(half, checkpoint), monkeypatch, options[1], early=False)
    assert_same(found, expected)
    assert [each for each in found[2] if len(each) == 1] == 6 * [{"second.weight"}, {"inner"}, {"first.weight"}]
    assert {frozenset(each) for each in expected[2]} == {frozenset(dict(made().named_parameters()))}


def test_a_mean_of_half_gradients_is_divided_before_it_is_handed_on(monkeypatch):
    monkeypatch.setenv("POPTORCH_PORTABLE_HALF", "native")
    types = dict.fromkeys(("accum_type", "first_order_momentum_accum_type"), torch.float32)
    adam = lambda model: poptorch.optim.AdamW(model.parameters(), lr=0.01, **types)  # noqa: E731
    monkeypatch.setattr(f"{__name__}.optimizer_of", adam)
    found = [trained(made(half=True), monkeypatch, make_options(accumulation=4), early) for early in (True, False)]
    assert_same(*found)


def test_an_update_after_the_backward_pass_has_what_is_left(monkeypatch):
    names = trained(made(), monkeypatch, steps=1)[2]
    assert set.union(*names) == set(dict(made().named_parameters())) and sum(map(len, names)) == len(set.union(*names))
    assert names[-1] == {"first.bias", "second.bias", "norm.weight", "norm.bias"}


def test_several_backward_passes_before_an_update_wait_for_the_last(monkeypatch):
    monkeypatch.setenv("POPTORCH_PORTABLE_MICRO_BATCHES_AS_ONE", "2")
    found = trained(made(), monkeypatch, make_options(accumulation=4))
    assert all(each > LARGE for each in found[2])


@pytest.mark.parametrize("half", [False, True])
@pytest.mark.parametrize("frozen", [("first",), ("inner",), ("first", "second")])
def test_weights_that_are_not_trained_stay_as_they_are(frozen, half, monkeypatch):
    """A large one ended the first call in a traceback."""

    def partly() -> Body:
        model = made(half)
        for name in frozen:
            getattr(model, name).requires_grad_(False)
        return model

    found, expected = (trained(partly(), monkeypatch, early=early) for early in (True, False))
    assert_same(found, expected)
    for name, before in weights(partly()).items():
        assert torch.equal(found[0][name], before) == name.startswith(frozen), name


@pytest.mark.parametrize("case", ["clipping", "scaling", "anchor", "exceptions", "report"])
def test_whatever_needs_all_gradients_gets_them(case, monkeypatch, tmp_path):
    options, more = make_options(), {}
    if case == "clipping":
        more["max_grad_norm"] = 1.0
    elif case == "scaling":
        options.Training.setAutomaticLossScaling(True)
    elif case == "anchor":
        options.anchorTensor("gradient", "Gradient___first.weight")
    elif case == "exceptions":
        options.Precision.enableFloatingPointExceptions(True)
    else:
        monkeypatch.setenv("POPLAR_ENGINE_OPTIONS", f'{{"autoReport.all":"true", "autoReport.directory":"{tmp_path}"}}')
    found = trained(made(half=case == "scaling"), monkeypatch, options, **more)
    assert all(each > LARGE for each in found[2])


@pytest.mark.parametrize("half", [False, True])
def test_one_at_a_time_after_all(half, monkeypatch):
    """Micro-batches that turn out not to run as one are accumulated."""

    def fails(*_):
        raise RuntimeError("no room")

    monkeypatch.setattr(Runner, "_several", fails)
    found = trained(made(half), monkeypatch, make_options(accumulation=2))
    monkeypatch.setenv("POPTORCH_PORTABLE_MICRO_BATCHES_AS_ONE", "1")
    expected = trained(made(half), monkeypatch, make_options(accumulation=2), early=False)
    assert_same(found, expected)
    assert all(each > LARGE for each in found[2])


def read_twice(model, x, y):
    return F.mse_loss(model.second(model.second(x)), y)


def read_without_a_gradient(model, x, y):
    return F.mse_loss(F.linear(x * F.linear(x, model.second.weight.detach()), model.second.weight), y)


def read_by_a_sum(model, x, y):
    return F.mse_loss(model.second(x), y) + model.second.weight.square().sum()


def multiplied_with_itself(model, x, y):
    return F.mse_loss(x @ (model.second.weight.t() @ model.second.weight), y)


@pytest.mark.parametrize("function", [read_twice, read_without_a_gradient, read_by_a_sum, multiplied_with_itself])
def test_a_weight_with_another_reader_waits(function, monkeypatch):
    found, chosen = [], []
    for early in (True, False):
        with monkeypatch.context() as patch:
            decide = lambda *a: (chosen.append(early_updates.early(*a)), chosen[-1])[1]  # noqa: E731
            patch.setattr("poptorch.engine.running.runner.early", decide)
            found.append(trained(made(function=function), monkeypatch, early=early))
    assert_same(*found)
    assert chosen == [frozenset()]


def test_gradients_are_never_held_together(monkeypatch):
    """A small batch: what a step holds above weights and states is then mostly gradients."""

    def peak(early):
        model = made(half=True)
        deep = Body(lambda m, x, y: F.mse_loss(m.layers(x).float(), y.float()), layers=torch.nn.Sequential())
        deep.layers.extend(copy.deepcopy(model.second) for _ in range(12))
        with monkeypatch.context() as patch:
            if not early:
                patch.setattr("poptorch.engine.running.runner.early", lambda *_: frozenset())
            executor = poptorch.trainingModel(deep, None, optimizer_of(deep))
            inputs = [torch.randn(ROWS, WIDTH).half() for _ in range(2)]
            executor.compile(*inputs)
            with LiveBytes() as seen:
                executor(*inputs)
        return seen.peak

    gradients = 12 * 2 * WIDTH**2
    assert peak(True) < peak(False) - 0.8 * gradients


@pytest.fixture
def runners(monkeypatch):
    """Weak references to those that run a call."""
    found, run = [], Runner.run
    monkeypatch.setattr(Runner, "run", lambda self, leaves: (found.append(weakref.ref(self)), run(self, leaves))[1])
    return found


def called(half: bool) -> poptorch.PoplarExecutor:
    """An executor that has trained."""
    model = made(half)
    executor = poptorch.trainingModel(model, None, optimizer_of(model))
    executor(*(torch.randn(ROWS, WIDTH).to(model.inner.dtype) for _ in range(2)))
    return executor


@pytest.mark.parametrize("leave", ["destroy", "detachFromDevice"])
@pytest.mark.parametrize("half", [False, True])
def test_what_was_on_the_device_is_freed_when_it_is_left(half, leave, runners):
    """Not when Python looks for cycles: a training run keeps it from that."""
    executor = called(half)
    gc.collect()
    gc.disable()
    try:
        getattr(executor, leave)()
        assert runners[0]() is None
    finally:
        gc.enable()


@pytest.mark.parametrize("half", [False, True])
def test_what_was_on_the_device_goes_with_the_executor(half, runners):
    called(half)
    gc.collect()
    assert runners[0]() is None


def test_readers_count_an_operand_as_often_as_it_is_read():
    graph = torch.fx.Graph()
    weight = graph.placeholder("weight")
    turned = graph.call_function(torch.ops.aten.t.default, (weight,))
    graph.call_function(torch.ops.aten.mm.default, (turned, weight))
    graph.call_function(torch.ops.aten.cat.default, ([turned, turned],))
    assert len(list(early_updates._readers(weight))) == 4
