"""Weights that are updated during the backward pass, each as soon as its gradient is complete.

Where one backward pass is all there is before an update, nothing needs to be accumulated: gradients come and go one by
one. What is computed is the same, to the bit. A weight must not be read any more by then, so it is one that nothing but
one product reads: with the product's own backward pass, which gives the gradient, it is done.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch

from ...device import float32_products, half_products
from ...device.linear_cross_entropy import linear_cross_entropy
from ..stages import Program

aten = torch.ops.aten
_PRODUCTS = frozenset(
    {
        aten.linear.default, aten.addmm.default, aten.mm.default, aten.matmul.default, half_products.linear,
        half_products.matmul, float32_products.linear, float32_products.matmul,
    }
)  # fmt: skip
TRANSPOSITIONS = frozenset({aten.t.default, aten.numpy_T.default})
_FEWEST = 1 << 16  # elements; the updates of smaller ones together take fewer calls


def early(program: Program, parameters: dict[str, torch.Tensor]) -> frozenset[str]:
    """Names, among the device's `parameters`, of the large trained ones that nothing but one product reads."""
    reads: dict[str, int] = {}
    others: set[str] = set()
    for name, reader in _reads(program):
        reads[name] = reads.get(name, 0) + 1
        if reader.target not in _PRODUCTS:
            others.add(name)
    large = {name for name, tensor in parameters.items() if tensor.requires_grad and tensor.numel() >= _FEWEST}
    return frozenset(name for name in large - others if reads.get(name) == 1)


def heads(program: Program) -> frozenset[str]:
    """Names of the parameters that fused losses read: they have memory for gradients (tied_embedding.py)."""
    return frozenset(name for name, reader in _reads(program) if reader.target is linear_cross_entropy)


def _reads(program: Program) -> Iterator[tuple[str, torch.fx.Node]]:
    """Names of parameters, each with a node that reads it."""
    for stage in program.stages:
        for segment in stage.segments:
            for node in segment.module.graph.find_nodes(op="placeholder"):
                name = program.parameters.get(node.target)
                for reader in _readers(node) if name is not None else ():
                    yield name, reader


def _readers(node: torch.fx.Node) -> Iterator[torch.fx.Node]:
    """What reads a value, as it lies or transposed; once for each operand that it is of a reader."""
    for user in node.users:
        if user.target in TRANSPOSITIONS:
            yield from _readers(user)
        else:
            count = 0

            def found(source: torch.fx.Node) -> torch.fx.Node:
                nonlocal count
                count += source is node
                return source

            torch.fx.node.map_arg((user.args, user.kwargs), found)
            yield from [user] * count
