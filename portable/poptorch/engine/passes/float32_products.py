"""Large products of float32 with a two-dimensional operand, replaced by the kernels' (device/float32_products.py)."""

from __future__ import annotations

import torch

from ...device import float32_products
from ...device.linear_cross_entropy import linear_cross_entropy
from ..tracing.export import TracedGraph
from .patterns import bodies, graphs

aten = torch.ops.aten
_MATMUL = frozenset({aten.matmul.default, aten.mm.default})
_TARGETS = _MATMUL | {aten.linear.default, aten.addmm.default}


def has_large_products(traced: TracedGraph, half_too: bool) -> bool:
    """Whether there are products that take_products() replaces, before graphs change; `half_too`: among those of half.

    Half's are for it where they will be computed in float32.
    """
    types = (torch.float32, torch.float16) if half_too else (torch.float32,)
    return any(_sizes_fit(node, types) for graph in graphs(traced) for node in graph.nodes)


def take_products(traced: TracedGraph) -> int:
    """Replace all that are large enough; returns how many there were."""
    count = 0
    for graph in graphs(traced):
        for node in graph.nodes:
            if node.target is linear_cross_entropy and _is_float32(node):
                node.kwargs = {**node.kwargs, "products": torch.float32, "native": True}
            elif _sizes_fit(node, (torch.float32,)):
                _replace(node)
            else:
                continue
            count += 1
    for body in bodies(traced):
        body.recompile()
    return count


def _operands(node: torch.fx.Node) -> tuple[object, object, object]:
    """x, weight and bias, or None."""
    if node.target is aten.addmm.default:
        return node.args[1], node.args[2], node.args[0]
    return (*node.args, None)[:3]


def _is_float32(loss: torch.fx.Node) -> bool:
    types = {operand.meta["val"].dtype for operand in loss.args[:2]}
    return types == {torch.float32} and "products" not in loss.kwargs


def _sizes_fit(node: torch.fx.Node, types: tuple[torch.dtype, ...]) -> bool:
    if node.target not in _TARGETS or node.kwargs:
        return False
    x, weight, bias = (None if each is None else each.meta.get("val") for each in _operands(node))
    out = node.meta.get("val")
    if not all(isinstance(value, torch.Tensor) and value.dtype in types for value in (x, weight, out)):
        return False
    if weight.dim() != 2 or x.dim() < 2:
        return False
    if bias is not None and (bias.dtype != out.dtype or bias.shape != out.shape[-1:]):
        return False
    return float32_products.are_large(x.numel() // max(1, x.shape[-1]), x.shape[-1], out.shape[-1])


def _replace(node: torch.fx.Node) -> None:
    is_linear = node.target is aten.linear.default
    node.args = _operands(node)
    node.target = float32_products.linear if is_linear else float32_products.matmul
