"""Gradients of GPT-2 with products in bfloat16, beside float64 and beside torch's autocast."""

import copy

import poptorch
import pytest
import torch

from model.config import GPT2Config
from model.gpt2 import GPT2LMHeadModel
from model.placement import recompute, serialize_head
from model.pretraining import PretrainingModel

SMALL = {"vocab_size": 2048, "real_vocab_size": 2040, "n_positions": 64, "n_embd": 96, "n_layer": 3, "n_head": 4}
NO_DROPOUT = {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}


def batch(samples, length, vocabulary):
    ids = torch.randint(1, vocabulary, (samples, length + 1), generator=torch.Generator().manual_seed(0))
    return ids[:, :-1].int(), ids[:, 1:].int()


def by_torch(model, inputs, autocast=False):
    """Loss and gradients of the same half weights, computed in float64, or as autocast has it."""
    model = copy.deepcopy(model).to(torch.float32 if autocast else torch.float64)
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        loss, _ = model(*inputs)
    loss.backward()
    return loss.item(), {name: parameter.grad.double() for name, parameter in model.named_parameters()}


def by_the_runtime(model, inputs):
    options = poptorch.Options()
    for name, _ in model.named_parameters():
        options.anchorTensor(name, f"Gradient___{name}")
    optimizer = poptorch.optim.SGD(model.parameters(), lr=0.0)
    executor = poptorch.trainingModel(model, options, optimizer)
    loss, _ = executor(*inputs)
    return loss.item(), {name: executor.getAnchoredTensor(name).double() for name, _ in model.named_parameters()}


def compare(config, samples, length, monkeypatch, change=lambda gpt2: None):
    """No gradient's error, by norm, is above three times autocast's, nor the loss's above rounding."""
    monkeypatch.setenv("POPTORCH_PORTABLE_HALF", "bfloat16")
    torch.manual_seed(0)
    gpt2 = GPT2LMHeadModel(config)
    model = PretrainingModel(gpt2).half().train()
    inputs = batch(samples, length, config.real_vocab_size)
    exact_loss, exact = by_torch(model, inputs)
    _, cast = by_torch(model, inputs, autocast=True)
    change(gpt2)
    loss, found = by_the_runtime(model, inputs)
    assert loss == pytest.approx(exact_loss, rel=1e-4)
    for name, gradient in exact.items():
        ours, theirs = ((each[name] - gradient).norm() / gradient.norm() for each in (found, cast))
        assert ours < 3 * theirs, f"{name}: {ours:.2e}, autocast {theirs:.2e}"
        assert ours < 0.03, name  # some eight roundings of 2^-9 each in a row


def as_a_run_has_it(gpt2):
    recompute(gpt2, range(SMALL["n_layer"]))
    serialize_head(gpt2, 4)


@pytest.mark.parametrize("change", [lambda gpt2: None, as_a_run_has_it], ids=["plain", "recomputed, serialised"])
def test_gradients(change, monkeypatch):
    compare(GPT2Config(**SMALL, **NO_DROPOUT), 3, 64, monkeypatch, change)


def test_gradients_with_a_wide_score(monkeypatch):
    """Scores that the model has in float32 whatever the precision stay so."""
    compare(GPT2Config(**SMALL, **NO_DROPOUT, reorder_and_upcast_attn=True), 3, 64, monkeypatch)


@pytest.mark.long
def test_gradients_of_gpt2_small(monkeypatch):
    compare(GPT2Config(**NO_DROPOUT), 1, 32, monkeypatch)
