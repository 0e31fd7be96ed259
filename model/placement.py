"""Where each part of GPT-2 runs, and what is recomputed or serialised: a pass over an untouched model.

The model knows nothing of it: blocks and checkpoints are hooks, the serialised head replaces `lm_head.project`. The
state dict stays that of the plain model.
"""

from __future__ import annotations

import functools
from typing import Any, Sequence

import poptorch
from torch import Tensor, nn

from model.gpt2 import GPT2LMHeadModel
from model.pipeline import layer_ipus, positions_ipu


def place(model: GPT2LMHeadModel, layers_per_ipu: Sequence[int], training: bool) -> list[str]:
    """Put the parts of `model` on IPUs and return one line a part for the log.

    The token embedding and the head, which mostly shares its weight, are on IPU 0, blocks as `layers_per_ipu` says. In
    training the position embedding is on IPU 1, if there is one: IPU 0 has the largest matrix already.
    """
    lines = ["token embedding --> IPU 0"]
    transformer = model.transformer
    poptorch.BeginBlock(transformer.wte, "token embedding", ipu_id=0)
    if transformer.wpe is not None:
        second = positions_ipu(layers_per_ipu, training)
        lines[0] += f", position embedding --> IPU {second}"
        poptorch.BeginBlock(transformer.wpe, "position embedding", ipu_id=second)
    for index, (block, ipu) in enumerate(zip(transformer.h, layer_ipus(layers_per_ipu))):
        poptorch.BeginBlock(block, f"layer {index}", ipu_id=ipu)
        lines.append(f"layer {index} --> IPU {ipu}")
    poptorch.BeginBlock(model.lm_head, "head", ipu_id=0)
    lines.append("head --> IPU 0")
    return lines


def _checkpoint_output(module: nn.Module, inputs: Any, output: Tensor) -> Tensor:
    return poptorch.recomputationCheckpoint(output)


def recompute(model: GPT2LMHeadModel, layers: Sequence[int]) -> None:
    """Keep only the outputs of these blocks for the backward pass and compute the rest of each again."""
    for index in layers:
        model.transformer.h[index].register_forward_hook(_checkpoint_output)


class _Outline:
    """Names the operations of a module for PopART's outliner, so that equal blocks share one piece of code.

    The attribute context cannot be copied, so that each module makes its own the first time it runs.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self._context: poptorch.Attribute | None = None

    def enter(self, module: nn.Module, inputs: Any) -> None:
        if self._context is None:
            self._context = poptorch.Attribute(__outline={"layer": self.name})
        self._context.__enter__()

    def leave(self, module: nn.Module, inputs: Any, output: Any) -> None:
        self._context.__exit__(None, None, None)


def outline(model: GPT2LMHeadModel) -> None:
    """Tell the compiler apart the embedding, the blocks and the head."""
    parts = [(model.transformer.wte, "embedding"), (model.lm_head, "head")]
    for module, name in parts + [(block, "block") for block in model.transformer.h]:
        hooks = _Outline(name)
        module.register_forward_pre_hook(hooks.enter)
        module.register_forward_hook(hooks.leave)


def _serialized_projection(factor: int, hidden: Tensor, weight: Tensor) -> Tensor:
    """(B, T, E), (V, E) -> (B, T, V) in `factor` steps over the vocabulary."""
    mode = poptorch.MatMulSerializationMode.OutputChannels
    return poptorch.serializedMatMul(hidden, weight.t(), mode, factor=factor, keep_precision=True)


def serialize_head(model: GPT2LMHeadModel, factor: int) -> None:
    """Compute the product with the head's (V, E) matrix in `factor` steps: --embedding-serialization-factor."""
    if factor > 1:
        model.lm_head.project = functools.partial(_serialized_projection, factor)


def remap_logits(logits: Tensor) -> Tensor:
    """Spread the logits evenly over the tiles before the loss (custom op RemapCE); the values stay."""
    (remapped,) = poptorch.custom_op(
        [logits],
        "RemapCE",
        "ai.graphcore",
        1,
        example_outputs=[logits],
        attributes={"grain_size": 8, "debug_str": "remap"},
    )
    return remapped
