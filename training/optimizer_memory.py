"""How much memory an optimizer's states take, from the flags alone."""

from __future__ import annotations

import argparse

from model.config import GPT2Config
from model.pipeline import POSITIONS, TOKENS, Stage, layer_parameters, stage_parameters

HALF, FLOAT, CODE = 2, 4, 1  # bytes
MOMENTS = HALF + FLOAT  # the first moment in half, the second one in float32 (training.optimization)
_BLOCK = 256  # 8-bit numbers that share a float32 scale (training.block_quantization)


def state_bytes(stage: Stage, config: GPT2Config, args: argparse.Namespace) -> int:
    """Bytes of the states of a stage's parameters, before they are shared out among processes."""
    parameters = stage_parameters(stage, config)
    if args.optimizer == "SGD":
        return parameters * FLOAT if args.sgd_momentum else 0
    if args.optimizer.startswith("Adafactor"):
        return _sums(stage, config) * FLOAT
    if args.optimizer == "AdamW8bit":
        vectors = len(stage.layers) * _vectors(config) + _last_norm(stage, config)
        quantized = len(stage.layers) * (layer_parameters(config) - _vectors(config))
        scales = 2 * FLOAT * quantized // _BLOCK
        return (_embeddings(stage, config) + vectors) * 2 * FLOAT + quantized * 2 * CODE + scales
    return parameters * MOMENTS


def shares_out(args: argparse.Namespace) -> bool:
    """Whether --replicated-tensor-sharding divides the states: Adafactor's sums are of whole matrices."""
    return args.replicated_tensor_sharding and not args.optimizer.startswith("Adafactor")


def _vectors(config: GPT2Config) -> int:
    """Elements of a block's biases and layer norms: 3 C, C, I and C, and twice 2 C."""
    return 9 * config.n_embd + config.inner_size


def _last_norm(stage: Stage, config: GPT2Config) -> int:
    return 2 * config.n_embd if config.n_layer - 1 in stage.layers else 0


def _embeddings(stage: Stage, config: GPT2Config) -> int:
    rows = {TOKENS: config.vocab_size, POSITIONS: config.n_positions}
    return sum(rows[name] * config.n_embd for name in stage.embeddings)


def _sums(stage: Stage, config: GPT2Config) -> int:
    """Rows and columns of matrices, and elements of vectors.

    A block's matrices are C x 3 C, C x C, C x I and I x C.
    """
    width, rows = config.n_embd, {TOKENS: config.vocab_size, POSITIONS: config.n_positions}
    block = 8 * width + 2 * config.inner_size + _vectors(config)
    embeddings = sum(rows[name] + width for name in stage.embeddings)
    return embeddings + len(stage.layers) * block + _last_norm(stage, config)
