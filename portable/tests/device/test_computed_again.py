"""Operands that products compute again instead of keeping them: the same gradients, from less memory."""

from __future__ import annotations

import gc
import weakref

import pytest
import torch
import torch.nn.functional as F

from poptorch.device import half_products, native
from poptorch.device.computed_again import layer_norm, recipe_of, remember
from poptorch.device.gelu import bias_gelu

BFLOAT16 = torch.bfloat16
ROWS, WIDTH = 6, 32


def norm(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
    return layer_norm(x, [WIDTH], weight, bias, 1e-5)


def gelu(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
    return bias_gelu((x * weight).to(BFLOAT16), None, "tanh")


@pytest.fixture
def native_products(monkeypatch):
    """The products of half that a CPU with units for bfloat16 has, from torch's where it has none."""
    if not half_products.has_kernel(BFLOAT16):
        monkeypatch.setattr(half_products, "has_kernel", lambda _: True)
        multiply = lambda a, b, out: out.copy_(a.float() @ b.float())  # noqa: E731
        monkeypatch.setattr(half_products.wide_products, "multiply", multiply)


def operands() -> list[torch.Tensor]:
    """x (2, ROWS, WIDTH), the weight and the bias of a function (WIDTH,), and a product's weight (WIDTH, WIDTH)."""
    torch.manual_seed(0)
    shapes = (2, ROWS, WIDTH), (WIDTH,), (WIDTH,), (WIDTH, WIDTH)
    return [torch.randn(shape, requires_grad=True) for shape in shapes]


def gradients(function, forget: bool, shape: tuple[int, ...] = (2, ROWS, WIDTH)) -> list[torch.Tensor]:
    x, weight, bias, matrix = tensors = operands()
    half_products.keep_rounded(matrix)
    made = function(x, weight, bias)
    made = made.clone() if forget else made
    assert (recipe_of(made) is None) == forget
    out = half_products.linear(made.view(shape), matrix, None, BFLOAT16, native=True)
    return torch.autograd.grad(out.float().square().sum(), tensors, allow_unused=True)


@pytest.mark.skipif(not native.available(), reason="the kernels are not built (run `make`)")
@pytest.mark.parametrize("shape", [(2, ROWS, WIDTH), (2 * ROWS, WIDTH)])
@pytest.mark.parametrize("function", [norm, gelu])
def test_gradients_are_those_of_what_is_kept(function, shape, native_products):
    for ours, kept in zip(gradients(function, False, shape), gradients(function, True, shape), strict=True):
        assert ours is kept is None or torch.equal(ours, kept)


@pytest.mark.skipif(not native.available(), reason="the kernels are not built (run `make`)")
@pytest.mark.parametrize("function", [norm, gelu])
def test_what_is_computed_again_is_not_kept(function, native_products):
    x, weight, bias, matrix = operands()
    half_products.keep_rounded(matrix)
    made = function(x, weight, bias)
    there = weakref.ref(made)
    out = half_products.linear(made, matrix, None, BFLOAT16, native=True)
    del made
    gc.collect()
    assert there() is None and out.requires_grad


def test_a_layer_norm_is_torchs():
    x, weight, bias, _ = operands()
    assert torch.equal(norm(x, weight, bias), F.layer_norm(x, [WIDTH], weight, bias))
    assert torch.equal(layer_norm(x, [ROWS, WIDTH]), F.layer_norm(x, [ROWS, WIDTH]))


def test_another_part_or_order_of_it_is_not_what_was_remembered():
    x, weight, bias, _ = operands()
    made = norm(x, weight, bias)
    recipe, found = recipe_of(made.view(-1, WIDTH))
    assert torch.equal(recipe.make(found), made.view(-1, WIDTH))
    assert recipe_of(made[:1]) is recipe_of(made.transpose(0, 1)) is recipe_of(made + 0) is None


def test_what_was_written_to_is_kept():
    made = norm(*operands()[:3])
    with torch.no_grad():
        made[0] = 1.0
    assert recipe_of(made) is None


def test_an_operand_that_changes_is_noticed(native_products):
    x, weight, bias, matrix = operands()
    half_products.keep_rounded(matrix)
    middle = x * 1.0
    made = remember(middle * 2.0, lambda given: given * 2.0, middle)
    out = half_products.linear(made, matrix, None, BFLOAT16, native=True)
    middle.detach().add_(1.0)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        out.sum().backward()


def test_nothing_is_remembered_without_a_backward_pass():
    x, weight, bias, _ = (each.detach() for each in operands())
    assert recipe_of(norm(x, weight, bias)) is None
