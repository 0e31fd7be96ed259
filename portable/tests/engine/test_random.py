"""Random numbers of a program (spec sections 1, 10 and 13)."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from programs import Body, infer, make_options, train

import poptorch


def noise(m, x):
    return x + torch.rand_like(x)


def executor(seed: int | None = 5, iterations: int = 1):
    options = make_options(iterations)
    return poptorch.inferenceModel(Body(noise), options if seed is None else options.randomSeed(seed))


def test_a_seed_gives_a_sequence():
    x = torch.zeros(4)
    first, second = executor(), executor()
    calls = [first(x) for _ in range(3)]
    assert all(torch.equal(call, second(x)) for call in calls)
    assert not torch.equal(calls[0], calls[1]) and not torch.equal(calls[0], executor(6)(x))


def test_every_micro_batch_draws_its_own():
    parts = executor(iterations=4)(torch.zeros(16)).view(4, 4)
    assert len({tuple(part.tolist()) for part in parts}) == 4


def test_each_replica_has_a_stream_of_its_own():
    def drawn():
        options = poptorch.Options().replicationFactor(2).randomSeed(5)
        options.inputReplicaGrouping(2, poptorch.CommGroupType.Consecutive)
        return poptorch.inferenceModel(Body(noise), options)(torch.zeros(3)).view(2, 3)

    first = drawn()
    assert not torch.equal(first[0], first[1]) and torch.equal(first, drawn())


@pytest.mark.parametrize("seed", [None, 5])
def test_the_random_numbers_of_the_user_are_left_alone(seed):
    model = executor(seed)
    torch.manual_seed(11)
    expected = torch.rand(3)
    torch.manual_seed(11)
    model(torch.zeros(4))  # tracing included
    model(torch.zeros(4))
    assert torch.equal(torch.rand(3), expected)


def test_manual_seed_in_forward_acts_on_nothing():
    def forward(m, x):
        torch.manual_seed(0)
        return x + torch.rand_like(x)

    torch.manual_seed(11)
    expected = torch.rand(3)
    torch.manual_seed(11)
    model = poptorch.inferenceModel(Body(forward))
    first, second = model(torch.zeros(4)), model(torch.zeros(4))
    assert torch.equal(torch.rand(3), expected) and not torch.equal(first, second)


def test_the_state_continues_the_stream():
    x = torch.zeros(4)
    model = executor()
    model(x)
    state = model.rng_state
    assert state[0] == 5 and all(isinstance(value, int) for value in state)
    expected = [model(x), model(x)]
    model.rng_state = state
    assert all(torch.equal(model(x), value) for value in expected)
    other = executor(99)
    other.compile(x)
    other.rng_state = state
    assert all(torch.equal(other(x), value) for value in expected)
    for wrong in ([], [5], [5, -1], [5, 1.5], [5, 3, 1], [5, 2, 1, 1]):
        with pytest.raises(poptorch.Error, match="rng_state needs a list"):
            model.rng_state = wrong
    model.rng_state = state
    model.detachFromDevice()
    model.attachToDevice()
    assert torch.equal(model(x), expected[0])


DROPOUTS = {
    "function": lambda x: F.dropout(x, 0.5, training=True),
    "in_place": lambda x: F.dropout(x + 0, 0.5, training=True, inplace=True),
    "feature": lambda x: F.dropout2d(x.view(1, 4, 4, 4), 0.5, training=True).flatten(),
    "alpha": lambda x: F.alpha_dropout(x, 0.5, training=True),
    "attention": lambda x: F.scaled_dot_product_attention(
        x.view(1, 1, 8, 8), x.view(1, 1, 8, 8), torch.ones(1, 1, 8, 8), dropout_p=0.5
    ).flatten(),
}


@pytest.mark.parametrize("name", list(DROPOUTS))
def test_dropout_is_off_in_inference_whatever_the_mode(name):
    out = infer(lambda m, x: DROPOUTS[name](x), torch.ones(64))
    torch.testing.assert_close(out, torch.ones(64))


def test_dropout_follows_the_mode_at_compilation_in_training():
    def forward(m, x):
        return m.dropout(x), poptorch.identity_loss(x.sum() * m.w, "sum")

    x = torch.ones(1000)
    dropout = torch.nn.Dropout(0.25)
    out, _ = train(forward, x, dropout=dropout)
    assert 0.15 < (out == 0).float().mean() < 0.35
    torch.testing.assert_close(out[out > 0].unique(), torch.tensor([1 / 0.75]))
    out, _ = train(forward, x, dropout=torch.nn.Dropout(0.25).eval())
    assert torch.equal(out, x)


def test_a_mode_changed_after_compilation_has_no_effect():
    model = Body(lambda m, x: (m.dropout(x), poptorch.identity_loss(x.sum() * m.w, "sum")))
    model.dropout, model.w = torch.nn.Dropout(0.5), torch.nn.Parameter(torch.ones(()))
    executor = poptorch.trainingModel(model)
    executor.compile(torch.ones(64))
    model.eval()
    assert (executor(torch.ones(64))[0] == 0).any()
