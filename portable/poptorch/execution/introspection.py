"""The compiled program as text, for tests that look into it (spec section 10)."""

from __future__ import annotations

import json
from typing import Any

import torch

from ..engine.stages import Program


def program_as_json(program: Program) -> str:
    """{"maingraph": [{"type", "name", "inputs", "outputs", "attributes"}, …]}: the operations in program order."""
    operations = []
    for stage in program.stages:
        for segment in stage.segments:
            for node in segment.module.graph.nodes:
                if node.op in ("call_function", "call_module"):
                    operations.append(_operation(node, stage.index, stage.ipu))
    return json.dumps({"maingraph": operations})


def _operation(node: torch.fx.Node, stage: int, ipu: int) -> dict[str, Any]:
    kind = str(node.target) if isinstance(node.target, (str, torch._ops.OpOverload)) else node.target.__name__
    return {
        "type": kind,
        "name": node.name,
        "inputs": [_tensor(source) for source in node.all_input_nodes],
        "outputs": [_tensor(node)],
        "attributes": {"__ipu_number": str(ipu), "__pipeline_stage": str(stage)},
    }


def _tensor(node: torch.fx.Node) -> dict[str, Any]:
    value = node.meta.get("val")
    if not isinstance(value, torch.Tensor):
        return {"name": node.name, "type": "", "shape": ""}
    return {"name": node.name, "type": str(value.dtype).removeprefix("torch."), "shape": str(list(value.shape))}
