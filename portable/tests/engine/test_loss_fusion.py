"""Projection and cross-entropy in one: the same numbers as written out, without ever holding all logits."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from programs import Body
from test_recompute import LiveBytes

import poptorch
from poptorch.device import linear_cross_entropy as kernel

V, C, B, T = 1040, 8, 2, 6
OUTPUT_CHANNELS = poptorch.MatMulSerializationMode.OutputChannels


# -- the operation ---------------------------------------------------------------------------------------------------


def operands(rows: int, vocabulary: int, seed: int, ignored: float = 0.3, dtype: torch.dtype = torch.float32):
    """hidden (rows, C), weight (V, C), bias (V,), target (rows,)."""
    generator = torch.Generator().manual_seed(seed)
    hidden, weight = (torch.randn(n, C, generator=generator).to(dtype) for n in (rows, vocabulary))
    bias = torch.randn(vocabulary, generator=generator).to(dtype)
    target = torch.randint(vocabulary, (rows,), generator=generator)
    return hidden, weight, bias, target.masked_fill(torch.rand(rows, generator=generator) < ignored, -100)


def gradients(loss: torch.Tensor, tensors) -> list[torch.Tensor]:
    return [grad.double() for grad in torch.autograd.grad(loss, tensors)]


@settings(max_examples=40, deadline=None)
@given(
    rows=st.integers(1, 40),
    vocabulary=st.sampled_from([5, 1024, 1025, 2047, 2600]),
    block_rows=st.integers(1, 40),
    reduction=st.sampled_from(["mean", "sum"]),
    at_once=st.booleans(),
    with_bias=st.booleans(),
    seed=st.integers(0, 1000),
)
def test_loss_argmax_and_gradients_equal_float64(rows, vocabulary, block_rows, reduction, at_once, with_bias, seed):
    *floats, target = operands(rows, vocabulary, seed)
    target[0] = seed % vocabulary  # a mean over nothing has a test of its own
    ours = [tensor.clone().requires_grad_() for tensor in floats[: 2 + with_bias]]
    exact = [tensor.double().requires_grad_() for tensor in floats[: 2 + with_bias]]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(kernel, "_SMALLEST_BLOCK", 1)
        patch.setitem(kernel._BLOCK_BYTES, "cpu", block_rows * vocabulary * 4)
        bias = ours[2] if with_bias else None
        loss, best = kernel.linear_cross_entropy(*ours[:2], bias, target, reduction, -100, at_once)
        found = gradients(3.0 * loss, ours)
    logits = F.linear(*exact)
    reference = F.cross_entropy(logits, target, reduction=reduction)
    torch.testing.assert_close(loss.double(), reference, rtol=1e-5, atol=1e-5)
    # two logits may be closer than float32 tells apart: the one chosen must be as large as the largest
    torch.testing.assert_close(logits.gather(-1, best.unsqueeze(-1)).squeeze(-1), logits.amax(-1), rtol=0, atol=1e-5)
    for mine, expected in zip(found, gradients(3.0 * reference, exact), strict=True):
        torch.testing.assert_close(mine, expected, rtol=1e-4, atol=2e-5)


def test_ties_go_to_the_first_as_in_argmax():
    logits = torch.zeros(4, 2600)
    logits[1, [700, 2599]] = 1.0
    logits[2, [1500, 1576, 1600]] = 2.0
    logits[3, 2599] = 1.0
    assert kernel._argmax(logits).tolist() == [0, 700, 1500, 2599]


@pytest.mark.parametrize("at_once", [True, False])
def test_a_mean_over_nothing_is_nan_and_moves_nothing(at_once):
    hidden, weight, _, target = operands(5, 1024, 0, ignored=2.0)
    hidden.requires_grad_()
    loss, _ = kernel.linear_cross_entropy(hidden, weight, None, target, "mean", -100, at_once)
    reference = F.cross_entropy(hidden @ weight.t(), target)
    assert loss.isnan() and reference.isnan()
    assert torch.equal(*(torch.autograd.grad(x, hidden)[0] for x in (loss, reference)))


@pytest.mark.parametrize("scale", [1.0, 1e4, 1e30])
def test_large_logits_do_not_overflow(scale):
    hidden, weight, _, target = operands(7, 1100, 1)
    loss, _ = kernel.linear_cross_entropy(hidden * scale, weight, None, target, "sum", -100, True)
    exact = F.cross_entropy((hidden.double() * scale) @ weight.double().t(), target, reduction="sum")
    torch.testing.assert_close(loss.double(), exact, rtol=1e-5, atol=1e-4)


def test_half_gradients_survive_with_the_loss_scaling():
    """Probabilities of about 1e-3 over 1000 rows leave half's range unless they are scaled first."""
    hidden, weight, _, target = operands(1000, 1024, 2, dtype=torch.float16)
    hidden, weight = (0.01 * hidden).requires_grad_(), weight.requires_grad_()
    loss, _ = kernel.linear_cross_entropy(hidden, weight, None, target, "mean", -100, False)
    assert loss.dtype == torch.float32
    found = torch.autograd.grad(loss, [hidden, weight], torch.tensor(4096.0))
    exact = [tensor.detach().double().requires_grad_() for tensor in (hidden, weight)]
    expected = gradients(4096.0 * F.cross_entropy(F.linear(*exact), target), exact)
    for mine, reference in zip(found, expected, strict=True):
        assert mine.dtype == torch.float16
        assert (mine.double() - reference).norm() < 4e-3 * reference.norm()


def test_without_a_gradient_none_is_formed():
    hidden, weight, _, target = operands(9, 1024, 3)
    with LiveBytes() as seen, torch.no_grad():
        kernel.linear_cross_entropy(hidden.requires_grad_(), weight.requires_grad_(), None, target, "sum", -100, True)
    assert seen.calls["mm"] == 1  # the logits


# -- the pass --------------------------------------------------------------------------------------------------------


class Tied(torch.nn.Module):
    """A tied embedding and head around one layer; `objective(module, hidden, labels)` makes the outputs."""

    def __init__(self, objective, vocabulary: int = V):
        super().__init__()
        torch.manual_seed(0)
        self.objective = objective
        self.weight = torch.nn.Parameter(0.5 * torch.randn(vocabulary, C))
        self.layer = torch.nn.Linear(C, C)
        padding = torch.zeros(vocabulary)
        padding[-9:] = -1e4
        self.register_buffer("padding", padding)

    def forward(self, ids, labels):
        return self.objective(self, torch.tanh(self.layer(F.embedding(ids, self.weight))), labels)


def flat_labels(labels):
    return labels.reshape(-1) if labels.dtype == torch.int32 else labels.reshape(-1).long()


def plain_head(m, hidden):
    return F.linear(hidden, m.weight)


def serialized_head(m, hidden):
    return poptorch.serializedMatMul(hidden, m.weight.t(), OUTPUT_CHANNELS, 4, keep_precision=True)


def padded_head(m, hidden):
    return plain_head(m, hidden).add_(m.padding)


def matmul_head(m, hidden):
    return hidden @ m.weight.transpose(0, 1) + m.padding


def bias_head(m, hidden):
    return F.linear(hidden, m.weight, 10.0 * m.weight.mean(1))


def loss_and_hits(head, reduction="mean"):
    def objective(m, hidden, labels):
        logits = head(m, hidden)
        target = flat_labels(labels)
        rows = logits.view(target.shape[0], -1)
        loss = F.cross_entropy(rows.float() if rows.dtype == torch.float16 else rows, target, reduction=reduction)
        return loss, (logits.argmax(-1) == labels).sum(), rows.argmax(dim=1)

    return objective


def in_blocks(m, hidden, labels):
    """One cross-entropy for every two positions, all on one weight."""
    total, hits = torch.zeros((), dtype=hidden.dtype), torch.zeros(())
    for start in range(0, T, 2):
        part, target = padded_head(m, hidden[:, start : start + 2]), flat_labels(labels[:, start : start + 2])
        total = total + F.cross_entropy(part.reshape(-1, V), target, reduction="sum")
        hits = hits + (part.reshape(-1, V).argmax(-1) == target).sum()
    return poptorch.identity_loss(total / 7.0, "none"), hits


def scaled_twice(m, hidden, labels):
    loss, hits, best = loss_and_hits(padded_head)(m, hidden, labels)
    return poptorch.identity_loss(2.0 * loss * loss, "none"), hits, best


def accuracy_first(m, hidden, labels):
    target = flat_labels(labels)
    target = target.masked_fill(target == -100, 5).long()
    logits = plain_head(m, hidden).reshape(-1, V)
    hits = (logits.argmax(-1) == target).sum()
    return hits, F.cross_entropy(logits, target, ignore_index=5)


FUSED = {
    "plain": (loss_and_hits(plain_head), 1),
    "sum": (loss_and_hits(plain_head, "sum"), 1),
    "serialized": (loss_and_hits(serialized_head), 1),
    "bias in place": (loss_and_hits(padded_head), 1),
    "matmul": (loss_and_hits(matmul_head), 1),
    "bias with a gradient": (loss_and_hits(bias_head), 1),
    "blocks": (in_blocks, 3),
    "function of the loss": (scaled_twice, 1),
    "argmax before the loss": (accuracy_first, 1),
}


def batch(ignored: float = 0.2, dtype: torch.dtype = torch.int64):
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(V - 9, (B, T), generator=generator)
    labels = torch.randint(V - 9, (B, T), generator=generator)
    return ids.to(dtype), labels.masked_fill(torch.rand(B, T, generator=generator) < ignored, -100).to(dtype)


def fusions(executor) -> list[torch.fx.Node]:
    """The fused operations of a compiled program."""
    graphs = [segment.module.graph for stage in executor.program.stages for segment in stage.segments]
    return [node for graph in graphs for node in graph.nodes if node.target is kernel.linear_cross_entropy]


def train(model, *inputs, optimizer=None):
    """(executor, outputs, gradients): one step of SGD with learning rate 1 shows the gradients."""
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    executor = poptorch.trainingModel(model, None, optimizer or torch.optim.SGD(model.parameters(), lr=1.0))
    outputs = executor(*inputs)
    return executor, outputs, {name: (before[name].double() - p.detach()) for name, p in model.named_parameters()}


def assert_like_eager(objective, outputs, found, ids, labels, atol=2e-6):
    """The outputs and gradients are those of a plain eager call in float64."""
    exact = Tied(objective).double()
    exact.padding = exact.padding.double()
    expected = exact(ids, labels)
    loss = next(output for output in expected if output.requires_grad)
    loss.backward()
    for mine, reference in zip(outputs, expected, strict=True):
        torch.testing.assert_close(mine.double(), reference.detach().double(), rtol=2e-5, atol=atol)
    for name, parameter in exact.named_parameters():
        torch.testing.assert_close(found[name], parameter.grad, rtol=1e-4, atol=atol)


@pytest.mark.parametrize("dtype", [torch.int64, torch.int32])
@pytest.mark.parametrize("case", FUSED)
def test_a_fused_program_computes_what_it_says(case, dtype):
    objective, count = FUSED[case]
    executor, outputs, found = train(Tied(objective), *batch(dtype=dtype))
    nodes = fusions(executor)
    assert len(nodes) == count
    assert all(node.args[6] is (count == 1) for node in nodes)  # several would each hold a gradient of W
    assert_like_eager(objective, outputs, found, *(tensor.long() for tensor in batch()))


def test_fused_and_unfused_graphs_agree(monkeypatch):
    objective = FUSED["bias in place"][0]
    _, outputs, found = train(Tied(objective), *batch())
    monkeypatch.setattr("poptorch.engine.passes.fuse_losses", lambda *_: 0)
    executor, plain_outputs, plain = train(Tied(objective), *batch())
    assert not fusions(executor)
    for mine, other in zip([*outputs, *found.values()], [*plain_outputs, *plain.values()], strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-5, atol=1e-6)


def test_all_rows_ignored():
    executor, (loss, hits, _), found = train(Tied(FUSED["plain"][0]), *batch(ignored=2.0))
    assert fusions(executor)
    assert loss.isnan() and hits == 0
    assert all(not gradient.any() for gradient in found.values())


def test_half_on_a_cpu_is_fused_in_float32():
    model = Tied(loss_and_hits(padded_head)).half()
    executor, (loss, _, _), _ = train(model, *batch())
    assert [node.args[6] for node in fusions(executor)] == [True]
    halves = Tied(loss_and_hits(padded_head)).half().double()
    expected = halves(*batch())[0]
    torch.testing.assert_close(loss.double(), expected.detach(), rtol=1e-5, atol=1e-5)


def test_half_computed_in_half_waits_for_the_loss_scaling(monkeypatch):
    monkeypatch.setenv("POPTORCH_PORTABLE_HALF", "native")
    model = Tied(loss_and_hits(padded_head)).half()
    optimizer = poptorch.optim.SGD(model.parameters(), lr=1.0, loss_scaling=256.0)
    executor, (loss, _, _), found = train(model, *batch(), optimizer=optimizer)
    assert [node.args[6] for node in fusions(executor)] == [False]
    halves = Tied(loss_and_hits(padded_head)).half().double()
    expected = halves(*batch())[0]
    expected.backward()
    torch.testing.assert_close(loss.double(), expected.detach(), rtol=2e-3, atol=2e-3)
    gradient = halves.layer.weight.grad
    assert (found["layer.weight"] - gradient).norm() < 0.01 * gradient.norm()


def test_the_loss_keeps_its_type(monkeypatch):
    monkeypatch.setenv("POPTORCH_PORTABLE_HALF", "native")
    model = Tied(lambda m, hidden, labels: F.cross_entropy(plain_head(m, hidden).view(-1, V), labels.view(-1))).half()
    executor, loss, _ = train(model, *batch())
    assert fusions(executor) and loss.dtype == torch.float16


def cross_entropy(logits, labels, **options):
    return F.cross_entropy(logits.reshape(-1, V), flat_labels(labels), **options)


def logits_too(m, hidden, labels):
    logits = plain_head(m, hidden)
    return cross_entropy(logits, labels), logits


def changed_logits(m, hidden, labels):
    return (cross_entropy(torch.tanh(plain_head(m, hidden)), labels),)


def probabilities(m, hidden, labels):
    classes = F.one_hot(labels.reshape(-1).long().clamp(min=0), V).to(hidden.dtype)
    return (F.cross_entropy(plain_head(m, hidden).reshape(-1, V), classes),)


def classes_in_the_middle(m, hidden, labels):
    return (F.cross_entropy(plain_head(m, hidden).transpose(1, 2), labels.long()),)


def bias_changed_in_between(m, hidden, labels):
    bias = torch.linspace(0.0, 5.0, V, dtype=hidden.dtype)
    logits = plain_head(m, hidden) + bias
    bias.mul_(-1.0)
    return cross_entropy(logits, labels), bias.sum()


def labels_after_the_argmax(m, hidden, labels):
    logits = plain_head(m, hidden).reshape(-1, V)
    best = logits.argmax(-1)
    return F.cross_entropy(logits, (best + 1) % 7), best.sum()


UNFUSED = {
    "logits returned": logits_too,
    "another function in between": changed_logits,
    "label smoothing": lambda m, h, y: (cross_entropy(plain_head(m, h), y, label_smoothing=0.1),),
    "no reduction": lambda m, h, y: (
        poptorch.identity_loss(cross_entropy(plain_head(m, h), y, reduction="none"), "sum"),
    ),
    "class probabilities": probabilities,
    "classes in the middle": classes_in_the_middle,
    "operand changed": bias_changed_in_between,
    "targets that follow from the logits": labels_after_the_argmax,
}


@pytest.mark.parametrize("case", UNFUSED)
def test_what_is_no_such_pattern_stays(case):
    executor, outputs, found = train(Tied(UNFUSED[case]), *batch())
    assert not fusions(executor)
    outputs = outputs if isinstance(outputs, (list, tuple)) else (outputs,)
    assert_like_eager(UNFUSED[case], outputs, found, *batch(), atol=1e-5)


@torch.library.custom_op("com_example_fusion::Remap", mutates_args=())
def remap(x: torch.Tensor) -> torch.Tensor:
    return x.clone()


remap.register_fake(torch.empty_like)
remap.register_autograd(lambda ctx, grad: grad.clone())


def test_a_custom_op_between_logits_and_loss_sees_them():
    def objective(m, hidden, labels):
        logits = plain_head(m, hidden)
        (logits,) = poptorch.custom_op([logits], "Remap", "com.example.fusion", 1, [logits])
        return (cross_entropy(logits, labels),)

    executor, loss, found = train(Tied(objective), *batch())
    assert not fusions(executor)
    plain = lambda m, h, y: (cross_entropy(plain_head(m, h), y),)  # noqa: E731
    assert_like_eager(plain, [loss] if isinstance(loss, torch.Tensor) else loss, found, *batch())


def test_a_small_vocabulary_is_no_burden():
    w = torch.nn.Parameter(torch.randn(1000, C))
    model = Body(lambda m, x, y: F.cross_entropy(F.linear(x, m.w), y), w=w)
    executor, _, _ = train(model, torch.randn(4, C), torch.tensor([1, 2, 3, 999]))
    assert not fusions(executor)


def test_accumulation_and_updates_with_a_fused_loss():
    """Four calls of two micro-batches: buffers that are used again must not leak from one into the next."""
    model, twin = Tied(scaled_twice), Tied(scaled_twice)
    options = poptorch.Options()
    options.Training.gradientAccumulation(2)
    options.Training.accumulationAndReplicationReductionType(poptorch.ReductionType.Mean)
    executor = poptorch.trainingModel(model, options, torch.optim.SGD(model.parameters(), lr=0.1))
    optimizer = torch.optim.SGD(twin.parameters(), lr=0.1)
    generator = torch.Generator().manual_seed(2)
    for _ in range(4):
        ids, labels = (torch.randint(V - 9, (2 * B, T), generator=generator) for _ in range(2))
        executor(ids, labels)
        optimizer.zero_grad()
        for part in (slice(0, B), slice(B, 2 * B)):
            (twin(ids[part], labels[part])[0] / 2).backward()
        optimizer.step()
    for mine, reference in zip(model.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(mine.detach(), reference.detach(), rtol=1e-4, atol=1e-5)


# -- memory ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("head", [plain_head, serialized_head], ids=["plain", "serialized"])
def test_the_logits_are_never_held_as_a_whole(head, monkeypatch):
    vocabulary, length = 4096, 512
    monkeypatch.setitem(kernel._BLOCK_BYTES, "cpu", 64 * 4 * vocabulary)  # 64 rows
    objective = lambda m, h, y: cross_entropy_of(head(m, h), y)  # noqa: E731

    def cross_entropy_of(logits, labels):
        return F.cross_entropy(logits.view(-1, vocabulary), labels.view(-1))

    model = Tied(objective, vocabulary)
    generator = torch.Generator().manual_seed(3)
    inputs = [torch.randint(vocabulary, (1, length), generator=generator) for _ in range(2)]
    peaks = {}
    for fused in (True, False):
        twin = copy.deepcopy(model)
        with monkeypatch.context() as patch:
            if not fused:
                patch.setattr("poptorch.engine.passes.fuse_losses", lambda *_: 0)
            executor = poptorch.trainingModel(twin, None, torch.optim.SGD(twin.parameters(), lr=0.1))
            executor.compile(*inputs)
        with LiveBytes() as seen:
            executor(*inputs)
        peaks[fused] = seen.peak
    logits = 4 * vocabulary * length
    assert peaks[False] > 2 * logits  # the measure sees the logits and their gradient
    assert peaks[True] < logits / 2


def test_the_serialisation_factor_bounds_the_block():
    vocabulary, length = 4096, 256
    generator = torch.Generator().manual_seed(3)
    inputs = [torch.randint(vocabulary, (1, length), generator=generator) for _ in range(2)]
    peaks = []
    for factor in (1, 4, 16):
        mode = poptorch.MatMulSerializationMode.OutputChannels

        def objective(m, hidden, labels, factor=factor, mode=mode):
            logits = poptorch.serializedMatMul(hidden, m.weight.t(), mode, factor)
            return F.cross_entropy(logits.view(-1, vocabulary), labels.view(-1))

        model = Tied(objective, vocabulary)
        executor = poptorch.trainingModel(model, None, torch.optim.SGD(model.parameters(), lr=0.1))
        executor.compile(*inputs)
        with LiveBytes() as seen:
            executor(*inputs)
        peaks.append(seen.peak)
    logits = 4 * vocabulary * length  # 4 MiB, in one block where nothing bounds it
    assert peaks[0] - peaks[1] > logits / 2
    assert peaks[1] - peaks[2] > logits / 8


# -- copies ----------------------------------------------------------------------------------------------------------

COPIES = torch.library.Library("com_example_copies", "DEF")
COPIES.define("Copy(Tensor x) -> Tensor", tags=(torch.Tag.view_copy,))
COPIES.impl("Copy", lambda x: x.clone(), "CompositeExplicitAutograd")
torch.library.register_autograd("com_example_copies::Copy", lambda context, gradient: gradient, lib=COPIES)


def test_a_custom_op_that_says_it_copies_is_looked_through():
    def objective(m, hidden, labels):
        (logits,) = poptorch.custom_op(
            [plain_head(m, hidden)], "Copy", "com.example.copies", 1, [hidden.new_empty(B, T, V)]
        )
        return (cross_entropy(logits, labels),)

    executor, loss, found = train(Tied(objective), *batch())
    assert fusions(executor)
    plain = lambda m, h, y: (cross_entropy(plain_head(m, h), y),)  # noqa: E731
    assert_like_eager(plain, [loss] if isinstance(loss, torch.Tensor) else loss, found, *batch())
