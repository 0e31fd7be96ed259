"""The 16-bit copies of weights that products read (device/half_products.py): which are parts of weights in two parts.

Of other weights they are made before the first pass. There they would come to lie between the activations of that pass,
and leave holes of their sizes in the C library's memory that later passes cannot fill: training GPT-2 small on 4 x 256
tokens took 2.63 GB at its peak instead of 2.60, and 4.18 instead of 3.99 with a loss that needs all logits at once.
"""

from __future__ import annotations

import torch

from ...device import half_products
from ..stages import Program
from .early_updates import TRANSPOSITIONS


@torch.no_grad()
def round_weights(program: Program, values: dict[str, torch.Tensor]) -> None:
    """Make the copies of those of `values` that products of the program multiply by, as they lie or transposed.

    Others are made when they are needed first.
    """
    for node in (n for stage in program.stages for segment in stage.segments for n in segment.module.graph.nodes):
        if node.target is half_products.linear:
            _, weight, _, dtype, native, wide = node.args
        elif node.target is half_products.matmul:  # which is linear() with the weight the other way round
            _, weight, dtype, native, wide = node.args
        else:
            continue
        transposed = (weight.target in TRANSPOSITIONS) != (node.target is half_products.matmul)
        source = weight.args[0] if weight.target in TRANSPOSITIONS else weight
        found = values.get(source.target) if native and not wide and source.op == "placeholder" else None
        if found is not None and found.dim() == 2 and found.dtype == torch.float32:
            half_products.rounded_weight(found.t() if transposed else found, dtype)


def only_multiplied(program: Program) -> frozenset[str]:
    """Values of parameters that nothing reads but products of bfloat16, as they lie or transposed."""
    reads: dict[str, bool] = {}
    for node in (n for stage in program.stages for segment in stage.segments for n in segment.module.graph.nodes):
        if node.op != "placeholder" or node.target not in program.parameters or not node.users:
            continue
        fits = all(_multiplies_by(user, node) for user in node.users)
        reads[node.target] = reads.get(node.target, True) and fits
    elsewhere = {*program.outputs, *program.watched.values(), program.loss}
    return frozenset(value for value, fits in reads.items() if fits and value not in elsewhere)


def _multiplies_by(reader: torch.fx.Node, weight: torch.fx.Node) -> bool:
    """Whether `reader` does nothing with a value but multiply by it rounded, or hand it on transposed to what does."""
    if reader.target in TRANSPOSITIONS:
        return all(user.target not in TRANSPOSITIONS and _multiplies_by(user, reader) for user in reader.users)
    if reader.target not in (half_products.linear, half_products.matmul):
        return False
    *operands, dtype, native, wide = reader.args
    others = [operand for i, operand in enumerate(operands) if i != 1]
    rounds = dtype == torch.bfloat16 and native and not wide and half_products.has_kernel(dtype)
    return rounds and operands[1] is weight and weight not in others and not reader.kwargs
