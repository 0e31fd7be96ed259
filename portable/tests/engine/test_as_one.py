"""Several micro-batches run as one give what each gives alone."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from programs import Body, Regression, make_options, regression_data
from zoo import ZOO

import poptorch
from poptorch.device.linear_cross_entropy import linear_cross_entropy
from poptorch.engine.as_one.choosing import choose
from poptorch.engine.as_one.number import NAME, VARIABLE
from poptorch.engine.as_one.rules import Dropout, LinearCrossEntropy, Unchanged
from poptorch.engine.numerics import RECORD

ALL = poptorch.OutputMode.All


def both(monkeypatch, make, inputs, options, training=True, calls=2, number=None, lr=0.1):
    """(outputs, weights, as_one) of two executors, one micro-batch at a time and as many as one as are chosen."""
    found = []
    for asked in ("1", "" if number is None else str(number)):
        monkeypatch.setenv(VARIABLE, asked)
        torch.manual_seed(3)
        model = make()
        if training:
            executor = poptorch.trainingModel(model, options(), torch.optim.SGD(model.parameters(), lr=lr))
        else:
            executor = poptorch.inferenceModel(model, options())
        outputs = [executor(*(each.clone() for each in inputs)) for _ in range(calls)]
        as_one = executor._session.runner.as_one
        executor.destroy()
        found.append((outputs, {key: value.clone() for key, value in model.state_dict().items()}, as_one))
    assert found[0][2].number == 1
    return found


def same(first, second, **tolerance):
    tolerance = tolerance or {"rtol": 1e-5, "atol": 1e-6}
    torch.testing.assert_close(first[0], second[0], equal_nan=True, **tolerance)
    torch.testing.assert_close(first[1], second[1], equal_nan=True, **tolerance)


def data(name, rows):
    generator = torch.Generator().manual_seed(11)
    made = [make(rows, generator) for make in ZOO[name][1]]
    return [each.float() if each.is_floating_point() else each for each in made]


# Models that write to buffers, or whose operations call Python; all others run as one.
ONE_AT_A_TIME = {"convolutional, BatchNorm", "InstanceNorm", "a moving average"}
ONE_AT_A_TIME |= {"written_slices", "ctc"}


@pytest.mark.parametrize("name", ZOO)
def test_each_model_trains_as_one_micro_batch_after_the_other(name, monkeypatch):
    def options():
        return make_options(2, 4, mode=ALL).randomSeed(1)

    alone, together = both(monkeypatch, ZOO[name][0], data(name, 24), options)
    same(alone, together)
    assert together[2].number == (1 if name in ONE_AT_A_TIME else 4), together[2].reason


@pytest.mark.parametrize("mode", [ALL, poptorch.OutputMode.Sum, poptorch.OutputMode.Final])
@pytest.mark.parametrize("replicas", [1, 2])
def test_output_modes_and_replicas_see_micro_batches(mode, replicas, monkeypatch):
    inputs = regression_data(2 * 3 * replicas * 2)
    alone, together = both(monkeypatch, Regression, inputs, lambda: make_options(2, 3, replicas, mode))
    same(alone, together)
    assert together[2].number == 3 * replicas
    assert [a.shape for a in alone[0][0]] == [b.shape for b in together[0][0]]


def test_replicas_that_share_inputs(monkeypatch):
    def options():
        return make_options(1, 3, 2, ALL).inputReplicaGrouping(2, poptorch.CommGroupType.Consecutive)

    alone, together = both(monkeypatch, Regression, regression_data(6), options)
    same(alone, together)
    assert together[2].number == 6


def test_iterations_of_inference_run_as_one(monkeypatch):
    inputs = regression_data(12)
    alone, together = both(monkeypatch, Regression, inputs, lambda: make_options(6, mode=ALL), training=False)
    same(alone, together)
    assert together[2].number == 6


@pytest.mark.parametrize("strategy", [poptorch.MeanReductionStrategy.Running, poptorch.MeanReductionStrategy.Post])
@pytest.mark.parametrize("kind", [torch.float32, torch.float16])
def test_accumulators_of_any_kind(strategy, kind, monkeypatch):
    found = []
    for asked in ("1", "3"):
        monkeypatch.setenv(VARIABLE, asked)
        model = Regression()
        options = make_options(1, 6, mode=ALL)
        options.Training.setMeanAccumulationAndReplicationReductionStrategy(strategy)
        optimizer = poptorch.optim.SGD(model.parameters(), lr=0.1, accum_type=kind, use_combined_accum=False)
        executor = poptorch.trainingModel(model, options, optimizer)
        found.append([executor(*regression_data(12)) for _ in range(3)])
        assert executor._session.runner.as_one.number == int(asked)
    tolerance = 1e-5 if kind is torch.float32 else 2e-3
    torch.testing.assert_close(*found, rtol=tolerance, atol=tolerance)


def noisy(m, x):
    hidden = F.dropout(x * m.w, 0.4) + torch.rand_like(x) + torch.randn(x.shape[-1])
    return hidden, poptorch.identity_loss((F.dropout(hidden, 0.2) ** 2).mean(), "mean")


def noisy_model():
    return Body(noisy, w=torch.nn.Parameter(torch.ones(())))


@pytest.mark.parametrize("training", [True, False])
def test_each_micro_batch_draws_what_it_draws_alone(training, monkeypatch):
    iterations, accumulation = (1, 4) if training else (4, 1)

    def options():
        return make_options(iterations, accumulation, 2, ALL).randomSeed(4)

    alone, together = both(monkeypatch, noisy_model, [torch.randn(16, 5)], options, training)
    assert together[2].number == 8
    for one, several in zip(alone[0][0], together[0][0], strict=True):
        assert torch.equal(one, several)  # the first call: of the same weights
    same(alone, together)


def checkpointed(m, x):
    hidden = F.dropout(torch.tanh(m.first(x)), 0.3)
    hidden = poptorch.recomputationCheckpoint(hidden)
    hidden = F.dropout(torch.tanh(m.second(hidden)), 0.3)
    hidden = poptorch.recomputationCheckpoint(hidden)
    return poptorch.identity_loss((m.third(hidden) ** 2).mean(), "mean")


def test_a_segment_computed_again_draws_the_same(monkeypatch):
    def make():
        layers = {name: torch.nn.Linear(4, 4) for name in ("first", "second", "third")}
        return Body(checkpointed, **layers)

    alone, together = both(monkeypatch, make, [torch.randn(8, 4)], lambda: make_options(1, 4, mode=ALL).randomSeed(2))
    assert together[2].number == 4
    same(alone, together)


@pytest.mark.parametrize("dropout", [0.0, 0.2])
def test_attention_with_the_bias_of_alibi(dropout, monkeypatch):
    """Of which the micro-batches share the columns that stand for it."""
    length, heads, size = 6, 2, 4

    def forward(m, x):
        parts = m.project(x).view(x.shape[0], length, 3, heads, size).transpose(1, 3).unbind(2)
        q, k, v = parts  # (B, heads, T, size) each
        places = torch.arange(length)
        bias = (places - places[:, None]) * torch.tensor(0.25, dtype=x.dtype)
        scores = torch.matmul(q, k.transpose(-1, -2)) * 0.5 + bias.expand(heads, length, length)
        probabilities = torch.softmax(torch.where(torch.ones(length, length).tril() > 0, scores, -1e4), dim=-1)
        return poptorch.identity_loss(torch.matmul(F.dropout(probabilities, dropout), v).sin(), "mean")

    def make():
        return Body(forward, project=torch.nn.Linear(3, 3 * heads * size))

    inputs = [torch.randn(16, length, 3, generator=torch.Generator().manual_seed(1))]
    alone, together = both(monkeypatch, make, inputs, lambda: make_options(1, 8, mode=ALL).randomSeed(2))
    assert together[2].number == 8, together[2].reason
    same(alone, together)


@pytest.mark.parametrize("common", [None, 1, 2])
@pytest.mark.parametrize("length", [6, 70])
@pytest.mark.parametrize("dropout", [0.0, 0.2])
def test_attention_with_a_bias_of_the_keys(dropout, length, common, monkeypatch):
    """Each micro-batch has its own, as of a mask of padding, or all have one, or one for each of their samples."""
    heads, size = 2, 4

    def forward(m, x):
        q, k, v = m.project(x).view(x.shape[0], length, 3, heads, size).transpose(1, 3).unbind(2)
        bias = (x[..., 0] > 0.5).to(x.dtype) * -1e4
        if common is not None:
            bias = torch.arange(common * length).view(common, length).to(x.dtype) / length
        scores = torch.matmul(q, k.transpose(-1, -2)) * 0.5 + bias[:, None, None, :]
        probabilities = torch.softmax(torch.where(torch.ones(length, length).tril() > 0, scores, -3e4), dim=-1)
        return poptorch.identity_loss(torch.matmul(F.dropout(probabilities, dropout), v).sin(), "mean")

    def make():
        return Body(forward, project=torch.nn.Linear(3, 3 * heads * size))

    inputs = [torch.randn(16, length, 3, generator=torch.Generator().manual_seed(1))]
    inputs[0][:, 0, 0] = 0.0
    alone, together = both(monkeypatch, make, inputs, lambda: make_options(1, 8, mode=ALL).randomSeed(2))
    assert together[2].number == 8, together[2].reason
    same(alone, together)


def padding(m, x):
    return (x[..., 0] < 0.5)[:, None, None, :]


# Of attention with samples (B, T, 3), broadcast to scores (B, heads, T, T); `near` is a parameter.
MASKS = {
    "of the keys": padding,
    "of samples": lambda m, x: padding(m, x) & torch.ones(x.shape[1], x.shape[1]).tril().bool(),
    "of a micro-batch": lambda m, x: padding(m, x)[:1],
    "of a micro-batch's matrix": lambda m, x: torch.tanh(x[0] @ x[0].t()),
    "of positions": lambda m, x: torch.ones(x.shape[1], x.shape[1]).tril().bool(),
    "a parameter": lambda m, x: m.near,
    "a parameter's samples": lambda m, x: m.near.expand(2, 1, -1, -1) * torch.tensor([1.0, 2.0])[:, None, None, None],
    "a parameter and samples": lambda m, x: torch.where(padding(m, x), m.near, -1e4),
}


@pytest.mark.parametrize("kind", [torch.float32, torch.float16])
@pytest.mark.parametrize("name", MASKS)
def test_attention_with_a_mask(name, kind, monkeypatch, capfd):
    length, heads, size = 6, 2, 4
    monkeypatch.setenv("POPTORCH_PORTABLE_HALF", "float32")  # its products keep the digits

    def forward(m, x):
        q, k, v = m.project(x).view(x.shape[0], length, 3, heads, size).transpose(1, 3).unbind(2)
        mask = MASKS[name](m, x)
        mask = mask if mask.dtype == torch.bool else mask.to(x.dtype)
        return poptorch.identity_loss(F.scaled_dot_product_attention(q, k, v, attn_mask=mask).sin(), "mean")

    def make():
        near = torch.nn.Parameter(torch.randn(length, length, generator=torch.Generator().manual_seed(3)))
        return Body(forward, project=torch.nn.Linear(3, 3 * heads * size), near=near).to(kind)

    inputs = [torch.randn(16, length, 3, generator=torch.Generator().manual_seed(1)).to(kind)]
    inputs[0][:, 0, 0] = 0.0
    alone, together = both(monkeypatch, make, inputs, lambda: make_options(1, 8, mode=ALL))
    assert together[2].number == 8, together[2].reason
    same(alone, together, **({"rtol": 2e-3, "atol": 1e-4} if kind == torch.float16 else {}))
    assert "batching rule" not in capfd.readouterr().err


def test_a_change_in_place_that_torch_has_no_rule_for_is_not_warned_of(monkeypatch, capfd):
    """torch wrote a line to stderr in each call."""

    def make():
        return Body(lambda m, x: torch.zeros_like(x).scatter_(1, x.argsort(-1), x))

    inputs = [torch.randn(8, 4, generator=torch.Generator().manual_seed(1))]
    alone, together = both(monkeypatch, make, inputs, lambda: make_options(4, mode=ALL), training=False)
    assert together[2].number == 4, together[2].reason
    same(alone, together)
    assert "batching rule" not in capfd.readouterr().err


@pytest.mark.parametrize("masked", [True, False])
def test_attention_of_samples_that_share_keys(masked, monkeypatch):
    def forward(m, x):
        q = m.project(x).view(x.shape[0], 6, 2, 4).transpose(1, 2)
        mask = padding(m, x) if masked else None
        return poptorch.identity_loss(F.scaled_dot_product_attention(q, q[:1], q[1:], attn_mask=mask).sin(), "mean")

    def make():
        return Body(forward, project=torch.nn.Linear(3, 8))

    inputs = [torch.randn(16, 6, 3, generator=torch.Generator().manual_seed(1))]
    inputs[0][:, 0, 0] = 0.0
    alone, together = both(monkeypatch, make, inputs, lambda: make_options(1, 8, mode=ALL))
    assert together[2].number == 8, together[2].reason
    same(alone, together)


def test_losses_that_ignore_targets_keep_their_counts(monkeypatch):
    labels = torch.tensor([0, 1, -100, -100, 2, -100, 3, 4])

    def forward(m, x, y):
        return F.cross_entropy(m.head(x), y)

    def make():
        return Body(forward, head=torch.nn.Linear(3, 5))

    alone, together = both(monkeypatch, make, [torch.randn(8, 3), labels], lambda: make_options(1, 4, mode=ALL))
    assert together[2].number == 4
    same(alone, together)


WEIGHTS = [torch.full((4,), 2.0), torch.tensor([1.0, 0.5, 3.0, 0.0])]


@pytest.mark.parametrize("weights", WEIGHTS, ids=["equal", "different"])
@pytest.mark.parametrize("reduction", ["sum", "mean"])
@pytest.mark.parametrize("at_once", [True, False])
def test_a_fused_loss_has_a_gradient_for_each_group(weights, reduction, at_once):
    torch.manual_seed(0)
    hidden, weight = torch.randn(12, 6), torch.randn(2048, 6)
    target = torch.randint(0, 2048, (12,))
    target[[0, 1, 4]] = -100
    results = []
    for fused in (True, False):
        operands = [hidden.clone().requires_grad_(), weight.clone().requires_grad_()]
        if fused:
            loss, best = linear_cross_entropy(*operands, None, target, reduction, -100, at_once, groups=4)
        else:
            logits = operands[0] @ operands[1].t()
            parts = zip(logits.chunk(4), target.chunk(4), strict=True)
            loss = torch.stack([F.cross_entropy(x, y, reduction=reduction) for x, y in parts])
            best = logits.argmax(-1)
        loss.backward(weights)
        results.append([loss.detach(), best, *(operand.grad for operand in operands)])
    torch.testing.assert_close(*results)


def written_input(m, x):
    x.add_(1)
    return (x * m.w).sum()


def written_buffer(m, x):
    m.state.mul_(0.5).add_(x.detach().mean())
    return (x * m.w * m.state).sum()


class Doubled(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return 2 * x

    @staticmethod
    def backward(ctx, grad):
        return 2 * grad


def own_function(m, x):
    return Doubled.apply(x * m.w).sum()


def no_inputs(m, x):
    return m.w * 3


def filled(m, x):
    total = torch.zeros(2)
    total.add_(x.sum())
    return total.sum() * m.w


def perhaps_a_copy(m, x):
    made = x * m.w
    other = made.transpose(0, 1).reshape(-1)
    made.mul_(2)
    return other.sum()


@pytest.mark.parametrize("forward", [written_input, written_buffer, own_function, no_inputs, filled, perhaps_a_copy])
def test_what_cannot_be_proven_runs_one_at_a_time(forward, monkeypatch):
    def make():
        state = {"state": torch.ones(())} if forward is written_buffer else {}
        return Body(
            lambda m, x: poptorch.identity_loss(forward(m, x), "sum"), w=torch.nn.Parameter(torch.ones(())), **state
        )

    alone, together = both(monkeypatch, make, [torch.ones(4, 2)], lambda: make_options(1, 4, mode=ALL))
    assert together[2].number == 1 and together[2].reason
    same(alone, together)


def test_loops_run_one_micro_batch_at_a_time(monkeypatch):
    def make():
        return Body(lambda m, x: poptorch.for_loop(3, lambda y: y * 2 + x, [x])[0])

    alone, together = both(monkeypatch, make, [torch.randn(4, 2)], lambda: make_options(4, mode=ALL), training=False)
    assert together[2].number == 1 and "loop" in together[2].reason
    same(alone, together)


def test_writes_to_what_the_program_made_run_as_one(monkeypatch):
    def forward(m, x):
        made = x * m.w
        made[:, 0] *= 3
        made.add_(1).clamp_(max=2)
        return poptorch.identity_loss(made.sum(), "sum")

    def make():
        return Body(forward, w=torch.nn.Parameter(torch.ones(2)))

    alone, together = both(monkeypatch, make, [torch.randn(4, 2)], lambda: make_options(1, 4, mode=ALL))
    assert together[2].number == 4, together[2].reason
    same(alone, together)


def test_a_row_asked_for_often_counts_within_its_micro_batch(monkeypatch):
    def make():
        embedding = torch.nn.Embedding(4, 3, scale_grad_by_freq=True)
        return Body(lambda m, x: poptorch.identity_loss(m.e(x).sum(), "sum"), e=embedding)

    ids = torch.tensor([[0, 0, 1], [0, 2, 2], [3, 0, 0], [0, 1, 2]])
    alone, together = both(monkeypatch, make, [ids], lambda: make_options(1, 4, mode=ALL))
    assert together[2].number == 4
    same(alone, together)


def test_anchored_gradients_are_of_one_micro_batch(monkeypatch):
    monkeypatch.setenv(VARIABLE, "4")
    model = Regression()
    options = make_options(1, 4, mode=ALL)
    options.anchorTensor("gradient", "Gradient___first.weight", ALL)
    executor = poptorch.trainingModel(model, options, torch.optim.SGD(model.parameters(), lr=0.1))
    executor(*regression_data(8))
    assert executor.getAnchoredTensor("gradient").shape[0] == 4 * 5
    assert executor._session.runner.as_one.number == 1


def test_every_micro_batch_has_its_timestamps(monkeypatch):
    monkeypatch.setenv(VARIABLE, "")
    model = Regression()
    executor = poptorch.trainingModel(model, make_options(1, 4, mode=ALL))
    executor(*regression_data(8))
    counters = executor.getPerfCounters()
    assert executor._session.runner.as_one.number == 4
    assert [len(stamps) for stamps in counters["output"]] == [4, 4] and len(counters["input"][0]) == 4


@pytest.mark.parametrize("text", ["two", "0", "-1", "1.5"])
def test_a_bad_number_is_an_error(text, monkeypatch):
    monkeypatch.setenv(VARIABLE, text)
    with pytest.raises(poptorch.Error, match=f"{VARIABLE}={text} is not a number of micro-batches"):
        poptorch.inferenceModel(Regression(), make_options(2))(*regression_data(4))


@pytest.mark.parametrize(("asked", "chosen"), [("1", 1), ("2", 2), ("5", 4), ("100", 12), ("", 12)])
def test_the_number_divides_the_micro_batches(asked, chosen, monkeypatch):
    monkeypatch.setenv(VARIABLE, asked)
    executor = poptorch.trainingModel(Regression(), make_options(1, 12, mode=ALL))
    executor(*regression_data(24))
    assert executor._session.runner.as_one.number == chosen


def test_there_are_no_more_than_memory_is_meant_for(monkeypatch):
    from poptorch.engine.as_one import number

    monkeypatch.setenv(VARIABLE, "")
    monkeypatch.setattr(number, "BUDGET", 400)  # bytes; a micro-batch of 2 leaves 2 x (5 + 5 + 2) floats and a loss
    executor = poptorch.trainingModel(Regression(), make_options(1, 12, mode=ALL))
    executor(*regression_data(24))
    chosen = executor._session.runner.as_one
    assert chosen.program.bytes >= 96 and 1 < chosen.number <= 400 // chosen.program.bytes


def test_a_run_keeps_its_number(monkeypatch):
    def trained(asked, state=None):
        monkeypatch.setenv(VARIABLE, asked)
        model = Regression()
        optimizer = poptorch.optim.Adam(model.parameters(), lr=0.1)
        if state is not None:
            optimizer.load_state_dict(state)
        executor = poptorch.trainingModel(model, make_options(1, 12, mode=ALL), optimizer)
        executor(*regression_data(24))
        return executor._session.runner.as_one.number, optimizer.state_dict()

    number, state = trained("4")
    assert number == 4 and state[RECORD] == {"micro-batches as one": 4}
    assert trained("", state)[0] == 4
    assert trained("6", state)[0] == 6
    assert trained("")[0] == 12


def test_a_run_with_other_micro_batches_has_another_number(monkeypatch, capsys):
    monkeypatch.setenv(VARIABLE, "")
    optimizer = None
    for accumulation in (6, 4):
        model = Regression()
        state = None if optimizer is None else optimizer.state_dict()
        optimizer = poptorch.optim.Adam(model.parameters(), lr=0.1)
        if state is not None:
            optimizer.load_state_dict(state)
        executor = poptorch.trainingModel(model, make_options(1, accumulation, mode=ALL), optimizer)
        executor(*regression_data(24))
        assert executor._session.runner.as_one.number == accumulation
    line = "micro-batches as one: 4. The run began with 6, which does not fit its micro-batches any more"
    assert line in capsys.readouterr().err


def test_what_fails_as_one_runs_one_at_a_time(monkeypatch):
    from poptorch.engine.as_one import rules

    def failing(self, *operands):
        raise RuntimeError("no room")

    monkeypatch.setenv(VARIABLE, "1")
    expected = poptorch.trainingModel(Regression(), make_options(1, 4, mode=ALL))(*regression_data(8))
    monkeypatch.setenv(VARIABLE, "")
    monkeypatch.setattr(rules.Linear, "forward", failing)
    executor = poptorch.trainingModel(Regression(), make_options(1, 4, mode=ALL))
    torch.testing.assert_close(executor(*regression_data(8)), expected, rtol=0, atol=0)
    assert executor._session.runner.as_one.number == 1
    assert executor._session.runner.as_one.reason == "RuntimeError: no room"


def test_an_error_of_the_program_is_that_of_one_micro_batch(monkeypatch):
    monkeypatch.setenv(VARIABLE, "")
    model = Body(lambda m, x: poptorch.identity_loss(m.e(x).sum(), "sum"), e=torch.nn.Embedding(4, 3))
    executor = poptorch.trainingModel(model, make_options(1, 4, mode=ALL))
    executor.compile(torch.zeros(4, 2, dtype=torch.int64))
    with pytest.raises(IndexError):
        executor(torch.full((4, 2), 9))


def recorded(options=None, state=None):
    """(as_one, the record of numerics) of a program that has trained with Adam."""
    model = Regression()
    optimizer = poptorch.optim.Adam(model.parameters(), lr=0.1)
    if state is not None:
        optimizer.load_state_dict(state)
    executor = poptorch.trainingModel(model, options or make_options(1, 4, mode=ALL), optimizer)
    executor(*regression_data(8))
    return executor._session.runner.as_one, optimizer.state_dict()


def test_what_fails_as_one_is_recorded_as_what_it_was(monkeypatch):
    from poptorch.engine.as_one import rules

    def failing(self, *operands):
        raise RuntimeError("no room")

    monkeypatch.setenv(VARIABLE, "")
    monkeypatch.setattr(rules.Linear, "forward", failing)
    assert recorded()[1][RECORD] == {NAME: 1}


def test_a_run_that_may_not_have_several_any_more_says_so(monkeypatch, capsys):
    monkeypatch.setenv(VARIABLE, "")
    as_one, state = recorded()
    assert as_one.number == 4
    options = make_options(1, 4, mode=ALL)
    options.Precision.enableFloatingPointExceptions(True)
    as_one, state = recorded(options, state)
    assert as_one.number == 1 and state[RECORD] == {NAME: 1}
    assert "The run began with 4, which is not possible here (each is checked" in capsys.readouterr().err


def test_a_wrong_number_is_told_when_the_program_is_wrapped(monkeypatch):
    monkeypatch.setenv(VARIABLE, "many")
    with pytest.raises(poptorch.Error, match=f"{VARIABLE}=many is not a number"):
        poptorch.trainingModel(Regression(), make_options(1, 4))


def test_half_gradients_under_a_running_mean_come_one_by_one(monkeypatch):
    monkeypatch.setenv(VARIABLE, "")
    monkeypatch.setenv("POPTORCH_PORTABLE_HALF", "native")
    options = make_options(1, 4, mode=ALL)
    options.Training.setMeanAccumulationAndReplicationReductionStrategy(poptorch.MeanReductionStrategy.Running)
    options.Training.accumulationAndReplicationReductionType(poptorch.ReductionType.Mean)
    executor = poptorch.trainingModel(Regression().half(), options)
    executor(*(each.half() for each in regression_data(8)))
    assert executor._session.runner.as_one.number == 1


def test_projection_and_loss_keep_their_precision():
    """What the pass for half says of the products of a fused head reaches it."""
    graph, given = torch.fx.Graph(), {}
    hidden, weight, target = (graph.placeholder(name) for name in ("hidden", "weight", "target"))

    def head(hidden, weight, bias, target, *rest, **named):
        given.update(named)
        return torch.zeros(named["groups"]), torch.zeros(hidden.shape[:2])

    node = graph.call_function(head, (hidden, weight, None, target, "mean", -100, False), {"products": torch.bfloat16})
    rule = LinearCrossEntropy(node, frozenset({"hidden", "target"}))
    rule(torch.zeros(3, 2, 4), torch.zeros(5, 4), torch.zeros(3, 2))
    assert given == {"products": torch.bfloat16, "groups": 3}


def test_a_dropout_that_is_off_and_a_cast_keep_nothing():
    """Through torch.vmap the first kept what it was given for the backward pass."""
    aten, graph = torch.ops.aten, torch.fx.Graph()
    x = graph.placeholder("x")
    x.meta["val"] = torch.ones(2, 3)
    off = [(0.0, True), (0.5, False)]
    nodes = [graph.call_function(aten.dropout.default, (x, *how)) for how in [*off, (0.5, True)]]
    nodes.append(graph.call_function(aten.to.dtype, (x, torch.bfloat16)))
    rules = [type(choose(node, {"x"})) for node in nodes]
    assert rules == [Unchanged, Unchanged, Dropout, Unchanged]
    stacked = torch.ones(4, 2, 3, requires_grad=True) * 1.0
    assert choose(nodes[0], {"x"})(stacked) is stacked
