"""What becomes of the buffers that a program writes to (spec section 9).

A float buffer keeps what was written. An integer one is a constant of the compiled program: a write to it lasts until
the micro-batch ends. Two kinds of integer buffers keep their values nevertheless: batch norm's num_batches_tracked,
which nobody but a checkpoint looks at, and those that an operator of the user's own library writes to, which PopTorch
does not know.
"""

from __future__ import annotations

import dataclasses

import torch

from ... import notices
from .export import TracedGraph
from .writes import is_norm, writers

_COUNTER = "num_batches_tracked"


@dataclasses.dataclass(frozen=True)
class BufferWrites:
    """The buffers of a program that are written to, by placeholder; `shared` by name in the module.

    kept: they hold what was written when the next micro-batch begins.
    restored: the next micro-batch finds what was uploaded.
    shared: float buffers that forward() itself writes to, which is not for replicas that share their buffers. Running
        statistics are not among them: each replica has its own.
    """

    kept: frozenset[str]
    restored: frozenset[str]
    shared: frozenset[str]

    @classmethod
    def of(cls, traced: TracedGraph) -> BufferWrites:
        """Look through the graph; a buffer that does not keep what is written to it is told once."""
        kept, restored, shared = set(), set(), set()
        for buffer, nodes in writers(traced.graph.nodes, traced.modules).items():
            if buffer.name not in traced.buffers:
                continue
            name = traced.buffers[buffer.name]
            if traced.buffer_values[buffer.name].is_floating_point():
                kept.add(buffer.name)
                if not all(map(is_norm, nodes)):
                    shared.add(name)
            elif name.rpartition(".")[2] == _COUNTER or any(map(_is_foreign, nodes)):
                kept.add(buffer.name)
            else:
                restored.add(buffer.name)
                _report(name)
        return cls(frozenset(kept), frozenset(restored), frozenset(shared))


def _is_foreign(node: torch.fx.Node) -> bool:
    """Whether an operator of some library of the user's is called."""
    return isinstance(node.target, torch._ops.OpOverload) and node.target.namespace != "aten"


def _report(name: str) -> None:
    notices.once(
        ("integer buffer", name),
        f"Integer buffer {name} is changed by forward(): integer buffers are constants of a compiled program, and each "
        "micro-batch begins with the values uploaded. A float buffer keeps what is written to it.",
    )
