"""What happens to a traced graph before it is cut into stages, in the order of run() below; start there.

Execution imports it; it imports tracing/, the kernels of device/ and what of running/ a fused operator calls.
"""

from __future__ import annotations

import torch

from ...device.policy import Policy, Products
from ..tracing.export import TracedGraph
from .attention import fuse_attention, take_kernel
from .copies import drop_copies
from .dropout import fuse_dropout
from .embedding import fuse_tied_embeddings, make_gradients_dense
from .float32_products import take_products
from .fused_loss import fuse_losses
from .gelu import fuse_gelu
from .half_products import replace_half
from .packing import pack_weights
from .retarget import retarget
from .unread import drop_unread

aten = torch.ops.aten
# Operators with dropout in them, and what turns it off: (position, value) of the training switch or the probability.
_OFF = {
    **{
        getattr(aten, name).default: (2, False)
        for stem in ("dropout", "feature_dropout", "alpha_dropout", "feature_alpha_dropout")
        for name in (stem, f"{stem}_")
    },
    aten.native_dropout.default: (2, False),
    **{cell.input: (5, 0.0) for cell in (aten.lstm, aten.gru, aten.rnn_tanh, aten.rnn_relu)},
    aten.scaled_dot_product_attention.default: (4, 0.0),
}


def run(
    traced: TracedGraph,
    training: bool,
    policy: Policy,
    products: Products | None = None,
    philox: bool = False,
    kernel_products: bool = False,
) -> None:
    """Make `traced` ready for the device.

    `products` are those of half where it is held in float32, `philox` is whether dropout has the CPU's kernels,
    `kernel_products` whether products of float32 have.
    """
    if not training:
        _disable_dropout(traced.graph)
        for loop in traced.modules.values():
            for body in (module for module in loop.modules() if isinstance(module, torch.fx.GraphModule)):
                _disable_dropout(body.graph)
                body.recompile()
    retarget(traced, policy)
    if training:
        make_gradients_dense(traced)
    else:
        drop_copies(traced)
    fuse_attention(traced, policy.device, philox)
    if philox:
        fuse_dropout(traced)
    fuse_losses(traced, products)
    if products is not None and products.dtype != torch.float32:
        replace_half(traced, products)
    take_kernel(traced, policy.device)
    if training:
        fuse_tied_embeddings(traced, policy.device)
    else:
        pack_weights(traced, policy.device)
    fuse_gelu(traced, policy.device)
    if kernel_products:
        take_products(traced)
    drop_unread(traced)


def _disable_dropout(graph: torch.fx.Graph) -> None:
    """PopART makes dropout the identity in every inference program, whatever mode the model is in."""
    for node in graph.nodes:
        position, value = _OFF.get(node.target, (0, None))
        if value is not None and len(node.args) > position:
            node.args = (*node.args[:position], value, *node.args[position + 1 :])
        elif value is not None and "dropout_p" in node.kwargs:
            node.kwargs = {**node.kwargs, "dropout_p": value}
