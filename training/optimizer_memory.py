"""How much memory an optimizer's states take, from the flags alone."""

from __future__ import annotations

import argparse
import math
from typing import Iterator

from model.config import GPT2Config
from model.pipeline import POSITIONS, TOKENS, Stage, last_embedding, stage_parameters

HALF, FLOAT, CODE = 2, 4, 1  # bytes
MOMENTS = HALF + FLOAT  # the first moment in half, the second one in float32 (training.optimization)
BLOCK = 256  # numbers in 8 bits that share a float32 scale
LEAST_QUANTIZED = (
    4096  # elements; smaller parameters cost nothing, and their moments are float32 (Dettmers et al. 2022)
)


def state_bytes(stage: Stage, config: GPT2Config, args: argparse.Namespace) -> int:
    """Bytes of the states of a stage's parameters, before they are shared out among processes."""
    if args.optimizer == "SGD":
        return stage_parameters(stage, config) * FLOAT if args.sgd_momentum else 0
    embeddings, others = list(_embeddings(stage, config)), list(_others(stage, config))
    if args.optimizer.startswith("Adafactor"):
        return sum(map(sum, embeddings + others)) * FLOAT  # rows and columns, or a vector's elements
    if args.optimizer == "AdamW8bit":
        return sum(2 * FLOAT * math.prod(shape) for shape in embeddings) + sum(map(_in_8_bits, others))
    return stage_parameters(stage, config) * MOMENTS


def shares_out(args: argparse.Namespace) -> bool:
    """Whether --replicated-tensor-sharding divides the states: Adafactor's sums are of whole matrices."""
    return args.replicated_tensor_sharding and not args.optimizer.startswith("Adafactor")


def largest_parameter(stage: Stage, config: GPT2Config) -> int:
    """Elements of the largest one that is here."""
    return max(map(math.prod, [*_embeddings(stage, config), *_others(stage, config)]), default=0)


def _in_8_bits(shape: tuple[int, ...]) -> int:
    """Bytes of both moments of a parameter that is no embedding."""
    elements = math.prod(shape)
    if elements < LEAST_QUANTIZED:
        return 2 * FLOAT * elements
    return 2 * (CODE * elements + FLOAT * -(-elements // BLOCK))


def _embeddings(stage: Stage, config: GPT2Config) -> Iterator[tuple[int, ...]]:
    """Shapes of the embeddings that are here."""
    rows = {TOKENS: config.vocab_size, POSITIONS: config.n_positions * config.learns_positions}
    yield from ((rows[name], config.embedding_width) for name in stage.embeddings if rows[name])


def _others(stage: Stage, config: GPT2Config) -> Iterator[tuple[int, ...]]:
    """Shapes of all other parameters: those that model.pipeline.parameter_sizes counts."""
    width, inside = config.n_embd, config.embedding_size
    if TOKENS in stage.embeddings and config.embedding_norm:
        yield from [(config.embedding_width,)] * 2
    if inside is not None and last_embedding(config) in stage.embeddings:
        yield from [(inside, width), (width,)]
    for _ in range((0 in stage.layers) if config.share_layers else len(stage.layers)):
        yield from _block(config)
    if config.n_layer - 1 in stage.layers:
        yield from [(width,)] * (2 * config.final_norm)
        if inside is not None:
            yield from [(width, inside), (inside,)]
    if stage.head and not config.tie_word_embeddings:
        yield config.vocab_size, config.embedding_width


def _block(config: GPT2Config) -> Iterator[tuple[int, ...]]:
    width, inner, heads = config.n_embd, config.inner_size, config.attention_size
    yield from [(width,)] * (2 if config.parallel_residual else 4)
    yield from [(width, 3 * heads), (heads, width), (width, inner), (inner,), (inner, width), (width,)]
    if config.attention_bias:
        yield from [(3 * heads,), (width,)]
