"""Dropout of a program as kernels that keep no mask: what is replaced, and whose random numbers it draws."""

from __future__ import annotations

import functools

import pytest
import torch
import torch.nn.functional as F
from programs import Body
from test_recompute import LiveBytes

import poptorch
from poptorch import notices
from poptorch.device import native
from poptorch.device.dropout_attention import dropout_attention
from poptorch.device.residual_dropout import residual_dropout
from poptorch.engine.as_one.number import VARIABLE
from poptorch.engine.numerics import RECORD

pytestmark = pytest.mark.skipif(not native.available(), reason="the kernels are not built (run `make`)")

WIDTH, HEADS, LENGTH = 16, 2, 24
DROPOUT = torch.ops.aten.dropout.default
ADD = torch.ops.aten.add.Tensor


class Block(torch.nn.Module):
    """Attention and a feed-forward layer with dropout in all three places, as in GPT-2."""

    def __init__(self, dropout: float):
        super().__init__()
        self.project = torch.nn.Linear(WIDTH, 3 * WIDTH)
        self.out, self.up = torch.nn.Linear(WIDTH, WIDTH), torch.nn.Linear(WIDTH, WIDTH)
        self.dropout = torch.nn.Dropout(dropout)

    def forward(self, x):
        samples, length, width = x.shape
        heads = (samples, length, HEADS, width // HEADS)
        q, k, v = (part.view(heads).transpose(1, 2) for part in self.project(x).split(width, 2))
        seen = torch.ones(length, length, dtype=torch.bool).tril()
        scores = torch.where(seen, q @ k.transpose(-1, -2) * 0.3, -1e4)
        context = torch.matmul(self.dropout(torch.softmax(scores, -1)), v)
        x = self.dropout(self.out(context.transpose(1, 2).reshape(x.shape))) + x
        return x + self.dropout(self.up(F.gelu(x)))


class Deep(torch.nn.Module):
    """(N, T) -> hidden states (N, T, WIDTH), loss; dropout on the embeddings, too."""

    def __init__(self, dropout: float = 0.3, recompute: bool = False):
        super().__init__()
        torch.manual_seed(0)
        self.embedding = torch.nn.Embedding(10, WIDTH)
        self.blocks = torch.nn.ModuleList(Block(dropout) for _ in range(2))
        self.dropout, self.recompute = torch.nn.Dropout(dropout), recompute

    def forward(self, ids):
        x = self.dropout(self.embedding(ids))
        for block in self.blocks:
            x = block(x)
            if self.recompute:
                x = poptorch.recomputationCheckpoint(x)
        return x, poptorch.identity_loss(x.sin(), "sum")


def executor_of(model, seed: int = 3, **counts) -> poptorch.PoplarExecutor:
    options = poptorch.Options().randomSeed(seed)
    options.outputMode(poptorch.OutputMode.All)
    if "replicas" in counts:
        options.replicationFactor(counts["replicas"])
        options.inputReplicaGrouping(counts["replicas"], poptorch.CommGroupType.Consecutive)
    options.Training.gradientAccumulation(counts.get("accumulation", 1))
    return poptorch.trainingModel(model, options, torch.optim.SGD(model.parameters(), lr=0.01))


def targets(executor) -> list[object]:
    return [node.target for stage in executor.program.stages for s in stage.segments for node in s.module.graph.nodes]


def ids(samples: int = 2) -> torch.Tensor:
    one = torch.randint(10, (1, LENGTH), generator=torch.Generator().manual_seed(1))
    return one.repeat(samples, 1)


def test_every_dropout_is_replaced_and_the_sums_after_it_are_part_of_it():
    executor = executor_of(Deep())
    executor(ids())
    found = targets(executor)
    assert found.count(dropout_attention) == 2 and found.count(residual_dropout) == 5
    assert DROPOUT not in found and ADD not in found


def test_values_are_those_of_eager_where_nothing_is_dropped(monkeypatch):
    """With every element kept the kernels must be the plain program."""
    monkeypatch.setattr(native, "threshold", lambda dropout: 65536)
    model = Deep()
    eager = Deep(dropout=0.0)
    hidden, loss = executor_of(model)(ids())
    expected, expected_loss = eager(ids())
    torch.testing.assert_close(hidden, expected.detach(), rtol=1e-5, atol=1e-5)
    expected_loss.backward()
    for name, parameter in model.named_parameters():
        before, gradient = dict(Deep().named_parameters())[name], dict(eager.named_parameters())[name].grad
        torch.testing.assert_close((before - parameter).detach() / 0.01, gradient, rtol=1e-3, atol=1e-3)


def weights_after(seed: int, recompute: bool = False, calls: int = 2) -> torch.Tensor:
    model = Deep(recompute=recompute)
    executor = executor_of(model, seed, accumulation=2)
    for _ in range(calls):
        executor(ids(4))
    return torch.cat([parameter.detach().flatten() for parameter in model.parameters()])


def test_a_seed_decides_and_recomputation_draws_the_same():
    first = weights_after(3)
    assert torch.equal(first, weights_after(3))
    assert torch.equal(first, weights_after(3, recompute=True))
    assert not torch.equal(first, weights_after(4))


def test_every_layer_call_micro_batch_and_replica_has_a_mask_of_its_own():
    def forward(m, x):
        parts = [x * m.w + F.dropout(torch.ones_like(x) * m.w, 0.5, training=True) for _ in range(2)]
        return torch.stack(parts, 1), poptorch.identity_loss(sum(parts).sum(), "sum")

    model = Body(forward, w=torch.nn.Parameter(torch.ones(())))
    executor = executor_of(model, accumulation=2, replicas=2)
    masks = torch.cat([executor(torch.zeros(2, 64))[0].flatten(0, 1) != 0 for _ in range(2)])
    assert len({tuple(mask.tolist()) for mask in masks}) == 2 * 2 * 2 * 2  # layers, calls, micro-batches, replicas


def test_a_resumed_run_goes_on_with_the_same_masks():
    model = Deep()
    executor = executor_of(model)
    executor(ids())
    state, weights = executor.rng_state, {name: p.detach().clone() for name, p in model.state_dict().items()}
    expected = executor(ids())[0]
    resumed = Deep()
    resumed.load_state_dict(weights)
    other = executor_of(resumed, seed=99)
    other.compile(ids())
    other.rng_state = state
    assert torch.equal(other(ids())[0], expected)


@pytest.fixture
def lines(monkeypatch):
    """What is said."""
    said = []
    monkeypatch.setattr(notices, "_said", set())
    monkeypatch.setattr(notices.logger, "log", lambda level, message: said.append(message))
    return said


def trained(state: dict | None = None) -> tuple[torch.Tensor, dict, list[object]]:
    """Hidden states of one step, the optimizer's state after it, and what the program is made of."""
    model = Deep()
    optimizer = poptorch.optim.AdamW(model.parameters(), lr=0.01)
    if state is not None:
        optimizer.load_state_dict(state)
    executor = poptorch.trainingModel(model, poptorch.Options().randomSeed(3), optimizer)
    hidden, _ = executor(ids())
    return hidden, optimizer.state_dict(), targets(executor)


def test_the_generator_is_the_runs(lines, monkeypatch):
    """A run that began without the kernels goes on without them, where there are some, and a setting counts more."""
    with monkeypatch.context() as without:
        without.setattr(native, "generator", lambda: native.TORCH)
        expected, plain, found = trained()
        assert plain[RECORD] == {"generator of dropout": native.TORCH} and residual_dropout not in found
    hidden, state, found = trained(plain)
    assert state[RECORD] == plain[RECORD] and residual_dropout not in found and torch.equal(hidden, expected)
    assert sum("generator of dropout: torch, with which the run began" in line for line in lines) == 1
    monkeypatch.setattr(native, "asked_by", lambda: "VARIABLE=path")
    _, state, found = trained(plain)
    assert state[RECORD] == {"generator of dropout": native.PHILOX} and residual_dropout in found


def test_a_run_that_began_with_another_version_of_the_kernels_is_told(lines):
    _, state, _ = trained()
    _, state, _ = trained({**state, RECORD: {"generator of dropout": "philox 0"}})
    assert state[RECORD] == {"generator of dropout": native.PHILOX}
    assert sum("The run began with philox 0, which this device lacks" in line for line in lines) == 1


def test_a_program_without_dropout_has_no_generator():
    model = Deep(0.0)
    optimizer = poptorch.optim.AdamW(model.parameters(), lr=0.01)
    poptorch.trainingModel(model, None, optimizer)(ids())
    assert RECORD not in optimizer.state_dict()


def read_twice(m, x):
    dropped = F.dropout(x * m.w, 0.5, training=True)
    return dropped + x, dropped * 2


def scaled_sum(m, x):
    return (torch.add(F.dropout(x * m.w, 0.5, training=True), x, alpha=3),)


def broadcast_sum(m, x):
    return (F.dropout(x * m.w, 0.5, training=True) + x[:1],)


def changed_before_the_sum(m, x):
    y = x * m.w
    dropped = F.dropout(y, 0.5, training=True)
    y.mul_(0.0)
    return (dropped + x,)


def sum_with_itself(m, x):
    dropped = F.dropout(x * m.w, 0.5, training=True)
    return (dropped + dropped,)


@pytest.mark.parametrize("forward", [read_twice, scaled_sum, broadcast_sum, changed_before_the_sum, sum_with_itself])
def test_other_sums_stay_and_have_the_values_of_the_program(forward):
    def program(m, x):
        out = forward(m, x)
        return *out, poptorch.identity_loss(out[0].sum(), "sum")

    executor = executor_of(Body(program, w=torch.nn.Parameter(torch.ones(()))))
    first, *_ = executor(torch.ones(2, 500))
    found = targets(executor)
    assert found.count(residual_dropout) == 1 and found.count(ADD) == 1 and DROPOUT not in found
    base = {read_twice: 1.0, scaled_sum: 3.0, broadcast_sum: 1.0, changed_before_the_sum: 1.0, sum_with_itself: 0.0}
    kept = {sum_with_itself: 4.0}.get(forward, 2.0)
    assert set(first.flatten().tolist()) == {base[forward], base[forward] + kept}


@pytest.mark.parametrize("probability", [0.0, 1.0])
def test_a_certain_outcome_is_left_alone(probability):
    def forward(m, x):
        dropped = F.dropout(x * m.w, probability, training=True) + x
        return dropped, poptorch.identity_loss(dropped.sum(), "sum")

    executor = executor_of(Body(forward, w=torch.nn.Parameter(torch.ones(()))))
    out, _ = executor(torch.ones(2, 8))
    assert residual_dropout not in targets(executor)
    assert torch.equal(out, torch.full((2, 8), 2.0 - probability))


def test_a_half_program_that_is_computed_in_float32_has_the_kernels():
    model = Deep().half()
    executor = executor_of(model)
    hidden, _ = executor(ids())
    assert targets(executor).count(residual_dropout) == 5 and hidden.dtype == torch.float16


def test_dropout_that_is_off_has_no_kernel():
    executor = poptorch.inferenceModel(Deep())
    first, _ = executor(ids())
    assert residual_dropout not in targets(executor) and dropout_attention not in targets(executor)
    torch.testing.assert_close(first, Deep(0.0)(ids())[0].detach(), rtol=1e-5, atol=1e-5)


def test_nothing_of_the_size_of_the_scores_is_ever_held():
    query, key, value = (torch.randn(2, 4, 1024, 8, requires_grad=True) for _ in range(3))
    attention = functools.partial(dropout_attention, dropout=0.1, scale=0.3)
    with LiveBytes() as seen:
        torch.autograd.grad(attention(query, key, value), (query, key, value), torch.ones_like(value))
    assert seen.peak < 1024 * 1024 * 4  # one head's scores


def test_no_mask_is_kept():
    size = 1 << 20
    x = torch.randn(size, requires_grad=True)
    with LiveBytes() as seen:
        total = residual_dropout(x, x, 0.5)
    assert total.shape == x.shape and seen.peak < 4 * size + 1000


@pytest.mark.parametrize("recompute", [False, True])
def test_micro_batches_that_run_as_one_draw_what_each_draws_alone(recompute, monkeypatch):
    found = []
    for asked in ("1", "4"):
        monkeypatch.setenv(VARIABLE, asked)
        model = Deep(recompute=recompute)
        executor = executor_of(model, accumulation=4)
        hidden, _ = executor(ids(8))
        assert executor._session.runner.as_one.number == int(asked)
        found.append((hidden, [parameter.detach().clone() for parameter in model.parameters()]))
    torch.testing.assert_close(*found, rtol=1e-5, atol=1e-5)
