"""Products of float32 by the kernels: when they are taken, and what they and their gradients are."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from poptorch.device import float32_products, half_units, native
from poptorch.device.linear_cross_entropy import linear_cross_entropy
from poptorch.device.native import wide_products

needs_kernels = pytest.mark.skipif(not float32_products.available(), reason="this CPU has no AVX-512, or no kernels")


@pytest.fixture
def multiplied(monkeypatch):
    """The shapes of the kernels' products of float32."""
    shapes, multiply = [], wide_products.multiply

    def counted(left, right, *further, **options):
        shapes.append((*left.shape, right.shape[1]))
        return multiply(left, right, *further, **options)

    monkeypatch.setattr(wide_products, "multiply", counted)
    return shapes


@pytest.fixture
def times(tmp_path, monkeypatch):
    """`times(*samples)`: what products take, (seconds of torch's, of the kernels') each. Counts what was taken."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(float32_products, "available", lambda: True)
    float32_products.speed.cache_clear()
    taken = []

    def times(*samples):
        endless = iter(samples * 100)
        monkeypatch.setattr(float32_products, "_stopwatch", lambda: lambda: taken.append(next(endless)) or taken[-1])
        return taken

    yield times
    float32_products.speed.cache_clear()


@pytest.mark.parametrize(("torchs", "choice"), [(0.00125, "kernels"), (0.00115, "torch"), (0.0005, "torch")])
def test_the_median_decides_and_is_kept(times, torchs, choice):
    taken = times((0.01, 0.001), *[(torchs, 0.001)] * 9)
    assert float32_products.choice() == choice
    asked = len(taken)
    assert asked >= half_units._FEWEST
    float32_products.speed.cache_clear()
    assert float32_products.choice() == choice and len(taken) == asked


def test_what_a_busy_machine_says_is_not_kept(times):
    taken = times((0.001, 0.001), (0.009, 0.001), (0.002, 0.004))
    float32_products.choice()
    asked = len(taken)
    float32_products.speed.cache_clear()
    float32_products.choice()
    assert len(taken) > asked


def test_a_cpu_without_the_kernels_is_not_asked(monkeypatch):
    monkeypatch.setattr(float32_products, "available", lambda: False)
    monkeypatch.setattr(float32_products, "speed", lambda: pytest.fail("asked"))
    assert float32_products.choice() == "torch"


def test_no_library_no_kernels(monkeypatch):
    monkeypatch.setattr(wide_products, "library", lambda: None)
    assert not float32_products.available()
    monkeypatch.setattr(native, "available", lambda: False)
    monkeypatch.setenv(native.VARIABLE, "none")
    assert float32_products.asked_by() == "POPTORCH_PORTABLE_KERNELS=none"


@needs_kernels
def test_this_machine_answers(times, monkeypatch):
    assert float32_products.speed() > 0


def operands(seed: int = 0, *, transposed: bool = False) -> list[torch.Tensor]:
    """x (3, 7, 70), weight (50, 70), bias (50,)."""
    generator = torch.Generator().manual_seed(seed)
    x, bias = torch.randn(3, 7, 70, generator=generator), torch.randn(50, generator=generator)
    weight = torch.randn(70, 50, generator=generator).t() if transposed else torch.randn(50, 70, generator=generator)
    return [x, weight, bias]


@needs_kernels
@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("expanded", [False, True])
def test_linear_and_its_gradients(transposed, bias, expanded, multiplied):
    tensors = [tensor.requires_grad_() for tensor in operands(transposed=transposed)[: 2 + bias]]
    wide = [tensor.detach().double().requires_grad_() for tensor in tensors]
    out, expected = float32_products.linear(*tensors), F.linear(*wide)
    grad = torch.ones(()).expand_as(out) if expanded else torch.randn_like(out)
    found = torch.autograd.grad(out, tensors, grad)
    assert multiplied == [(21, 70, 50), (21, 50, 70), (70, 21, 50) if transposed else (50, 21, 70)]
    for one, other in zip((out, *found), (expected, *torch.autograd.grad(expected, wide, grad.double())), strict=True):
        torch.testing.assert_close(one.double(), other, rtol=1e-5, atol=1e-5)
    assert found[1].stride() == tensors[1].stride()


@needs_kernels
def test_only_what_is_asked_for_is_computed(multiplied):
    x, weight, bias = operands()
    float32_products.linear(x, weight.requires_grad_(), bias).sum().backward()
    assert len(multiplied) == 2 and x.grad is None


@needs_kernels
def test_matmul_takes_the_weight_the_other_way_round():
    x, weight, bias = operands()
    assert torch.equal(float32_products.matmul(x, weight.t(), bias), float32_products.linear(x, weight, bias))


@needs_kernels
def test_vmap_leaves_them_to_torch(multiplied):
    x, weight, bias = operands()
    found = torch.vmap(float32_products.linear, (0, None, None))(x, weight, bias)
    gradient = torch.func.grad(lambda weight: float32_products.linear(x, weight, bias).sum())(weight)
    assert multiplied == []
    torch.testing.assert_close(found, F.linear(x, weight, bias))
    torch.testing.assert_close(gradient, x.sum((0, 1)).expand(50, 70))


@needs_kernels
def test_a_second_derivative_raises():
    x, weight, _ = operands()
    out = float32_products.linear(x.requires_grad_(), weight)
    (grad,) = torch.autograd.grad(out.pow(2).sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        grad.sum().backward()


@needs_kernels
@pytest.mark.parametrize("at_once", [False, True])
@pytest.mark.parametrize("large", [False, True])
def test_the_heads_products(at_once, large, multiplied, monkeypatch):
    monkeypatch.setattr(float32_products, "_FEWEST", 1 if large else 1 << 30)
    generator = torch.Generator().manual_seed(0)
    tensors = [torch.randn(shape, generator=generator).requires_grad_() for shape in ((40, 30), (90, 30), (90,))]
    target = torch.randint(90, (40,), generator=generator)
    loss, _ = linear_cross_entropy(*tensors, target, "mean", -100, at_once, 2, torch.float32, True)
    loss.backward()
    assert len(multiplied) == (0 if not large else 6 if at_once else 8)  # two blocks, the logits perhaps twice
    hidden, weight, bias = (tensor.detach().double().requires_grad_() for tensor in tensors)
    F.cross_entropy(F.linear(hidden, weight, bias), target).backward()
    for tensor, wide in zip(tensors, (hidden, weight, bias), strict=True):
        torch.testing.assert_close(tensor.grad.double(), wide.grad, rtol=1e-5, atol=1e-6)
