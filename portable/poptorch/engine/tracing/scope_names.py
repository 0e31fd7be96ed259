"""Names of intermediate tensors after the modules they are computed in, in the manner of PopART's (spec section 3).

The product of `model.encoder.fc1`, a torch.nn.Linear, is "encoder/fc1/Gemm:0"; the second addition in the same module
is "Add:0/1". PopART lowers some operations to several: such names are not reproduced.
"""

from __future__ import annotations

import torch

from .export import TracedGraph
from .recording import ENTRY

_OPERATIONS = {  # torch's name: PopART's, where it is not torch's own in camel case
    "linear": "Gemm",
    "addmm": "Gemm",
    "mm": "MatMul",
    "bmm": "MatMul",
    "matmul": "MatMul",
    "embedding": "Gather",
    "index_select": "Gather",
    "conv1d": "Conv",
    "conv2d": "Conv",
    "conv3d": "Conv",
    "convolution": "Conv",
    "max_pool1d": "MaxPool",
    "max_pool2d": "MaxPool",
    "avg_pool2d": "AveragePool",
    "batch_norm": "BatchNormalization",
    "group_norm": "GroupNormalization",
    "layer_norm": "GroupNormalization",
    "mean": "ReduceMean",
    "sum": "ReduceSum",
    "cat": "Concat",
    "view": "Reshape",
    "permute": "Transpose",
    "t": "Transpose",
    "nll_loss_nd": "Nll",
    "cross_entropy_loss": "Nll",
}


def names(graph: torch.fx.Graph) -> dict[str, torch.fx.Node]:
    """The operations of `graph` that give one tensor, in program order."""
    found: dict[str, torch.fx.Node] = {}
    counts: dict[str, int] = {}
    for node in graph.nodes:
        if not isinstance(node.target, torch._ops.OpOverload) or not isinstance(node.meta.get("val"), torch.Tensor):
            continue
        stem = node.target._schema.name.split("::")[-1].rstrip("_")
        operation = _OPERATIONS.get(stem, "".join(part.capitalize() for part in stem.split("_")))
        name = "/".join([*_scope(node), f"{operation}:0"])
        counts[name] = counts.get(name, 0) + 1
        found[name if counts[name] == 1 else f"{name}/{counts[name] - 1}"] = node
    return found


def _scope(node: torch.fx.Node) -> list[str]:
    stack = node.meta.get("nn_module_stack") or {}
    path = next((path for path, _ in reversed(list(stack.values()))), "")
    return [part for part in path.removeprefix(ENTRY).split(".") if part]


def watch(traced: TracedGraph, wanted: list[str]) -> None:
    """Note the names of all intermediate tensors in `traced`, and keep those that are `wanted`.

    To be called before a loss is made a result of the graph. Names that are none of an intermediate tensor are left
    alone: they may be something else's.
    """
    found = names(traced.graph)
    traced.scope_names = tuple(found)
    output = traced.graph.output_node()
    for name in wanted:
        node = found.get(name)
        if node is None or name in traced.watched:
            continue
        with traced.graph.inserting_after(node):  # a copy: it may be written to later
            copy = traced.graph.call_function(torch.ops.aten.clone.default, (node,))
        copy.meta.update(node.meta)
        traced.watched[name] = copy
        output.args = ((*output.args[0], copy),)
