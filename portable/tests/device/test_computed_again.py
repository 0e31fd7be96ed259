"""Operands that products compute again instead of keeping them: the same gradients, from less memory."""

from __future__ import annotations

import gc
import weakref

import pytest
import torch
import torch.nn.functional as F
from programs import Body, make_options

import poptorch
from poptorch.device import half_products, native, policy
from poptorch.device.computed_again import layer_norm, recipe_of, remember, residual_sum
from poptorch.device.gelu import bias_gelu
from poptorch.device.residual_dropout import residual_dropout
from poptorch.engine.as_one.number import VARIABLE
from poptorch.engine.passes import half_products as rewriting

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


def test_a_norm_of_a_sum_keeps_the_half_of_16_bits():
    x, weight, bias, _ = operands()
    narrow = torch.randn(2, ROWS, WIDTH).to(BFLOAT16).requires_grad_()
    middle = x * 1.0
    tensors, kept = [x, narrow, weight, bias], []
    grad = torch.randn(2, ROWS, WIDTH)
    with torch.autograd.graph.saved_tensors_hooks(lambda saved: kept.append(saved) or saved, lambda saved: saved):
        made = norm(residual_sum(narrow * 1.0, middle), weight, bias)
    sizes = [saved.numel() * saved.element_size() for saved in kept if saved.data_ptr() != middle.data_ptr()]
    assert max(sizes) == 2 * 2 * ROWS * WIDTH
    found = torch.autograd.grad(made, tensors, grad)
    expected = F.layer_norm((narrow * 1.0).float() + x * 1.0, [WIDTH], weight, bias)
    assert torch.equal(made, expected)
    assert all(map(torch.equal, found, torch.autograd.grad(expected, tensors, grad)))
    recipe, given = recipe_of(norm(residual_sum(narrow * 1.0, middle), weight, bias))
    assert torch.equal(recipe.make(given), expected)


def test_a_sum_that_was_written_to_is_kept():
    x, weight, bias, _ = operands()
    total = residual_sum(torch.ones(2, ROWS, WIDTH, dtype=BFLOAT16), x)
    with torch.no_grad():
        total[0] = 1.0
    assert torch.equal(norm(total, weight, bias), F.layer_norm(total, [WIDTH], weight, bias))
    assert recipe_of(norm(total, weight, bias))[1][0] is total


def test_a_summand_that_changes_is_noticed():
    x, weight, bias, _ = operands()
    middle = x * 1.0
    made = norm(residual_sum(torch.ones(2, ROWS, WIDTH, dtype=BFLOAT16), middle), weight, bias)
    middle.detach().add_(1.0)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        made.sum().backward()


@pytest.mark.skipif(not native.available(), reason="the kernels are not built (run `make`)")
def test_a_dropped_summand_is_dropped_alike_again():
    x, weight, bias, _ = operands()
    narrow = torch.randn(2, ROWS, WIDTH).to(BFLOAT16).requires_grad_()
    found = []
    for summand in (narrow, narrow.float()):
        made = norm(residual_dropout(summand, x, 0.4, keys=(3, 5)), weight, bias)
        found.append([made, *torch.autograd.grad(made.square().sum(), [x, narrow, weight, bias])])
    assert all(map(torch.equal, *found))


# -- which sums of a program -----------------------------------------------------------------------------------------


@pytest.fixture
def units(monkeypatch, native_products):
    """Products of bfloat16 by this CPU, whatever it has."""
    monkeypatch.setenv(policy.HALF_VARIABLE, "bfloat16")
    monkeypatch.setattr(policy, "products_of", lambda name: policy.Products(BFLOAT16, native=True))


def blocks(dropout: float, first=lambda x: x):
    """Two blocks as GPT-2 has them, with their norms before the products: (N, WIDTH) -> loss."""

    def forward(m, x):
        x = first(F.linear(x, m.w).float()).half()
        for up, down in ((m.v, m.w), (m.w, m.v)):
            a = F.dropout(F.linear(F.layer_norm(x, [WIDTH], m.g, m.b), up), dropout)
            x = a + x
            y = F.dropout(F.linear(F.layer_norm(x, [WIDTH], m.g, m.b), down), dropout)
            x = x + y
        return poptorch.identity_loss(
            F.layer_norm(x, [WIDTH], m.g, m.b).float().square().mean() + x[0, 0].float(), "none"
        )

    generator = torch.Generator().manual_seed(0)
    half = {
        name: torch.nn.Parameter(torch.randn(shape, generator=generator).half())
        for name, shape in (("w", (WIDTH, WIDTH)), ("v", (WIDTH, WIDTH)), ("g", (WIDTH,)), ("b", (WIDTH,)))
    }
    return Body(forward, **half)


def trained(model: Body, accumulation: int = 1) -> tuple[list[float], list[torch.Tensor], list[object]]:
    """Losses of three calls, the weights after them, and what the program's nodes are."""
    options = make_options(1, accumulation, mode=poptorch.OutputMode.All).randomSeed(5)
    executor = poptorch.trainingModel(model, options, torch.optim.SGD(model.parameters(), lr=0.01))
    inputs = [torch.randn(6 * accumulation, WIDTH, generator=torch.Generator().manual_seed(call)) for call in range(3)]
    losses = [executor(x.half()).flatten().tolist() for x in inputs]
    nodes = [n for stage in executor.program.stages for s in stage.segments for n in s.module.graph.nodes]
    return losses, [parameter.detach().clone() for parameter in model.parameters()], nodes


@pytest.mark.skipif(not native.available(), reason="the kernels are not built (run `make`)")
@pytest.mark.parametrize("dropout", [0.0, 0.3])
@pytest.mark.parametrize("together", ["1", "4"])
def test_every_other_sum_of_a_transformer_is_added_again(dropout, together, units, monkeypatch):
    monkeypatch.setenv(VARIABLE, together)
    losses, weights, nodes = trained(blocks(dropout), int(together))
    narrow = [n for n in nodes if n.target is (residual_dropout if dropout else residual_sum)]
    again = [n for n in narrow if not dropout or n.args[0].target is half_products.linear]
    assert len(again) == 2
    monkeypatch.setattr(rewriting._Rewriter, "_is_added_again", lambda self, node: False)
    expected = trained(blocks(dropout), int(together))
    assert losses == expected[0] and all(map(torch.equal, weights, expected[1]))


@pytest.mark.skipif(not native.available(), reason="the kernels are not built (run `make`)")
def test_sums_that_are_kept_anyway_are_not_added_again(units, monkeypatch):
    def forward(m, x):
        x = F.linear(x, m.w).float()
        normed = F.layer_norm(x, [WIDTH])
        watched = F.linear(normed.half(), m.w) + x  # a product reads it, too
        changed = F.linear(normed.half(), m.w) + x
        changed += 1.0
        loss = F.layer_norm(watched, [WIDTH]).square().sum() + (watched * watched).sum()
        return poptorch.identity_loss(loss + F.layer_norm(changed, [WIDTH]).square().sum(), "none")

    model = Body(forward, w=torch.nn.Parameter(torch.eye(WIDTH).half()))
    _, _, nodes = trained(model)
    assert residual_sum not in [node.target for node in nodes]
