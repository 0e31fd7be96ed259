"""Accumulators in the place of gradients, or of the logits these are made of: the same updates to the bit."""

from __future__ import annotations

import copy
import gc
import weakref

import pytest
import torch
import torch.nn.functional as F
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from programs import make_options, weights
from test_tied_embedding import LENGTH, VOCABULARY, WIDTH, Tied, batch

import poptorch
from poptorch.device import kept_logits
from poptorch.device.linear_cross_entropy import linear_cross_entropy
from poptorch.device.native import wide_products
from poptorch.device.tied_embedding import shared_gradient, tied_embedding
from poptorch.engine.as_one.number import VARIABLE
from poptorch.engine.running.gradients import GradientAccumulator
from poptorch.engine.running.runner import Runner
from poptorch.engine.updating.optimizer import DeviceOptimizer

pytestmark = pytest.mark.skipif(
    not wide_products.available(), reason="this processor has no units for products of bfloat16"
)


def head_and_lookup(weight, hidden, ids, target, groups=None, steps=1):
    """The fused loss of a head, in bfloat16, and a lookup in its weight that follows it in the backward pass."""
    settings = {"products": torch.bfloat16, "native": True, "shared": ids is not None, "groups": groups, "steps": steps}
    losses, _ = linear_cross_entropy(hidden, weight, None, target, "mean", -100, True, **settings)
    return losses.sum() + (0.0 if ids is None else tied_embedding(weight, ids).sum())


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    width=st.integers(4, 40),
    share=st.floats(0.01, 1.5),
    vocabulary=st.integers(2, 700),
    part_rows=st.sampled_from([64, 192, 1024]),
    groups=st.sampled_from([None, 1, 3]),
    steps=st.integers(1, 4),
    ignored=st.booleans(),
    tied=st.booleans(),
    running=st.booleans(),
    accumulated_in=st.sampled_from([torch.float16, torch.bfloat16, torch.float64]),
    seed=st.integers(0, 1000),
)
def test_an_accumulator_in_another_place_has_the_same_bits(
    monkeypatch, width, share, vocabulary, part_rows, groups, steps, ignored, tied, running, accumulated_in, seed
):
    """As one of its own, whether a row of it is larger than a column of the logits or not, several times in turn; in
    the place of a gradient that comes whole, too. The hidden states' gradient is the same; both are float64's within
    bfloat16's digits."""
    monkeypatch.setattr(kept_logits, "_PART_ROWS", part_rows)
    monkeypatch.setattr("poptorch.engine.running.gradients.chunk_elements", lambda _: 100 * width)
    rows = max(1, int(2 * width * share)) // (groups or 1) * (groups or 1) or groups
    found, fits = [], rows <= 2 * width or accumulated_in.itemsize <= 4
    for lodged in (frozenset({"weight"}), frozenset()):
        made = bool(lodged)
        torch.manual_seed(seed)
        weight = torch.randn(vocabulary, width, requires_grad=True)
        kinds = {"mean": running, "running": running}
        accumulator = GradientAccumulator({"weight": weight}, {"weight": accumulated_in}, 2, **kinds)
        gradients = []
        for _ in range(3):
            accumulator.allocate(frozenset(), lambda *_: None, lodged)
            assert ("weight" in accumulator._accumulators) is not made
            accumulator.begin_micro_batch(0, 2)
            hidden = torch.randn(rows, width, requires_grad=True)
            ids, target = (torch.randint(vocabulary, (rows,)) for _ in range(2))
            if ignored:
                target[::2] = -100
            head_and_lookup(weight, hidden, ids if tied else None, target, groups, steps).backward()
            gradients.append((accumulator.gradients()["weight"].clone(), hidden.grad))
            made = bool(lodged) and fits
            assert list(accumulator._rooms) == list(lodged if fits else ())
            assert not made or shared_gradient(weight)._memory is None  # nobody may write there yet
            accumulator.clear()
        found.append(gradients)
    assert all(torch.equal(*pair) for both in zip(*found, strict=True) for pair in zip(*both, strict=True))
    exact = [tensor.detach().double().requires_grad_() for tensor in (weight, hidden)]
    logits = F.linear(exact[1], exact[0]).unflatten(0, (groups or 1, -1))
    loss = sum(map(F.cross_entropy, logits, target.view(groups or 1, -1)))
    (loss + (F.embedding(ids, exact[0]).sum() if tied else 0.0)).backward()
    for gradient, reference in zip(gradients[-1], exact, strict=True):
        reference = reference.grad.nan_to_num() / (2 if running and reference is exact[0] else 1)  # 0 of no target
        assert (gradient.double() - reference).norm() <= 2**-5 * reference.norm()


@pytest.mark.parametrize("accumulated_in, lodged", [(torch.float16, [1] * 5), (torch.float64, [1, 0, 1, 1, 1])])
def test_an_accumulator_moves_with_the_number_of_rows(accumulated_in, lodged):
    """Into the logits' place, and where gradients come whole into theirs, if they are as large; several losses share
    one."""
    torch.manual_seed(0)
    weight, made = torch.randn(VOCABULARY, WIDTH, requires_grad=True), []
    accumulator = GradientAccumulator({"weight": weight}, {"weight": accumulated_in}, 1, False, False)
    for rows in ([LENGTH], [4 * WIDTH], [LENGTH, LENGTH], [2 * WIDTH, 4 * WIDTH], [LENGTH]):
        accumulator.allocate(frozenset(), lambda *_: None, frozenset({"weight"}))
        loss, exact = 0.0, weight.detach().double().requires_grad_()
        for number in rows:
            hidden, target = torch.randn(number, WIDTH), torch.randint(VOCABULARY, (number,))
            loss = loss + head_and_lookup(weight, hidden, None, target)
            F.cross_entropy(F.linear(hidden.double(), exact), target).backward()
        loss.backward()
        gradient = accumulator.gradients()["weight"]
        assert (gradient - exact.grad).norm() < 2**-7 * exact.grad.norm()
        made.append(len(accumulator._rooms))
        accumulator.clear()
        assert ("weight" in accumulator._accumulators) is not bool(made[-1])
    assert made == lodged


def test_kept_logits_are_asked_once_where_an_accumulator_takes_their_place():
    weight, hidden = torch.randn(VOCABULARY, WIDTH, requires_grad=True), torch.randn(LENGTH, WIDTH)
    accumulator = GradientAccumulator({"weight": weight}, {"weight": torch.float16}, 1, False, False)
    accumulator.allocate(frozenset(), lambda *_: None, frozenset({"weight"}))
    loss = head_and_lookup(weight, hidden, None, torch.arange(LENGTH))
    loss.backward(retain_graph=True)
    before = accumulator.gradients()["weight"].clone()
    with pytest.raises(RuntimeError, match="can be asked for once"):
        loss.backward()
    assert torch.equal(accumulator.gradients()["weight"], before)


def half_training(monkeypatch, lodged: bool, options=None, model=None, steps: int = 3, **more):
    """Weights and states after steps of Adam in half, and whether each step's head had an accumulator of its own.

    Several are possible with one model; what comes last is the executor.
    """
    own, step = [], DeviceOptimizer.step

    def watched(self, gradients):
        if "embedding.weight" in gradients:
            gradient = gradients["embedding.weight"]
            own.append(gradient.untyped_storage().nbytes() == gradient.nbytes)
        step(self, gradients)

    model, options = Tied().half() if model is None else model, options or make_options(iterations=2)
    monkeypatch.setenv("POPTORCH_PORTABLE_HALF", "bfloat16")
    with monkeypatch.context() as patch:
        patch.setattr(kept_logits, "_PART_ROWS", 128)
        patch.setattr(DeviceOptimizer, "step", watched)
        if not lodged:
            patch.setattr("poptorch.engine.running.runner.heads", lambda *_: frozenset())
        optimizer = poptorch.optim.AdamW(model.parameters(), lr=0.01, loss_scaling=64.0, **more)
        executor = poptorch.trainingModel(model, options, optimizer)
        for _ in range(steps):
            executor(*batch(options.device_iterations * options.Training.gradient_accumulation))
        executor.copyWeightsToHost()
    return weights(model), optimizer.state_dict()["ipu_state"], own, executor


def assert_same(found, expected):
    for ours, theirs in zip(found[:2], expected[:2], strict=True):
        assert ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in theirs)


@pytest.mark.parametrize("accumulation, as_one", [(1, "1"), (3, "3"), (4, "4"), (4, "2"), (2, "1")])
def test_one_backward_pass_an_update_needs_no_accumulator(monkeypatch, accumulation, as_one):
    """Of the tied weight, and the updates are the same to the bit; several have one of its own."""
    monkeypatch.setenv(VARIABLE, as_one)
    options = [make_options(iterations=2, accumulation=accumulation) for _ in range(2)]
    found, expected = (half_training(monkeypatch, not i, options[i]) for i in range(2))
    assert_same(found, expected)
    assert found[2] == 6 * [accumulation != int(as_one)] and expected[2] == 6 * [True]


@pytest.mark.parametrize("case", ["clipping", "scaling", "exceptions", "report", "sgd"])
def test_whoever_looks_at_gradients_finds_them_in_the_logits_place(case, monkeypatch, tmp_path):
    found = []
    for lodged in (True, False):
        options, more = make_options(), {"max_grad_norm": 1.0} if case == "clipping" else {}
        options.Training.setAutomaticLossScaling(case == "scaling")
        options.Precision.enableFloatingPointExceptions(case == "exceptions")
        if case == "report":
            settings = f'{{"autoReport.all":"true", "autoReport.directory":"{tmp_path}"}}'
            monkeypatch.setenv("POPLAR_ENGINE_OPTIONS", settings)
        found.append(half_training(monkeypatch, lodged, options, **more))
    assert_same(*found)
    assert found[0][2] == 3 * [False] and found[1][2] == 3 * [True]


def test_executors_of_several_accumulations_in_turn(monkeypatch):
    found = []
    for lodged in (True, False):
        model, own = Tied().half(), []
        monkeypatch.setenv(VARIABLE, "1")
        for accumulation in (1, 2, 1):
            values, _, each, executor = half_training(
                monkeypatch, lodged, make_options(accumulation=accumulation), model, 2
            )
            own += each
            executor.destroy()
        found.append((values, {}, own))
    assert_same(*found)
    assert found[0][2] == [False, False, True, True, False, False]


def test_micro_batches_that_turn_out_to_run_one_at_a_time_are_accumulated(monkeypatch):
    def fails(*_):
        raise RuntimeError("no room")

    monkeypatch.setenv(VARIABLE, "4")
    monkeypatch.setattr(Runner, "_several", fails)
    found, expected = (half_training(monkeypatch, lodged, make_options(accumulation=4)) for lodged in (True, False))
    assert_same(found, expected)
    assert found[2] == expected[2] == 3 * [True]


def test_training_goes_on_from_a_saved_optimizer(monkeypatch):
    """In another executor; the accumulator has nothing of an update that is over."""
    monkeypatch.setenv("POPTORCH_PORTABLE_HALF", "bfloat16")
    inputs, found = batch(2), []
    for interrupted in (False, True):
        model = Tied().half()
        optimizer = poptorch.optim.AdamW(model.parameters(), lr=0.01, loss_scaling=64.0)
        executor = poptorch.trainingModel(model, None, optimizer)
        for number in range(4):
            if interrupted and number == 2:
                saved = [copy.deepcopy(each.state_dict()) for each in (model, optimizer)]
                executor.destroy()
                model = Tied().half()
                optimizer = poptorch.optim.AdamW(model.parameters(), lr=0.01, loss_scaling=64.0)
                for each, state in zip((model, optimizer), saved, strict=True):
                    each.load_state_dict(state)
                executor = poptorch.trainingModel(model, None, optimizer)
            executor(*inputs)
        executor.copyWeightsToHost()
        found.append((weights(model), optimizer.state_dict()["ipu_state"]))
    assert_same(*found)


@pytest.mark.parametrize("leave", ["destroy", "detachFromDevice"])
def test_leaving_the_device_gives_the_place_back(monkeypatch, leave):
    """At once, not when Python looks for cycles."""
    executor = half_training(monkeypatch, True)[-1]
    weight = executor._session._state.parameters["embedding.weight"]
    shared = shared_gradient(weight)
    room = weakref.ref(shared._memory)
    assert room().nbytes > weight.nbytes // 2 and shared.accumulator_size == weight.nbytes // 2
    gc.collect()
    gc.disable()
    try:
        getattr(executor, leave)()
        assert room() is None and shared.accumulator_size == 0 and shared.accumulate is None
    finally:
        gc.enable()


def test_a_call_that_fails_leaves_nothing_to_the_next_one(monkeypatch):
    """Between the backward pass and the update: the next call's is as if there had been none."""
    found, step = [], DeviceOptimizer.step
    for fails in (False, True):
        with monkeypatch.context() as patch:
            model = Tied().half()
            executor = half_training(monkeypatch, True, model=model, options=make_options(), steps=1)[-1]
            if fails:

                def failing(*_):
                    raise RuntimeError("no update")

                patch.setattr(DeviceOptimizer, "step", failing)
                with pytest.raises(Exception, match="no update"):
                    executor(*batch(1))
                patch.setattr(DeviceOptimizer, "step", step)
            executor(*batch(1))
            executor.copyWeightsToHost()
            found.append((weights(model), {}))
    assert_same(*found)
