"""A graph traced on the CPU, made right for the device and the precision it runs in."""

from __future__ import annotations

from typing import Any

import torch

from ...device.policy import Policy
from ..tracing.export import TracedGraph


def retarget(traced: TracedGraph, policy: Policy) -> None:
    """Rewrite the devices and dtypes that are written into `traced`, and move its constants.

    float64 does not exist on the device; float16 becomes float32 where the policy says so.
    """

    def rewrite(value: Any) -> Any:
        if isinstance(value, torch.device):
            return policy.device
        if isinstance(value, torch.dtype):
            return policy.compute_dtype(value)
        return value

    bodies = [
        inner
        for module in traced.modules.values()
        for inner in module.modules()
        if isinstance(inner, torch.fx.GraphModule)
    ]
    for graph in [traced.graph, *(body.graph for body in bodies)]:
        for node in graph.nodes:
            if node.op == "call_function":
                node.args = torch.fx.node.map_aggregate(node.args, rewrite)
                node.kwargs = torch.fx.node.map_aggregate(node.kwargs, rewrite)
            value = node.meta.get("val")
            if isinstance(value, torch.Tensor) and value.dtype != policy.compute_dtype(value.dtype):
                node.meta["val"] = _in_type(value, policy.compute_dtype(value.dtype))  # later passes ask for its type
    for body in bodies:
        body.recompile()
    traced.constants = {name: policy.place(tensor) for name, tensor in traced.constants.items()}


def _in_type(value: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """What a node's value is like in another type; one of torch.vmap, whose levels are over, allows no operation."""
    if torch._C._functorch.is_batchedtensor(value):
        return torch.empty(value.shape, dtype=dtype, device="meta")
    return value.to(dtype)
