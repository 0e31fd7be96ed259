"""Half models: what the program sees, and what the device holds (spec sections 3, 7 and 14)."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from programs import Body, Regression, infer, make_options, regression_data

import poptorch

X, Y = regression_data(8)


def half_executor(calls: int, lr: float = 1e-4, rounding: bool = False, **arguments):
    model = Regression().half()
    options = make_options(1, 2).randomSeed(7)
    options.Precision.enableStochasticRounding(rounding)
    arguments = {"accum_type": torch.float16, "first_order_momentum_accum_type": torch.float16, **arguments}
    optimizer = poptorch.optim.AdamW(model.parameters(), lr=lr, weight_decay=0.0, loss_scaling=16.0, **arguments)
    executor = poptorch.trainingModel(model, options, optimizer)
    outputs = [executor(X.half(), Y.half()) for _ in range(calls)]
    return executor, optimizer, outputs


def pairs(left: torch.nn.Module, right: torch.nn.Module):
    """Their parameters, side by side."""
    return zip(left.parameters(), right.parameters(), strict=True)


def test_the_program_sees_half():
    executor, _, outputs = half_executor(1)
    prediction, loss = outputs[0]
    assert prediction.dtype == loss.dtype == torch.float16
    assert all(parameter.dtype == torch.float16 for parameter in executor.model.parameters())
    assert all(value.dtype == torch.float16 for value in executor.model.state_dict().values())


def test_small_updates_are_not_lost_between_calls():
    executor, _, _ = half_executor(40, lr=1e-5)
    moved = [(p - q).abs().max().item() for p, q in pairs(executor.model, Regression())]
    assert max(moved) > 2e-4  # one update of 1e-5 does not change a half weight near 0.5


def test_the_state_continues_to_the_bit():
    executor, optimizer, _ = half_executor(3)
    model_state, state = copy.deepcopy(executor.model.state_dict()), copy.deepcopy(optimizer.state_dict())
    masters = state["ipu_master_weights"]
    assert set(masters) == set(model_state)
    for name, master in masters.items():
        assert master.dtype == torch.float32 and torch.equal(master.half(), model_state[name])
    assert state["ipu_state"]["Accl1___first.weight"].dtype == torch.float16
    assert state["ipu_state"]["Accl2___first.weight"].dtype == torch.float32

    model = Regression(seed=9).half()
    model.load_state_dict(model_state)
    resumed_optimizer = poptorch.optim.AdamW(
        model.parameters(),
        lr=1e-4,
        weight_decay=0.0,
        loss_scaling=16.0,
        accum_type=torch.float16,
        first_order_momentum_accum_type=torch.float16,
    )
    resumed_optimizer.load_state_dict(state)
    options = make_options(1, 2).randomSeed(7)
    resumed = poptorch.trainingModel(model, options, resumed_optimizer)
    for _ in range(20):
        assert torch.equal(executor(X.half(), Y.half())[0], resumed(X.half(), Y.half())[0])
    final = optimizer.state_dict()["ipu_master_weights"], resumed_optimizer.state_dict()["ipu_master_weights"]
    assert all(torch.equal(final[0][name], final[1][name]) for name in final[0])


def test_masters_begin_as_the_weights_whatever_was_in_their_memory(monkeypatch):
    """As another executor may have left it: numbers that round to the weights, and would be taken for better ones."""
    weights, empty = [p.detach().float() for p in Regression().half().parameters()], torch.empty

    def used(*args, **arguments):
        memory = empty(*args, **arguments)
        for weight in weights:
            if (weight.shape, weight.dtype, weight.device) == (memory.shape, memory.dtype, memory.device):
                memory.copy_(weight * (1 + 2**-13))
        return memory

    monkeypatch.setattr(torch, "empty", used)
    _, optimizer, _ = half_executor(1, lr=0.0)
    masters = optimizer.state_dict()["ipu_master_weights"].values()
    assert all(torch.equal(master, weight) for master, weight in zip(masters, weights, strict=True))


def test_weights_changed_on_the_host_count_more_than_masters():
    executor, optimizer, _ = half_executor(2)
    with torch.no_grad():
        executor.model.first.weight.fill_(0.25)
    executor.copyWeightsToDevice()
    masters = optimizer.state_dict()["ipu_master_weights"]
    assert masters["first.weight"].unique().item() == 0.25
    assert not torch.equal(masters["second.weight"], masters["second.weight"].half().float())  # this one is kept


@pytest.mark.parametrize("rounding", [True, False])
def test_computing_in_half_trains_too(monkeypatch, rounding):
    monkeypatch.setenv("POPTORCH_PORTABLE_HALF", "native")
    executor, optimizer, outputs = half_executor(30, lr=2e-5, rounding=rounding)
    assert "ipu_master_weights" not in optimizer.state_dict()
    moved = [(p - q.half()).abs().sum().item() for p, q in pairs(executor.model, Regression())]
    if rounding:
        again = half_executor(30, lr=2e-5, rounding=True)[0]
        assert sum(moved) > 0.0
        assert all(torch.equal(p, q) for p, q in pairs(executor.model, again.model))
    assert all(torch.isfinite(out[0]).all() for out in outputs)


def test_stochastic_rounding_saves_updates_that_rounding_to_nearest_loses(monkeypatch):
    monkeypatch.setenv("POPTORCH_PORTABLE_HALF", "native")

    def final(rounding):
        w = torch.nn.Parameter(torch.ones(4096).half())
        model = Body(lambda m, x: poptorch.identity_loss(m.w.sum() * x, "sum"), w=w)
        options = make_options(4).randomSeed(1)
        options.Precision.enableStochasticRounding(rounding)
        poptorch.trainingModel(model, options, torch.optim.SGD(model.parameters(), lr=1e-4))(torch.ones(4).half())
        return model.w.detach().float()

    assert final(False).unique().item() == 1  # 1 - 1e-4 is 1 in half
    rounded = final(True)
    assert len(rounded.unique()) > 1
    assert rounded.mean().item() == pytest.approx(1 - 4e-4, abs=3e-5)


def test_parameters_take_the_type_of_the_activation():
    def forward(m, x):
        h = F.layer_norm(F.linear(x, m.w, m.b), (4,), m.b, m.b)
        return h, x @ m.w, torch.matmul(x, m.w), torch.addmm(m.b, x, m.w), x + m.b

    members = {"w": torch.nn.Parameter(torch.eye(4)), "b": torch.nn.Parameter(torch.ones(4))}
    out = infer(forward, torch.randn(3, 4).half(), **members)
    assert [tensor.dtype for tensor in out] == [torch.float16] * 4 + [torch.float32]  # the sum is promoted


def test_a_half_constant_of_the_type_is_that_of_half():
    def forward(m, x):
        return torch.where(x > 0, x, torch.finfo(x.dtype).min)

    assert infer(forward, torch.tensor([-1.0]).half()).item() == -65504.0


def test_logits_in_half_loss_in_float():
    def forward(m, x, y):
        logits = F.linear(x, m.w)
        return F.cross_entropy(logits.float(), y)

    w = torch.nn.Parameter(torch.randn(5, 4).half())
    model = Body(forward, w=w)
    before = w.detach().double().clone().requires_grad_()
    x, y = torch.randn(6, 4).half(), torch.arange(6) % 5
    F.cross_entropy(F.linear(x.double(), before), y).backward()
    optimizer = poptorch.optim.SGD(model.parameters(), lr=1.0, loss_scaling=64.0, use_combined_accum=False)
    loss = poptorch.trainingModel(model, None, optimizer)(x, y)
    assert loss.dtype == torch.float32
    torch.testing.assert_close(model.w.detach().double(), (before - before.grad).detach(), rtol=2e-3, atol=2e-3)


def test_half_as_float_is_said_once(capsys, monkeypatch):
    monkeypatch.setattr(poptorch.notices, "_said", set())
    for _ in range(2):
        poptorch.inferenceModel(torch.nn.Linear(2, 2).half())(torch.ones(1, 2, dtype=torch.float16))
    assert capsys.readouterr().err.count("Half is slow on a CPU") == 1


MIXED = {  # layers whose parameters take the type of what they are given, shape of the input
    "Linear": (lambda: torch.nn.Linear(4, 3), (2, 4)),
    "Conv2d": (lambda: torch.nn.Conv2d(2, 3, 2), (2, 2, 3, 3)),
    "ConvTranspose2d": (lambda: torch.nn.ConvTranspose2d(2, 3, 2), (2, 2, 3, 3)),
    "BatchNorm1d": (lambda: torch.nn.BatchNorm1d(4), (2, 4)),
    "LayerNorm": (lambda: torch.nn.LayerNorm(4), (2, 4)),
    "GroupNorm": (lambda: torch.nn.GroupNorm(1, 2), (2, 2, 3)),
    "PReLU": (torch.nn.PReLU, (2, 4)),
    "LSTM": (lambda: torch.nn.LSTM(4, 3), (2, 5, 4)),
    "GRU": (lambda: torch.nn.GRU(4, 3), (2, 5, 4)),
}


@pytest.mark.parametrize("name", MIXED)
@pytest.mark.parametrize("half_input", [True, False])
def test_layers_take_the_type_of_the_activation(name, half_input):
    make, shape = MIXED[name]
    torch.manual_seed(0)
    layer = make().train(False)
    x = torch.randn(shape).half()
    expected = layer(x.float())
    layer, x = (layer, x) if half_input else (layer.half(), x.float())
    found = poptorch.inferenceModel(layer)(x)
    found, expected = (out[0] if isinstance(out, tuple) else out for out in (found, expected))
    assert found.dtype == x.dtype
    torch.testing.assert_close(found.float(), expected.detach(), rtol=2e-2, atol=2e-2)


def test_products_of_mixed_types():
    a, b = torch.randn(2, 4).half(), torch.randn(2, 4)

    def forward(m, a, b):
        return a + b, torch.einsum("ik,jk->ij", a, b), torch.einsum("ik,jk->ij", b, a), torch.cat([a, b])

    assert [out.dtype for out in infer(forward, a, b)] == [torch.float32, torch.float16, torch.float32, torch.float32]
