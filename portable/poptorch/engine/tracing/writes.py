"""Which tensors a graph changes in place.

Buffers that change are state that must be stepped micro-batch by micro-batch; a segment that changes anything that it
did not make itself must not be run twice.
"""

from __future__ import annotations

import operator
from collections.abc import Iterable

import torch

_NORMS = {  # their schemas do not say that running statistics change: (statistics' positions, position of the switch)
    torch.ops.aten.batch_norm.default: ((3, 4), 5),
    torch.ops.aten.instance_norm.default: ((3, 4), 5),
    torch.ops.aten.native_batch_norm.default: ((3, 4), 5),
    torch.ops.aten._batch_norm_impl_index.default: ((3, 4), 5),
}


def is_norm(node: torch.fx.Node) -> bool:
    """Whether `node` is a normalisation, which changes nothing but its running statistics."""
    return node.target in _NORMS


def _written_arguments(node: torch.fx.Node) -> list[torch.fx.Node]:
    schema = getattr(node.target, "_schema", None)
    written = []
    if schema is not None:
        for index, argument in enumerate(schema.arguments):
            if argument.alias_info is None or not argument.alias_info.is_write:
                continue
            value = node.args[index] if index < len(node.args) else node.kwargs.get(argument.name)
            written.extend(item for item in _flat(value) if isinstance(item, torch.fx.Node))
    if is_norm(node):
        positions, switch = _NORMS[node.target]
        if node.args[switch]:
            written.extend(node.args[p] for p in positions if isinstance(node.args[p], torch.fx.Node))
    return written


def _flat(value: object) -> Iterable[object]:
    return value if isinstance(value, (list, tuple)) else (value,)


def _is_view(node: torch.fx.Node) -> bool:
    if node.target is operator.getitem:  # one of several results, which are views if any is
        return True
    if node.target is torch.ops.aten.dropout.default:  # switched off it returns what it was given
        return not node.args[2]
    schema = getattr(node.target, "_schema", None)
    return schema is not None and any(result.alias_info is not None for result in schema.returns)


def in_place(node: torch.fx.Node) -> bool:
    """Whether the result of `node` is its first argument, changed."""
    schema = getattr(node.target, "_schema", None)
    return schema is not None and any(
        result.alias_info is not None and result.alias_info.is_write for result in schema.returns
    )


def origins(nodes: Iterable[torch.fx.Node]) -> dict[torch.fx.Node, torch.fx.Node]:
    """For each node the one whose memory it shares: itself, or what it is a view of (or an in-place result of)."""
    origin: dict[torch.fx.Node, torch.fx.Node] = {}
    for node in nodes:
        source = next(iter(node.all_input_nodes), None)
        shared = source is not None and _is_view(node)
        origin[node] = origin.get(source, source) if shared else node
    return origin


def _targets(node: torch.fx.Node, modules: dict[str, torch.nn.Module]) -> list[torch.fx.Node]:
    if node.op == "call_module":
        return [node.args[position] for position in modules[node.target].writes]
    return _written_arguments(node)


def writers(
    nodes: Iterable[torch.fx.Node],
    modules: dict[str, torch.nn.Module],
    origin: dict[torch.fx.Node, torch.fx.Node] | None = None,
) -> dict[torch.fx.Node, list[torch.fx.Node]]:
    """The nodes whose memory some node of `nodes` writes to, views followed back to what they view, and who does.

    `modules` are the bodies of loops: the positions in `writes` of such a module name the arguments it changes.
    `origin` is origins() of the whole graph where `nodes` are a part of it.
    """
    nodes = list(nodes)
    origin = origins(nodes) if origin is None else origin
    found: dict[torch.fx.Node, list[torch.fx.Node]] = {}
    for node in nodes:
        for target in _targets(node, modules):
            found.setdefault(origin.get(target, target), []).append(node)
    return found


def written(
    nodes: Iterable[torch.fx.Node],
    modules: dict[str, torch.nn.Module],
    origin: dict[torch.fx.Node, torch.fx.Node] | None = None,
) -> set[torch.fx.Node]:
    """The nodes whose memory some node of `nodes` writes to; arguments as for writers()."""
    return set(writers(nodes, modules, origin))


def dependencies(
    nodes: Iterable[torch.fx.Node], modules: dict[str, torch.nn.Module]
) -> dict[torch.fx.Node, set[torch.fx.Node]]:
    """For each node those whose results it reads, writes into a tensor (or a view of it) since made included."""
    nodes = list(nodes)
    origin = origins(nodes)
    writers: dict[torch.fx.Node, set[torch.fx.Node]] = {}
    found = {}
    for node in nodes:
        inputs = set(node.all_input_nodes)
        found[node] = inputs.union(*(writers.get(origin[source], ()) for source in inputs))
        for target in _targets(node, modules):
            writers.setdefault(origin[target], set()).add(node)
    return found
