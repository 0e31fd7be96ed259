"""Products with the weights of a forward-only program, replaced by ones with weights that are packed once."""

from __future__ import annotations

import torch

from ...device import half_products, packed_linear
from ..tracing.export import TracedGraph
from ..tracing.writes import origins, written
from .patterns import only_use

aten = torch.ops.aten

# Below these sizes there is little to gain: one row reads each weight once, which packing does not change.
_FEWEST_ROWS = 8
_FEWEST_WEIGHTS = 2**18


def pack_weights(traced: TracedGraph, device: torch.device) -> int:
    """Replace large products with weights of the model, a GELU behind one included; returns how many there were."""
    if device.type != "cpu" or not packed_linear.available():
        return 0
    graph = traced.graph
    origin = origins(graph.nodes)
    changed = written(graph.nodes, traced.modules, origin)
    count = 0
    for node in list(graph.nodes):
        dtype = _type_of(node)
        if dtype is None or node.kwargs:
            continue
        x, weight, bias = (*node.args, None)[:3]
        held = origin[weight]
        if held.name not in traced.parameters or held in changed or not _is_worth_it(x, weight, node, dtype):
            continue
        last, gelu = node, None
        reader = next(iter(node.users), None)
        if only_use(node, node.target) is not None and reader.target is aten.gelu.default:
            last, gelu = reader, reader.kwargs.get("approximate", "none")
        with graph.inserting_before(node):
            packed = graph.call_function(packed_linear.packed_linear, (x, weight, bias, gelu, dtype))
        packed.meta.update(last.meta)
        last.replace_all_uses_with(packed)
        for old in dict.fromkeys((last, node)):
            graph.erase_node(old)
        count += 1
    return count


def _type_of(node: torch.fx.Node) -> torch.dtype | None:
    """The type of the operands and the result of a product that could be packed; None of others."""
    if node.target is aten.linear.default:
        return torch.float32
    if node.target is not half_products.linear:
        return None
    dtype, native, *wide = node.args[3:]
    return dtype if native and dtype == torch.bfloat16 and not any(wide) else None


def _is_worth_it(x: torch.fx.Node, weight: torch.fx.Node, product: torch.fx.Node, dtype: torch.dtype) -> bool:
    values = [node.meta.get("val") for node in (x, weight, product)]
    types = [value.dtype if isinstance(value, torch.Tensor) else None for value in values]
    if types[0] not in (torch.float32, dtype) or types[1:] != [torch.float32, dtype]:
        return False
    rows = values[0].numel() // max(1, values[0].shape[-1])
    return values[1].dim() == 2 and rows >= _FEWEST_ROWS and values[1].numel() >= _FEWEST_WEIGHTS
