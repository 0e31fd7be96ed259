"""What happens to a traced graph before it is cut into stages, in order."""

from __future__ import annotations

import torch

from .device.attention import fuse_attention
from .device.fused_loss import fuse_losses
from .device.policy import Policy
from .device.retarget import retarget
from .engine.tracing import TracedGraph

# Operators whose dropout an inference executor turns off: position of the probability or of the training switch.
_DROPOUT_SWITCH = {
    torch.ops.aten.dropout.default: 2,
    torch.ops.aten.feature_dropout.default: 2,
    torch.ops.aten.alpha_dropout.default: 2,
    torch.ops.aten.feature_alpha_dropout.default: 2,
    torch.ops.aten.native_dropout.default: 2,
}
_SDPA = torch.ops.aten.scaled_dot_product_attention.default


def run(traced: TracedGraph, training: bool, policy: Policy) -> None:
    """Make `traced` ready for the device."""
    if not training:
        _disable_dropout(traced.graph)
        for loop in traced.modules.values():
            for body in (module for module in loop.modules() if isinstance(module, torch.fx.GraphModule)):
                _disable_dropout(body.graph)
                body.recompile()
    retarget(traced, policy)
    fuse_attention(traced, policy.device)
    if traced.loss is not None:
        fuse_losses(traced)


def _disable_dropout(graph: torch.fx.Graph) -> None:
    """PopART makes dropout the identity in every inference program, whatever mode the model is in."""
    for node in graph.nodes:
        if node.target in _DROPOUT_SWITCH:
            position = _DROPOUT_SWITCH[node.target]
            node.args = (*node.args[:position], False, *node.args[position + 1 :])
        elif node.target is _SDPA:
            if len(node.args) > 4:
                node.args = (*node.args[:4], 0.0, *node.args[5:])
            elif "dropout_p" in node.kwargs:
                node.kwargs = {**node.kwargs, "dropout_p": 0.0}
