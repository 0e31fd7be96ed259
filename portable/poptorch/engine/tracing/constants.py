"""Values that a traced graph computes from nothing but constants."""

from __future__ import annotations

import torch

from .export import TracedGraph
from .writes import written

_RANDOM = ("rand", "normal", "dropout", "bernoulli", "multinomial", "empty")


def constant_value(
    traced: TracedGraph, node: torch.fx.Node, changed: set[torch.fx.Node] | None = None
) -> torch.Tensor | None:
    """The value of `node` if it follows from constants and from buffers the program never writes; else None.

    Buffers that were read are noted in `traced.folded`: the program is only right while they hold these values.
    `changed` is written() of the whole graph, for who asks often.
    """
    needed: dict[torch.fx.Node, None] = {}
    pending = [node]
    while pending:
        current = pending.pop()
        if current in needed:
            continue
        needed[current] = None
        if current.op == "placeholder":
            if current.name not in traced.constants and current.name not in traced.buffers:
                return None
        elif current.op != "call_function" or any(word in str(current.target) for word in _RANDOM):
            return None
        pending.extend(current.all_input_nodes)
    changed = written(traced.graph.nodes, traced.modules) if changed is None else changed
    if not changed.isdisjoint(needed):
        return None
    values: dict[torch.fx.Node, object] = {}
    for current in sorted(needed):  # program order
        if current.op == "placeholder":
            is_constant = current.name in traced.constants
            value = traced.constants[current.name] if is_constant else traced.buffer_values[current.name]
            if not is_constant:
                traced.folded[traced.buffers[current.name]] = value.clone()
            values[current] = value.cpu()
        else:
            args, kwargs = torch.fx.node.map_arg((current.args, current.kwargs), values.__getitem__)
            kwargs = {key: torch.device("cpu") if key == "device" else value for key, value in kwargs.items()}
            values[current] = current.target(*args, **kwargs)
    return values[node] if isinstance(values[node], torch.Tensor) else None
