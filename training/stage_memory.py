"""How much memory the stages of a pipeline take, by kind: an estimate from the flags alone.

Of IPUs it is what PopTorch's pipeline keeps on each. Elsewhere it is what a process of the runtime in portable/ holds;
`python -m benchmarks.plan_memory` compares that with what processes really take.
"""

from __future__ import annotations

import argparse
from typing import NamedTuple, Sequence

from model.config import GPT2Config, block_matrices, block_parameters
from model.layout import Layout
from model.pipeline import TOKENS, Stage, last_embedding, stage_parameters
from training.optimizer_memory import FLOAT, HALF, largest_parameter, shares_out, state_bytes


class Device(NamedTuple):
    """What a device keeps its numbers in: bytes of each, and of the largest piece of logits."""

    name: str  # for a reader
    weight: int  # with the copy that the host keeps beside it, where that is in the same memory
    gradient: int  # the sum over the micro-batches of a weight update
    fresh: int  # of one backward pass, added to that sum
    value: int  # an activation
    logits: int  # bytes held at a time by the head
    operand: int  # an activation that a product reads or makes
    copy: int = 0  # of a number of a block's weights, rounded for its products
    computes_again: bool = False  # products make what layer norms and GELU gave them a second time: it is not kept

    @property
    def is_cpu(self) -> bool:
        """Whether it is a CPU, whatever its products are made in."""
        return self.name == CPU.name


# A CPU computes in float32 beside the program's half weights; the sums of gradients and the moments stay as they are.
CPU = Device("CPU", FLOAT + HALF, HALF, FLOAT, FLOAT, 64 << 20, FLOAT)
# Products of bfloat16 (or float16) read copies of the weights, and what is kept for their backward pass is in 16 bits.
CPU_BY_TORCH = CPU._replace(operand=HALF, copy=HALF)
# The runtime's own, for AVX512_BF16, are fast: the head takes more rows at a time, and others compute again.
CPU_IN_16_BITS = CPU_BY_TORCH._replace(logits=128 << 20, computes_again=True)
# The head's float32 logits have the half ones beside them. The host's copy of the weights is in the host's memory.
GPU = Device("GPU", HALF, HALF, HALF, HALF, 3 * (256 << 20) // 2, HALF)
IPU = Device("IPU", HALF, HALF, 0, HALF, 0, HALF)
DEVICES = {"cpu": CPU, "cuda": GPU, "ipu": IPU}

_WAITING_LOGITS = 26 << 20  # bytes held at a time by a head whose gradients of logits wait

# On a GPU a bias of the scores is in further columns of queries and keys, so many a head; a CPU's kernels add it.
BIAS_COLUMNS = 8


class Memory(NamedTuple):
    """Bytes by kind."""

    weights: int = 0
    gradients: int = 0
    optimizer: int = 0
    activations: int = 0  # kept for the backward pass by the micro-batches in flight
    working: int = 0  # for the time of a pass: a block that is recomputed, a piece of the logits, fresh gradients

    @property
    def total(self) -> int:
        return sum(self)


def together(parts: Sequence[Memory]) -> Memory:
    """What several stages of one process take: one of them works at a time."""
    sums = [sum(kind) for kind in zip(*parts)]
    return Memory(*sums[:-1], working=max(part.working for part in parts))


def in_flight(stage: Stage, stages: Sequence[Stage], layout: Layout, micro_batches: int, device: Device) -> int:
    """The most micro-batches whose activations a stage keeps at the same time.

    PopART's pipeline has a step for each forward and each backward stage, 2 n - 1 in all. Processes take neighbouring
    stages as one, a span. In n spans at most n micro-batches are under way, and each goes back as soon as it can
    (1F1B). A backward pass takes as long as two forward ones: until its first micro-batch comes back a span that is d
    before the last has sent 3 d - 1 on. A replica that one process holds has one at a time.
    """
    if device is IPU:
        return 2 * (len(stages) - stage.index) - 1
    ipus = [each.ipu for each in stages]
    behind = layout.spans(ipus[stage.index :]) - 1
    return min(micro_batches, layout.spans(ipus), max(1, 3 * behind - 1))


def stage_memory(
    stage: Stage,
    stages: Sequence[Stage],
    config: GPT2Config,
    args: argparse.Namespace,
    layout: Layout,
    device: Device,
    as_one: int = 1,
) -> Memory:
    """What one of the forward `stages` takes in a process that holds it.

    Args:
        config: with the dropouts and the positions of the run.
        args: batch, length, recomputation, serialisation and optimizer placement are read.
        as_one: micro-batches that run as one, which then is what is in flight.
    """
    parameters = stage_parameters(stage, config)
    flight = as_one * in_flight(stage, stages, layout, max(1, args.gradient_accumulation // as_one), device)
    return Memory(
        weights=parameters * device.weight + _copied(stage, config, args, device) * device.copy,
        gradients=_accumulated(stage, config, args, layout, device, as_one) * device.gradient
        + _fresh_matrix(stage, config, args, layout, device, as_one),
        optimizer=state_bytes(stage, config, args) // optimizer_shards(args, layout, device),
        activations=flight * (_kept(stage, config, args, device) + _sent(stage, stages, config, args, layout, device)),
        working=_working(stage, config, args, layout, device, as_one),
    )


def _copied(stage: Stage, config: GPT2Config, args: argparse.Namespace, device: Device) -> int:
    """How many weights have a copy for their products beside them.

    The runtime's own products with Adam's kernel need none: there the copy of a matrix is one half of it.
    """
    halves = device.computes_again and args.optimizer in ("Adam", "AdamW") and not args.replicated_tensor_sharding
    return len(stage.layers) * (block_parameters(config) - halves * block_matrices(config))


def optimizer_shards(args: argparse.Namespace, layout: Layout, device: Device) -> int:
    """Into how many parts --replicated-tensor-sharding divides the optimizer's state of a stage."""
    if not shares_out(args):
        return 1
    return layout.replicas if device is IPU else layout.processes // layout.ranks_a_replica


def _accumulated(
    stage: Stage, config: GPT2Config, args: argparse.Namespace, layout: Layout, device: Device, as_one: int
) -> int:
    """How many gradients are added up until the update, or wait for it, in memory that is there for nothing else.

    Where one backward pass is all there is, a CPU updates the matrices of blocks as it goes, unless the norm of all
    gradients, or their range, comes first. The head's matrix has its sum where its gradient, or that of logits, was.
    """
    parameters = stage_parameters(stage, config)
    if not device.is_cpu or not _one_pass(args, layout, as_one):
        return parameters
    if TOKENS in stage.embeddings if config.tie_word_embeddings else stage.head:
        parameters -= config.vocab_size * config.embedding_width
    norms = args.gradient_clipping is not None or args.tensor_gradient_clipping is not None or args.auto_loss_scaling
    if config.share_layers or norms or args.optimizer not in ("Adam", "AdamW"):
        return parameters
    return parameters - len(stage.layers) * block_matrices(config)


def _one_pass(args: argparse.Namespace, layout: Layout, as_one: int) -> bool:
    """Whether an update has one backward pass of all micro-batches."""
    return layout.processes == 1 and args.gradient_accumulation * layout.replicas_a_rank == as_one


def keeps_logits(config: GPT2Config, args: argparse.Namespace, layout: Layout, device: Device, as_one: int) -> bool:
    """Whether the gradients of the logits wait for the backward pass, instead of that of the head's matrix.

    So it is of few positions by the runtime's products of bfloat16, where no other process has a part in that matrix.
    """
    rows = as_one * args.batch_size * args.max_len
    alone = layout.processes == (1 if config.tie_word_embeddings else layout.ranks_a_replica)
    whole = not args.enable_sequence_serialized
    return device.computes_again and alone and whole and rows <= 2 * config.embedding_width


def _fresh_matrix(
    stage: Stage, config: GPT2Config, args: argparse.Namespace, layout: Layout, device: Device, as_one: int
) -> int:
    """Gradients of the matrices of the vocabulary, (V, E), of one backward pass.

    A tied head's is kept until the embedding's is there, which on a CPU goes into it, or into the sum, row by row.
    """
    tied = config.tie_word_embeddings
    blocks = (2 if tied else 1) * (TOKENS in stage.embeddings) + (not tied) * stage.head
    if not blocks or not device.fresh:
        return 0
    if device.is_cpu:
        blocks -= tied
    if keeps_logits(config, args, layout, device, as_one):
        blocks -= tied or stage.head
    return blocks * config.vocab_size * config.embedding_width * device.fresh


def _kept(stage: Stage, config: GPT2Config, args: argparse.Namespace, device: Device) -> int:
    """Activations that a stage keeps of one micro-batch. Of a recomputed block that is its input."""
    tokens = args.batch_size * args.max_len
    vector = tokens * config.n_embd * device.value
    again = sum(layer in args.recompute_checkpoint_layers for layer in stage.layers)
    kept = again * vector + (len(stage.layers) - again) * block_activations(config, args, device)
    if device is IPU:
        kept += len(stage.embeddings) * vector
    elif last_embedding(config) in stage.embeddings and config.embd_pdrop and not device.is_cpu:  # of tokens, the ids
        kept += tokens * config.n_embd
    if config.n_layer - 1 in stage.layers and config.final_norm and device is not IPU:  # what the last norm was given
        kept += vector
    return kept + (2 * vector if stage.head else 0)  # the head's input and its gradient


def _sent(
    stage: Stage, stages: Sequence[Stage], config: GPT2Config, args: argparse.Namespace, layout: Layout, device: Device
) -> int:
    """What a stage keeps because it went to another process."""
    following = stages[stage.index + 1 :][:1]
    if device is IPU or all(layout.rank(stage.ipu) == layout.rank(each.ipu) for each in following):
        return 0
    return args.batch_size * args.max_len * config.n_embd * device.value


def block_activations(config: GPT2Config, args: argparse.Namespace, device: Device) -> int:
    """What one block keeps of one micro-batch for its backward pass.

    On IPUs B T C (34 + 5 H T / C) bytes: Korthikanti et al. 2022, "Reducing Activation Recomputation in Large
    Transformer Models", equation 1. Elsewhere attention is fused. Kept are the inputs of the layer norms, two or with a
    parallel residual one, of the four products and of the activation function, with queries, keys and values: of GPT-2
    8 C + 2 I numbers a token, all but the 2 C of the norms operands of products. The runtime's products of bfloat16
    compute 2 C + I of them again, and one of the norms keeps what was added to the other's input, in 16 bits. Isolated
    documents keep attention in steps.
    """
    width, length, heads = config.n_embd, args.max_len, config.attention_size
    tokens = args.batch_size * length
    if device is IPU:
        return tokens * (34 * width + 5 * config.n_head * length)
    norms = 1 if config.parallel_residual else 2
    numbers = norms * width + 2 * norms  # means and deviations with them
    operands = norms * width + 4 * heads + 2 * config.inner_size
    if device.computes_again:
        again = norms * width + config.inner_size * config.activation_function.startswith("gelu")
        operands -= again
        if norms == 2 and config.norm_position == "pre":  # the second one's argument is added up again
            numbers, operands = numbers - width, operands + width
    scores = config.n_head * length  # of one token
    masks = 0
    if config.resid_pdrop and not device.is_cpu:
        masks += 2 * width
    if attends_in_steps(args):  # probabilities, and what dropout makes of them
        operands += scores * (2 if config.attn_pdrop else 1)
        masks += length + (scores if config.attn_pdrop and not device.is_cpu else 0)
    else:
        masks += config.n_head * FLOAT  # logarithms of the sums
        if biases(config) and not device.is_cpu:  # queries, keys, values and their product with the columns of biases
            operands += 4 * biases(config) * BIAS_COLUMNS * config.n_head + heads
    return tokens * (numbers * device.value + operands * device.operand + masks)


def attends_in_steps(args: argparse.Namespace) -> bool:
    """Whether attention is not fused."""
    return args.document_boundaries == "isolated"


def biases(config: GPT2Config) -> int:
    """How many biases of the scores go into fused attention: ALiBi's, and the mask of padding."""
    return (config.position_embedding == "alibi") + (config.padding_id is not None)


def _working(
    stage: Stage, config: GPT2Config, args: argparse.Namespace, layout: Layout, device: Device, as_one: int
) -> int:
    """What a stage holds for the time of a pass, or of an update, only."""
    sharded = optimizer_shards(args, layout, device) > 1
    # a product's gradient, which is made transposed and copied
    needs = [2 * config.n_embd * config.inner_size * device.fresh] if stage.layers else [0]
    if TOKENS in stage.embeddings and sharded and device is not IPU:  # the matrix, put together from its shards
        needs.append(config.vocab_size * config.embedding_width * (FLOAT if device.is_cpu else HALF))
    if args.optimizer.startswith("Adafactor"):  # a whole parameter's gradient in float32, and its update
        needs.append(2 * largest_parameter(stage, config) * FLOAT)
    if any(layer in args.recompute_checkpoint_layers for layer in stage.layers):
        needs[0] += as_one * block_activations(config, args, device)
    if stage.head:
        needs.append(_head_working(config, args, layout, device, as_one))
    return max(needs)


def _head_working(config: GPT2Config, args: argparse.Namespace, layout: Layout, device: Device, as_one: int) -> int:
    """The logits that are there at a time, and the gradient of the matrix that several blocks of positions add up.

    Where gradients of the logits wait they are there as well, and a block of logits is smaller.
    """
    blocks = args.max_len // args.serialized_seq_len if args.enable_sequence_serialized else 1
    rows = as_one * args.batch_size * args.max_len // blocks
    if device is IPU:  # half logits and their float32 copy in the loss
        return rows * config.vocab_size * (HALF + FLOAT)
    row = config.vocab_size * (FLOAT if device.is_cpu else FLOAT + HALF)
    kept = rows * config.vocab_size * HALF * keeps_logits(config, args, layout, device, as_one)
    pieces = -(-rows // max(16, (_WAITING_LOGITS if kept else device.logits) // row))  # of one size
    logits = kept + -(-rows // pieces) * row
    if kept and _one_pass(args, layout, as_one):  # the matrix's sum comes to lie there
        logits = max(logits, config.vocab_size * config.embedding_width * device.gradient)
    return logits + (config.vocab_size * config.embedding_width * device.fresh if blocks > 1 else 0)
