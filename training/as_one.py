"""How many micro-batches the runtime in portable/ runs as one: what the plan of a run has to count.

The runtime takes as many as leave 1 GiB behind in their forward pass, by the shapes in its graph of the model
(portable/README.md, "Micro-batches as one"). Here these bytes follow from the configuration: a plan has no graph.
"""

from __future__ import annotations

import argparse
import os

from model.config import GPT2Config
from model.layout import Layout
from model.pipeline import POSITIONS, TOKENS, Stage, has_position_embedding, last_embedding, pipeline_stages
from training.stage_memory import BIAS_COLUMNS, IPU, Device, attends_in_steps, biases

VARIABLE = "POPTORCH_PORTABLE_MICRO_BATCHES_AS_ONE"
_BUDGET = 1 << 30  # bytes
_LEFT = 4  # times as many as a pipeline over processes has spans
_OVERHEAD = 32  # what a pass takes besides its products, as so many tokens of them
_ID = 8  # bytes of an index
_LEAST_FUSED = 1024  # rows of a vocabulary from which on its logits never exist as a whole


def micro_batches_as_one(config: GPT2Config, args: argparse.Namespace, layout: Layout, device: Device) -> int:
    """How many of a weight update's micro-batches run as one: a divisor of those that a process has of its replicas.

    Args:
        config: with the positions and dropouts of the run. args: the checked flags of train_gpt2.py.
    """
    if device is IPU:
        return 1
    stages = pipeline_stages(args.layers_per_ipu, positions=has_position_embedding(config))
    micro_batches = args.gradient_accumulation * layout.replicas_a_rank
    most = micro_batches
    if layout.ranks_a_replica > 1:
        most //= _LEFT * layout.spans([stage.ipu for stage in stages])
    room = _asked_for() or min(_BUDGET // forward_bytes(config, args, device), _worth(args, layout, device, most))
    return max((number for number in range(1, min(most, room) + 1) if micro_batches % number == 0), default=1)


def _worth(args: argparse.Namespace, layout: Layout, device: Device, most: int) -> int:
    """How many as one make a pipeline over processes fastest, for fewer passes fill it worse; elsewhere `most`."""
    if layout.ranks_a_replica == 1 or not device.is_cpu:
        return most
    tokens, count = args.batch_size * args.max_len, args.gradient_accumulation
    divisors = [number for number in range(1, most + 1) if count % number == 0]
    passes = {number: count // number + layout.ranks_a_replica - 1 for number in divisors}
    return min(divisors, key=lambda number: passes[number] * (number * tokens + _OVERHEAD), default=1)


def _asked_for() -> int | None:
    """The number that the runtime is told in its environment; it refuses what is none."""
    text = os.environ.get(VARIABLE, "").strip()
    return int(text) if text.isascii() and text.isdigit() and int(text) else None


def forward_bytes(config: GPT2Config, args: argparse.Namespace, device: Device) -> int:
    """What the forward pass of one micro-batch makes; of what is computed again the largest piece, and checkpoints."""
    stages = pipeline_stages(args.layers_per_ipu, positions=has_position_embedding(config))
    sizes = [_stage_bytes(stage, config, args, device) for stage in stages]
    return sum(kept for kept, _ in sizes) + max(largest for _, largest in sizes)


def _stage_bytes(stage: Stage, config: GPT2Config, args: argparse.Namespace, device: Device) -> tuple[int, int]:
    """What a stage leaves, and its largest piece between two checkpoints of recomputation."""
    tokens = args.batch_size * args.max_len
    kept, largest = 0, 0
    made = _embeddings(stage, config, args, device)  # since the last checkpoint
    for layer in stage.layers:
        made += _block(config, args, device)
        if layer in args.recompute_checkpoint_layers:
            kept, largest, made = kept + tokens * config.n_embd * device.value, max(largest, made), 0
    if config.n_layer - 1 in stage.layers:
        widths = config.n_embd * config.final_norm + (config.embedding_size or 0)
        made += tokens * widths * device.value
    if stage.head:
        logits = config.vocab_size < _LEAST_FUSED
        made += tokens * (_ID + config.vocab_size * device.value * (logits + logits * args.remap_logit))
    return kept + made, largest


def _embeddings(stage: Stage, config: GPT2Config, args: argparse.Namespace, device: Device) -> int:
    tokens, width, made = args.batch_size * args.max_len, config.embedding_width, 0
    if TOKENS in stage.embeddings:
        made += tokens * width * (1 + config.embedding_norm + config.scale_embedding) * device.value
    if POSITIONS in stage.embeddings:  # rows of the table, and the sum
        made += args.max_len * (_ID + width * device.value) + tokens * width * device.value
    if last_embedding(config) in stage.embeddings:
        projected = config.n_embd * (config.embedding_size is not None)
        dropped = _dropped(config.n_embd, config.embd_pdrop, device)
        made += tokens * (projected + dropped) * device.value
    return made


def _block(config: GPT2Config, args: argparse.Namespace, device: Device) -> int:
    """A block: its layer norms, the products and what stands between them."""
    width, heads, length = config.n_embd, config.attention_size, args.max_len
    tokens = args.batch_size * length
    numbers = (1 if config.parallel_residual else 2) * width  # layer norms
    numbers += 3 * heads + 2 * width + 2 * config.inner_size  # the four products and the activation
    masks = 0
    if attends_in_steps(args):  # scores, scaled, with each bias, masked, their softmax, dropped; and the product
        numbers += (5 + biases(config)) * config.n_head * length + heads
        masks = 2 * length
    else:  # the columns of each bias go to queries, keys and values, those of all to the product
        columns = 0 if device.is_cpu else biases(config)
        wider = [heads + count * BIAS_COLUMNS * config.n_head for count in range(1 + columns)]
        numbers += 3 * sum(wider[1:]) + wider[-1]
    # Two sums with what was there before. A CPU drops and adds at once, what is added up before that excepted.
    apart = int(config.parallel_residual) if device.is_cpu and config.resid_pdrop else 2
    sums = 2 * _dropped(width, config.resid_pdrop, device) + apart * width
    return tokens * ((numbers + sums) * device.value + masks)


def _dropped(width: int, probability: float, device: Device) -> int:
    """Numbers of a token that dropout makes: a GPU's are counted with the noise."""
    return width * (2 if probability and not device.is_cpu else 1)
