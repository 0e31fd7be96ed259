"""Where tensors are while forward() is traced (spec section 1)."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from programs import Body, assert_trains_like, infer, parameter

import poptorch
from poptorch import notices

X = torch.ones(2, 3)


FACTORIES = {
    "arange": lambda: torch.arange(3),
    "empty": lambda: torch.empty(3).fill_(1),
    "full": lambda: torch.full((3,), 2.0),
    "linspace": lambda: torch.linspace(0, 1, 3),
    "logspace": lambda: torch.logspace(0, 1, 3),
    "ones": lambda: torch.ones(3),
    "rand": lambda: torch.rand(3),
    "randint": lambda: torch.randint(0, 5, (3,)),
    "randn": lambda: torch.randn(3),
    "randperm": lambda: torch.randperm(3),
    "tensor": lambda: torch.tensor([1.0, 2.0, 3.0]),
    "zeros": lambda: torch.zeros(3),
    "normal": lambda: torch.normal(0.0, 1.0, (3,)),
}


@pytest.mark.parametrize("name", FACTORIES)
def test_section1_factories_without_a_device_make_device_tensors_and_say_so(name, monkeypatch, capsys):
    monkeypatch.setattr(notices, "_said", set())
    made = FACTORIES[name]
    found = infer(lambda m, x: x * 0 + made(), X)
    assert found.shape == (2, 3)
    assert f"No device set in torch.{name}()" in capsys.readouterr().err


def test_section1_like_factories_and_explicit_devices_are_silent(monkeypatch, capsys):
    monkeypatch.setattr(notices, "_said", set())

    def forward(m, x):
        like = torch.zeros_like(x) + torch.full_like(x, 2)
        return like + torch.ones(3, device="ipu") + torch.ones(3, device="ipu:0") + torch.ones(3, device=x.device)

    assert torch.equal(infer(forward, X), torch.full((2, 3), 5.0))
    assert "No device set" not in capsys.readouterr().err


HOST = {
    'device="cpu"': lambda x: x + torch.ones(3, device="cpu"),
    "LongTensor": lambda x: x + torch.LongTensor([1, 2, 3]),
    "captured": lambda x: x + X,
    "in a method": lambda x: x.add(X),
}


@pytest.mark.parametrize("name", HOST)
def test_section1_host_tensors_are_no_operands(name):
    with pytest.raises(poptorch.Error, match=r"Expected an IPU tensor but got tensor\(device=cpu\)"):
        infer(lambda m, x: HOST[name](x), X)


def test_section1_host_tensors_may_be_moved_or_returned():
    moved = infer(lambda m, x: x + torch.ones(3, device="cpu").to("ipu") + X.to(x.device), X)
    assert torch.equal(moved, 3 * X)
    _, made = infer(lambda m, x: (x, torch.ones(3, device="cpu")), X)
    assert torch.equal(made, torch.ones(3))


def test_section1_constructors_of_host_tensors_still_name_types():
    seen = []

    def forward(m, x):
        made = torch.LongTensor([1, 2])
        seen.append((isinstance(made, torch.LongTensor), isinstance(made, (torch.FloatTensor, torch.HalfTensor))))
        return x.type(torch.LongTensor), x.type(torch.HalfTensor), x.type("torch.IntTensor")

    kinds = [tensor.dtype for tensor in infer(forward, X)]
    assert kinds == [torch.int32, torch.float16, torch.int32] and seen == [(True, False)]
    assert isinstance(torch.LongTensor, type)  # outside it is what it was


class _Doubled:
    """Replaces torch.special.expit inside the trace."""

    entered = 0

    def __enter__(self):
        type(self).entered += 1
        self.original = torch.special.expit
        torch.special.expit = lambda x: x * 2

    def __exit__(self, *error):
        torch.special.expit = self.original


@pytest.fixture
def substitutions(monkeypatch):
    manager = poptorch._OverwriteContextManager
    monkeypatch.setattr(manager, "_subsitution_manager_types", [])
    return manager


def test_section1_others_may_add_patches(substitutions):
    original, before = torch.special.expit, _Doubled.entered
    substitutions.registerSubsitutionManager(_Doubled)
    substitutions.registerSubsitutionManager(_Doubled)  # once is enough
    executor = poptorch.inferenceModel(Body(lambda m, x: torch.special.expit(x)))
    assert torch.special.expit is original
    assert torch.equal(executor(X), 2 * X) and torch.equal(executor(3 * X), 6 * X)
    assert torch.special.expit is original and _Doubled.entered == before + 1
    for wrong in (3, _Doubled(), int):
        with pytest.raises(RuntimeError, match="substitution manager"):
            substitutions.registerSubsitutionManager(wrong)


def test_section1_patches_are_taken_back_when_forward_fails(substitutions):
    original = torch.special.expit
    substitutions.registerSubsitutionManager(_Doubled)

    def forward(m, x):
        raise ValueError("the program's")

    with pytest.raises(ValueError, match="the program's"):
        infer(forward, X)
    assert torch.special.expit is original


def test_vmap_in_forward():
    layer = torch.nn.Linear(3, 2)
    mapped = infer(lambda m, x: torch.vmap(lambda row: m.layer(row))(x), X, layer=layer)
    torch.testing.assert_close(mapped, layer(X))

    def loss(m, x):
        return poptorch.identity_loss(torch.vmap(lambda row: (m.w * row).square())(x), "sum")

    assert_trains_like(loss, lambda m, x: (m.w * x).square().sum(), torch.randn(4, 3), w=parameter(3))


def test_vmap_in_forward_of_a_half_model():
    """Its tensors allow no operation once its levels are over."""
    layer = torch.nn.Linear(3, 2)
    half = copy.deepcopy(layer).half()
    for _ in range(2):
        mapped = infer(lambda m, x: torch.vmap(lambda row: F.gelu(m.layer(row) + 1))(x), X.half(), layer=half)
        assert mapped.dtype == torch.float16
        torch.testing.assert_close(mapped.float(), F.gelu(layer(X) + 1), rtol=2e-2, atol=2e-2)


def test_vmap_beside_what_is_fused():
    def loss(m, x):
        mapped = torch.vmap(lambda row: (m.w * row).square())(x)
        return poptorch.identity_loss(x + torch.nn.functional.dropout(mapped, 2.0**-20, True), "sum")

    assert_trains_like(loss, lambda m, x: ((m.w * x).square() + x).sum(), torch.randn(4, 3), w=parameter(3))


def test_vmap_in_what_export_refuses(monkeypatch):
    def refuse(*args, **kwargs):
        raise torch._dynamo.exc.Unsupported("refused")

    monkeypatch.setattr(torch.export, "export", refuse)
    with pytest.raises(poptorch.Error, match="could not be traced: Unsupported: refused"):
        infer(lambda m, x: torch.vmap(lambda row: row * 2)(x), X)


def test_derivatives_of_torch_func_are_refused():
    with pytest.raises(poptorch.Error, match=r"use torch.autograd.grad\(\)"):
        infer(lambda m, x: torch.func.grad(lambda v: v.square().sum())(x), X)


def test_gradients_within_forward():
    """A penalty on the input's gradient: the double backward pass reaches the weight."""
    weight = parameter(3)

    def forward(m, x):
        x = x.detach().requires_grad_()
        (slope,) = torch.autograd.grad((m.w * x).pow(2).sum(), x, create_graph=True)
        return poptorch.identity_loss(slope.pow(2).sum(), "none")

    before = weight.detach().clone()
    model = Body(forward, w=weight)
    loss = poptorch.trainingModel(model, None, torch.optim.SGD(model.parameters(), lr=0.01))(X)
    expected = before.clone().requires_grad_()
    reference = (2 * expected.pow(2) * X).pow(2).sum()  # slope of (w x)^2 is 2 w^2 x
    reference.backward()
    torch.testing.assert_close(loss, reference.detach())
    torch.testing.assert_close(model.w.detach(), before - 0.01 * expected.grad)


ACTIVATIONS = {
    "tanh": torch.tanh,
    "in place": lambda h: (h * 1).tanh_(),
    "relu": torch.relu,
    "gelu": F.gelu,
    "softmax": lambda h: h.softmax(-1),
    "root": lambda h: (h * h + 1).sqrt(),
    "convolution": lambda h: F.conv1d(h.unsqueeze(1), h[:1, :3].unsqueeze(0), padding=1).squeeze(1),
    "product": lambda h: torch.matmul(h, h.t()) @ h,
}


@pytest.mark.parametrize("twice", [True, False])
@pytest.mark.parametrize("name", ACTIVATIONS)
def test_gradients_of_layers_within_forward(name, twice):
    """What autograd has kept of results and weights is found, and passes gradients on if it is to (`create_graph`)."""

    def forward(m, x):
        given = x.detach().requires_grad_()
        energy = ACTIVATIONS[name](m.layer(given)).pow(2).sum()
        (slope,) = torch.autograd.grad(energy, given, create_graph=twice, retain_graph=True)
        return poptorch.identity_loss((slope + m.layer(x)).pow(2).sum(), "none")

    torch.manual_seed(0)
    model = Body(forward, layer=torch.nn.Linear(4, 4))
    reference, x = copy.deepcopy(model), torch.randn(3, 4)
    loss = poptorch.trainingModel(model, None, torch.optim.SGD(model.parameters(), lr=1e-3))(x)
    expected = forward(reference, x)
    expected.backward()
    torch.testing.assert_close(loss, expected.detach())
    for own, other in zip(model.parameters(), reference.parameters(), strict=True):
        torch.testing.assert_close(own.detach(), other.detach() - 1e-3 * other.grad, rtol=1e-4, atol=1e-5)


def test_gradients_through_what_a_layer_keeps_are_refused():
    def forward(m, x):
        x = x.detach().requires_grad_()
        return torch.autograd.grad(m.layer(x).pow(2).sum(), x)[0]

    with pytest.raises(poptorch.Error, match="through a normalisation, attention or a recurrent layer"):
        infer(forward, torch.randn(3, 4), layer=torch.nn.LayerNorm(4))


def test_section1_values_that_a_torch_function_looks_at(capfd):
    def forward(m, x):
        return torch.nn.utils.rnn.pad_sequence([x, x]) if torch.any(x > 0) else x

    with pytest.raises(poptorch.Error, match="only known when the compiled program runs"):
        infer(forward, X)
    assert "def forward" not in capfd.readouterr().err


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_a_function_that_only_checks_its_values_is_computed(reduction):
    variance = torch.full((2, 1), 1e-8)
    variance[1] = 0.5

    def loss(x, variance):
        return F.gaussian_nll_loss(x, 2 * x, variance, full=True, reduction=reduction)

    torch.testing.assert_close(infer(lambda m, x, v: loss(x, v), X, variance), loss(X, variance))
