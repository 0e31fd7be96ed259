"""Marker operators: how a traced program says where its blocks, losses, checkpoints and loops are.

Each marker returns nothing, so that no question of aliasing, cloning or autograd arises: tracing records it as a
node in program order whose arguments are the very nodes meant, and the engine erases it once it has been read.
"""

import torch

_LIBRARY = torch.library.Library("poptorch_marker", "FRAGMENT")


def _define(schema: str) -> torch._ops.OpOverload:
    name = schema.split("(")[0]
    _LIBRARY.define(schema)
    # CompositeExplicitAutograd: one kernel for fake, CPU and CUDA tensors alike, and none for autograd.
    _LIBRARY.impl(name, lambda *args: None, "CompositeExplicitAutograd")
    operator = getattr(torch.ops.poptorch_marker, name).default
    torch.fx.node.has_side_effect(operator)  # dead-code elimination must keep it
    return operator


# A block begins: every later operation belongs to it, until the next marker.
BEGIN_BLOCK = _define("begin_block(str block_id, int ipu) -> ()")
# `x` is a loss; `reduction` is kept for messages.
MARK_LOSS = _define("mark_loss(Tensor x, str reduction) -> ()")
# `x` is kept for the backward pass; what lies between two such tensors is computed again.
CHECKPOINT = _define("checkpoint(Tensor x) -> ()")
# The body of a loop lies between the two, `inputs` being the body's arguments and `outputs` its results.
BEGIN_LOOP = _define("begin_loop(int loop, int count, Tensor[] inputs) -> ()")
END_LOOP = _define("end_loop(int loop, Tensor[] outputs) -> ()")
# A torch.autograd.Function's forward lies between the two; `function` is its position in TraceContext.functions.
BEGIN_FUNCTION = _define("begin_function(int function, Tensor[] inputs) -> ()")
END_FUNCTION = _define("end_function(int function, Tensor[] outputs) -> ()")
# The two bodies of a conditional (branch 0 then, 1 else); regions.SELECT follows them.
BEGIN_BRANCH = _define("begin_branch(int conditional, int branch, Tensor[] inputs) -> ()")
END_BRANCH = _define("end_branch(int conditional, int branch, Tensor[] outputs) -> ()")
