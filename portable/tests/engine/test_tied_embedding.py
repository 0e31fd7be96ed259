"""A lookup in a weight that the fused loss multiplies, too: both gradients together are those of float64."""

from __future__ import annotations

import weakref
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from programs import Body, make_options

import poptorch
from poptorch.device import kept_logits
from poptorch.device.linear_cross_entropy import linear_cross_entropy
from poptorch.device.native import wide_products
from poptorch.device.tied_embedding import shared_gradient, tied_embedding
from poptorch.engine.as_one.number import VARIABLE
from poptorch.engine.running.gradients import GradientAccumulator

VOCABULARY, WIDTH, LENGTH = 1040, 12, 7  # smaller ones have no fused loss
EMBEDDING = torch.ops.aten.embedding.default


class Tied(torch.nn.Module):
    """Ids (B, T) and targets (B, T) -> loss."""

    def __init__(self, padding: int | None = None, tied: bool = True, checkpoint: bool = False):
        super().__init__()
        torch.manual_seed(0)
        self.embedding = torch.nn.Embedding(VOCABULARY, WIDTH, padding_idx=padding)
        self.layer = torch.nn.Linear(WIDTH, WIDTH)
        self.head = torch.nn.Linear(WIDTH, VOCABULARY, bias=False)
        if tied:
            self.head.weight = self.embedding.weight
        self.checkpoint = checkpoint

    def forward(self, ids, targets):
        x = torch.tanh(self.layer(self.embedding(ids)))
        if self.checkpoint:
            x = poptorch.recomputationCheckpoint(x)
        return F.cross_entropy(self.head(x).flatten(0, 1), targets.flatten())


def batch(samples: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    ids, targets = (torch.randint(VOCABULARY, (samples, LENGTH), generator=generator) for _ in range(2))
    ids[:, 2] = ids[:, 1]  # a row that is asked for twice
    ids[0, 0] = 3
    return ids, targets


def lookups(executor) -> list[object]:
    nodes = (node for stage in executor.program.stages for s in stage.segments for node in s.module.graph.nodes)
    return [node.target for node in nodes if node.target in (tied_embedding, EMBEDDING)]


def after_a_step(model, accumulation: int = 1, **settings):
    """The weights after a step of SGD at rate 1, by name, and the kind of the lookup."""
    optimizer = poptorch.optim.SGD(model.parameters(), lr=1.0, **settings)
    executor = poptorch.trainingModel(model, make_options(accumulation=accumulation), optimizer)
    executor(*batch(2 * accumulation))
    executor.copyWeightsToHost()
    return {name: tensor.detach().clone() for name, tensor in model.named_parameters()}, lookups(executor)


def expected(model, samples: int):
    wide = model.double()
    wide.checkpoint = False
    wide(*batch(samples)).backward()
    return {name: (tensor - tensor.grad).detach() for name, tensor in wide.named_parameters()}


@pytest.mark.parametrize("padding", [None, 3, 0])
def test_a_step_is_that_of_float64(padding):
    found, kinds = after_a_step(Tied(padding))
    assert kinds == [tied_embedding]
    for name, tensor in expected(Tied(padding), 2).items():
        torch.testing.assert_close(found[name].double(), tensor, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("as_one", ["1", "4"])
@pytest.mark.parametrize("settings", [{}, {"accum_type": torch.float16}])
def test_accumulated_gradients(monkeypatch, as_one, settings):
    monkeypatch.setenv(VARIABLE, as_one)
    found, kinds = after_a_step(Tied(), accumulation=4, **settings)
    assert kinds == [tied_embedding]
    tolerance = 1e-3 if settings else 1e-5
    for name, tensor in expected(Tied(), 8).items():
        torch.testing.assert_close(found[name].double(), tensor, rtol=tolerance, atol=tolerance)


def test_behind_a_checkpoint_that_is_recomputed():
    found, kinds = after_a_step(Tied(checkpoint=True))
    assert kinds == [tied_embedding]
    for name, tensor in expected(Tied(), 2).items():
        torch.testing.assert_close(found[name].double(), tensor, rtol=1e-5, atol=1e-6)


def test_an_embedding_of_its_own_stays_as_it_is():
    found, kinds = after_a_step(Tied(tied=False))
    assert kinds == [EMBEDDING]
    for name, tensor in expected(Tied(tied=False), 2).items():
        torch.testing.assert_close(found[name].double(), tensor, rtol=1e-5, atol=1e-6)


def test_another_reader_of_the_weight_keeps_the_lookup_as_it_is():
    class Three(Tied):
        def forward(self, ids, targets):
            return poptorch.identity_loss(super().forward(ids, targets) + self.head.weight.square().mean(), "sum")

    found, kinds = after_a_step(Three())
    assert kinds == [EMBEDDING]
    for name, tensor in expected(Three(), 2).items():
        torch.testing.assert_close(found[name].double(), tensor, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("offered", ["before", "in this pass", "never"])
def test_gradients_of_a_lookup(offered):
    """The function alone: into what was offered in the same backward pass, and a dense one of its own otherwise."""
    weight, ids = torch.randn(5, 3, requires_grad=True), torch.tensor([[4, 1], [1, 0]])
    out, other = tied_embedding(weight, ids, 0), torch.full((5, 3), 2.0)
    assert torch.equal(out, F.embedding(ids, weight))
    if offered == "in this pass":
        out.register_hook(lambda gradient: shared_gradient(weight).offer(other))
    elif offered == "before":
        shared_gradient(weight).offer(other)
    out.sum().backward()
    rows = torch.tensor([0.0, 2.0, 0.0, 0.0, 1.0]).unsqueeze(-1).expand(5, 3)
    if offered == "in this pass":
        assert weight.grad is None and torch.equal(other, rows + 2.0)
    else:
        assert torch.equal(weight.grad, rows) and torch.equal(other, torch.full((5, 3), 2.0))
    assert shared_gradient(weight).take() is None


@pytest.mark.parametrize("running", [False, True])
@pytest.mark.parametrize("padding", [-1, 3])
def test_rows_that_are_accumulated_by_themselves(padding, running):
    """As in a pipeline over processes, where the lookup's backward pass is another one than the head's: bit for bit
    what dense gradients give, in halves too."""
    found = []
    for takes_rows in (True, False):
        torch.manual_seed(0)
        weight = torch.randn(VOCABULARY, WIDTH, requires_grad=True)
        settings = {"mean": running, "running": running, "passes": {"weight": 2}}
        accumulator = GradientAccumulator({"weight": weight}, {"weight": torch.float16}, 2, **settings)
        shared_gradient(weight).takes_rows = takes_rows
        kinds = []
        weight.register_hook(lambda gradient, kinds=kinds: kinds.append(gradient.is_sparse))
        for micro_batch in range(2):
            ids, targets = batch(4)
            accumulator.begin_micro_batch(micro_batch)
            hidden = torch.randn(4 * LENGTH, WIDTH)
            lookup = tied_embedding(weight, ids, padding).mul(torch.randn(WIDTH)).sum()
            head, _ = linear_cross_entropy(hidden, weight, None, targets.flatten(), "sum", -100, True, shared=True)
            for loss in (head, lookup) if micro_batch else (lookup, head):
                loss.backward()
        assert kinds == [takes_rows, False, False, takes_rows]
        found.append(accumulator.gradients()["weight"])
    assert found[0].is_sparse is False and torch.equal(*found)


def test_the_heads_gradient_goes_where_the_last_one_was(monkeypatch):
    """It is accumulated without a copy, and its memory serves the next one."""
    weight, ids = torch.randn(VOCABULARY, WIDTH, requires_grad=True), torch.arange(LENGTH)
    accumulator = GradientAccumulator({"weight": weight}, {"weight": torch.float16}, 3, False, False)
    formed, accumulated = [], []
    weight.register_hook(lambda gradient: formed.append(gradient.data_ptr()))
    share = accumulator._share

    def watched(*arguments):
        how = share(*arguments)
        return SimpleNamespace(add=lambda part, fresh: (accumulated.append(fresh.data_ptr()), how.add(part, fresh)))

    monkeypatch.setattr(accumulator, "_share", watched)
    for _ in range(3):
        other = torch.empty_like(weight)  # as large, and somebody else's
        hidden = torch.randn(LENGTH, WIDTH)
        linear_cross_entropy(hidden, weight, None, ids, "sum", -100, True, shared=True)[0].backward()
        del other
    assert formed == accumulated == formed[:1] * 3


def test_the_next_update_begins_with_nothing():
    weight = torch.ones(2, 3, requires_grad=True)
    accumulator = GradientAccumulator({"weight": weight}, {"weight": torch.float64}, 1, False, False)
    for factor in (2.0, 3.0):
        (weight.sum() * factor).backward()
        assert torch.equal(accumulator.gradients()["weight"], torch.full((2, 3), factor, dtype=torch.float64))
        accumulator.clear()


def test_room_is_kept_for_what_asks_for_it():
    """A weight's gradient that another operation forms is not held in the place of the head's room, nor beside it."""
    weight = torch.randn(VOCABULARY, WIDTH)
    shared, gradient = shared_gradient(weight), torch.empty_like(weight)
    shared.give_back(gradient)  # nobody has asked
    room = shared.memory(torch.Size([64]), torch.uint8)
    shared.give_back(room)
    shared.give_back(gradient)
    there = weakref.ref(gradient)
    del gradient
    assert there() is None and shared.memory(room.shape, room.dtype) is room


def test_who_offers_a_gradient_does_not_hold_it():
    weight, gradient = torch.randn(5, 3), torch.zeros(5, 3)
    shared_gradient(weight).offer(gradient)
    there = weakref.ref(gradient)
    del gradient
    assert there() is None


@pytest.mark.skipif(not wide_products.available(), reason="this processor has no units for products of bfloat16")
@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("running", [False, True])
@pytest.mark.parametrize("accumulated_in", [torch.float16, torch.float64])
def test_a_heads_gradient_of_few_rows_is_accumulated_in_parts(accumulated_in, running, tied, monkeypatch):
    """It is never there as a whole. The sum is that of gradients that come whole, and within bfloat16 of float64's."""
    monkeypatch.setattr(kept_logits, "_PART_ROWS", 300)
    width, rows, scaling, found = 16, 24, 256.0, []
    for whole in (False, True):
        torch.manual_seed(0)
        weight = torch.randn(VOCABULARY, width, requires_grad=True)
        settings = {"mean": running, "running": running}
        accumulator = GradientAccumulator({"weight": weight}, {"weight": accumulated_in}, 2, **settings)
        if whole:
            shared_gradient(weight).accumulate = None
        seen, exact = [], weight.detach().double().requires_grad_()
        weight.register_hook(lambda gradient, seen=seen: seen.append(gradient is not None and gradient.layout))
        for micro_batch in range(2):
            accumulator.begin_micro_batch(micro_batch)
            ids, targets = (torch.randint(VOCABULARY, (rows,)) for _ in range(2))
            hidden = torch.randn(rows, width)
            loss, _ = linear_cross_entropy(
                hidden, weight, None, targets, "mean", -100, True, products=torch.bfloat16, native=True, shared=True
            )
            loss = loss * 3.0 + (tied_embedding(weight, ids).sum() if tied else 0.0)
            (loss * scaling).backward()
            same = 3.0 * F.cross_entropy(F.linear(hidden.double(), exact), targets)
            (scaling * (same + (F.embedding(ids, exact).sum() if tied else 0.0))).backward()
        assert seen == 2 * [torch.strided if whole else tied and torch.sparse_coo]
        gradient, exact = accumulator.gradients()["weight"].double(), exact.grad / (2 if running else 1)
        assert (gradient - exact).norm() < 2**-7 * exact.norm()
        found.append(gradient)
    assert (found[0] - found[1]).norm() < 2**-8 * found[1].norm()


@pytest.mark.skipif(not wide_products.available(), reason="this processor has no units for products of bfloat16")
def test_gradients_of_kept_logits_follow_each_losss_own():
    """Several losses in one, each with an upstream gradient; the hidden states get theirs, twice if asked twice."""
    torch.manual_seed(0)
    weight, hidden = torch.randn(VOCABULARY, 16, requires_grad=True), torch.randn(3, 4, 16, requires_grad=True)
    target, upstream = torch.randint(VOCABULARY, (12,)), torch.tensor([1.0, -2.0, 0.5])
    target[5] = -100
    accumulator = GradientAccumulator({"weight": weight}, {"weight": torch.float64}, 2, False, False)
    settings = {"products": torch.bfloat16, "native": True, "groups": 3}
    losses, _ = linear_cross_entropy(hidden, weight, None, target, "mean", -100, True, **settings)
    exact = [tensor.detach().double().requires_grad_() for tensor in (weight, hidden)]
    rows = F.linear(exact[1], exact[0]).flatten(0, 1).split(4)
    same = torch.stack([F.cross_entropy(part, t) for part, t in zip(rows, target.split(4), strict=True)])
    (same * upstream).sum().backward()
    torch.testing.assert_close(losses.double(), same, rtol=2**-8, atol=2**-8)
    for passes in (1, 2):
        losses.backward(upstream, retain_graph=True)
        gradients = (accumulator.gradients()["weight"], hidden.grad.double())
        for gradient, reference in zip(gradients, (each.grad for each in exact), strict=True):
            assert (gradient - passes * reference).norm() < 2**-7 * passes * reference.norm()


@pytest.mark.skipif(not wide_products.available(), reason="this processor has no units for products of bfloat16")
def test_a_heads_gradient_of_many_rows_comes_whole():
    """Their logits would take more memory than it does."""
    weight, seen = torch.randn(VOCABULARY, WIDTH, requires_grad=True), []
    accumulator = GradientAccumulator({"weight": weight}, {"weight": torch.float16}, 2, False, False)
    weight.register_hook(lambda gradient: seen.append(gradient is not None))
    for rows in (2 * WIDTH, 2 * WIDTH + 1):
        hidden, target = torch.randn(rows, WIDTH), torch.arange(rows)
        settings = {"products": torch.bfloat16, "native": True}
        linear_cross_entropy(hidden, weight, None, target, "sum", -100, True, **settings)[0].backward()
    assert seen == [False, True] and accumulator.gradients()["weight"].isfinite().all()


@pytest.mark.skipif(not wide_products.available(), reason="this processor has no units for products of bfloat16")
def test_a_bias_of_few_rows_that_learns_gets_its_gradient():
    torch.manual_seed(0)
    weight, bias = torch.randn(VOCABULARY, WIDTH, requires_grad=True), torch.zeros(VOCABULARY, requires_grad=True)
    accumulator = GradientAccumulator({"weight": weight}, {"weight": torch.float64}, 1, False, False)
    hidden, target = torch.randn(LENGTH, WIDTH), torch.arange(LENGTH)
    settings = {"products": torch.bfloat16, "native": True}
    linear_cross_entropy(hidden, weight, bias, target, "sum", -100, True, **settings)[0].backward()
    exact = [tensor.detach().double().requires_grad_() for tensor in (weight, bias)]
    F.cross_entropy(F.linear(hidden.double(), *exact), target, reduction="sum").backward()
    for ours, reference in zip((accumulator.gradients()["weight"], bias.grad), exact, strict=True):
        assert (ours.double() - reference.grad).norm() < 2**-6 * reference.grad.norm()


@pytest.mark.skipif(not wide_products.available(), reason="this processor has no units for products of bfloat16")
def test_an_anchored_gradient_of_few_rows_is_whole(monkeypatch):
    monkeypatch.setenv("POPTORCH_PORTABLE_HALF", "bfloat16")
    torch.manual_seed(0)
    head = torch.nn.Linear(WIDTH, VOCABULARY, bias=False)
    model = Body(lambda m, x, y: F.cross_entropy(m.head(x).float(), y), head=head).half()
    options = make_options()
    options.anchorTensor("gradient", "Gradient___head.weight")
    optimizer = poptorch.optim.SGD(model.parameters(), lr=1.0, accum_type=torch.float16)
    executor = poptorch.trainingModel(model, options, optimizer)
    before = head.weight.detach().double()
    x, y = torch.randn(LENGTH, WIDTH).half(), torch.arange(LENGTH)
    executor(x, y)
    exact = before.requires_grad_()
    F.cross_entropy(F.linear(x.double(), exact), y).backward()
    gradient = executor.getAnchoredTensor("gradient").double()
    assert (gradient - exact.grad).norm() < 2**-6 * exact.grad.norm()
