"""Operations whose results nobody reads: example outputs of custom ops, and what a model computes for other outputs."""

from __future__ import annotations

import torch

from ..tracing.export import TracedGraph


def drop_unread(traced: TracedGraph) -> int:
    """Take them out, with what only they read; returns how many there were.

    What stays is whatever does more than compute: writes, draws random numbers (those behind would be others), checks,
    and operators that are not torch's own, of which nobody knows.
    """
    count = 0
    for node in reversed(traced.graph.nodes):
        if not node.users and _only_computes(node):
            traced.graph.erase_node(node)
            count += 1
    return count


def _only_computes(node: torch.fx.Node) -> bool:
    operator = node.target
    if node.op != "call_function" or not isinstance(operator, torch._ops.OpOverload):
        return False
    schema = operator._schema
    return (
        operator.namespace == "aten"
        and not schema.is_mutable
        and torch.Tag.nondeterministic_seeded not in operator.tags
        and any(isinstance(each.type, torch.TensorType) for each in schema.returns)
    )
