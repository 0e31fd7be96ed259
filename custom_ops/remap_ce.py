"""RemapCE (domain ai.graphcore, version 1): what the operator means, in plain torch.

On an IPU the input is copied into a new variable that lies linearly over the tiles, `grain_size` elements at a
time, so that what reads it (the loss over the vocabulary) finds it balanced; the gradient goes back the same way.
Elsewhere only the copy remains. remap_ce_popart.cpp is the operator on an IPU, remap_ce_torch.cpp on CPU and CUDA.
"""

from __future__ import annotations

import torch

NAMESPACE = "ai_graphcore"
SCHEMA = 'RemapCE(Tensor x, int grain_size=8, str debug_str="remap") -> Tensor'


def remap_ce(x: torch.Tensor, grain_size: int = 8, debug_str: str = "remap") -> torch.Tensor:
    """The copy of `x`, any shape and floating dtype; its gradient is a copy of the gradient.

    `grain_size` (elements) and `debug_str` only speak to an IPU. ValueError for a grain below one element.
    """
    if grain_size < 1:
        raise ValueError(f"RemapCE: grain_size must be at least 1, not {grain_size}")
    # A product and not clone(): the gradient of clone() is the same tensor, that of a product a new one. And no
    # autograd.Function, which inside an operator does not compose with torch.func.
    return x * 1


def register() -> torch.library.Library:
    """Makes remap_ce the operator torch.ops.ai_graphcore.RemapCE. It lives as long as what is returned."""
    library = torch.library.Library(NAMESPACE, "DEF")
    try:
        library.define(SCHEMA, tags=(torch.Tag.view_copy,))  # as the native operator: a copy of its input
    except (TypeError, AttributeError):  # torch before 2.1 has no tags here, and nobody there who would look
        library.define(SCHEMA)
    # Composite: autograd and tracing see through it to the product, which has its own gradient; and vmap too, said
    # apart because it would otherwise run an operator of Python once per sample.
    library.impl("RemapCE", remap_ce, "CompositeImplicitAutograd")
    library.impl("RemapCE", remap_ce, "FuncTorchBatched")
    return library
