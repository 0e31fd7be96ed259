"""GPT-2 as a pipeline over IPUs: its stages, what is in each, and how much work that is.

Plain numbers from a configuration: neither torch nor poptorch, so that the checks of a command line may ask.
"""

from __future__ import annotations

import dataclasses
from typing import Collection, Iterator, Sequence

from model.config import GPT2Config, block_parameters, projection_parameters

TOKENS, POSITIONS, HEAD = "token embedding", "position embedding", "head"


@dataclasses.dataclass(frozen=True)
class Stage:
    """What lies between two switches of the IPU: neighbours on one IPU are one stage.

    `embeddings` are those of TOKENS and POSITIONS that are here, `layers` the numbers of its blocks; the last layer
    norm goes with the last block, and with the head what follows it. Of a factorised embedding the projection to the
    model's width goes with the last embedding, the one back with the last block.
    """

    index: int
    ipu: int
    embeddings: tuple[str, ...] = ()
    layers: tuple[int, ...] = ()
    head: bool = False

    @property
    def parts(self) -> str:
        """What is in it, for a reader: `position embedding, layers 0-3`."""
        found = list(self.embeddings)
        if self.layers:
            first, last = self.layers[0], self.layers[-1]
            found.append(f"layer {first}" if first == last else f"layers {first}-{last}")
        return ", ".join(found + [HEAD] * self.head)


def layer_ipus(layers_per_ipu: Sequence[int]) -> list[int]:
    """The IPU of each transformer block: [0, 2, 1] gives [1, 1, 2]."""
    return [ipu for ipu, count in enumerate(layers_per_ipu) for _ in range(count)]


def positions_ipu(layers_per_ipu: Sequence[int], training: bool) -> int:
    """The IPU of the position embedding: in training 1, if there is one, for IPU 0 has the largest matrix already."""
    return 1 if training and len(layers_per_ipu) > 1 else 0


def pipeline_stages(layers_per_ipu: Sequence[int], training: bool = True, positions: bool = True) -> list[Stage]:
    """The forward stages in order: the token embedding on IPU 0, the positions, the blocks, the head on IPU 0.

    `positions`: whether the model adds some to its embeddings (has_position_embedding).
    """
    embeddings = [(0, TOKENS)]
    if positions:
        embeddings.append((positions_ipu(layers_per_ipu, training), POSITIONS))
    visits = [*embeddings, *((ipu, layer) for layer, ipu in enumerate(layer_ipus(layers_per_ipu))), (0, HEAD)]
    stages: list[Stage] = []
    for ipu, part in visits:
        if not stages or stages[-1].ipu != ipu:
            stages.append(Stage(len(stages), ipu))
        stage = stages[-1]
        if isinstance(part, int):
            stages[-1] = dataclasses.replace(stage, layers=(*stage.layers, part))
        elif part == HEAD:
            stages[-1] = dataclasses.replace(stage, head=True)
        else:
            stages[-1] = dataclasses.replace(stage, embeddings=(*stage.embeddings, part))
    return stages


def forward_stages(layers_per_ipu: Sequence[int], positions: bool = True) -> int:
    """Stages of the forward pipeline in training: 0 4 4 4 visits IPUs 0 1 2 3 0, which makes 5."""
    return len(pipeline_stages(layers_per_ipu, positions=positions))


def has_position_embedding(config: GPT2Config) -> bool:
    """Whether rows for the positions, learned or fixed, are added to those of the tokens."""
    return config.position_embedding != "alibi"


def least_micro_batches(config: GPT2Config, layers_per_ipu: Sequence[int]) -> int:
    """Micro-batches that a weight update needs: 2 n - 1 fill a pipeline of n forward stages and their backward ones."""
    return 2 * forward_stages(layers_per_ipu, has_position_embedding(config)) - 1


def shared_on_several(config: GPT2Config, layers_per_ipu: Sequence[int]) -> str:
    """What is wrong with one block on several IPUs, each of which would need its weights; empty: nothing."""
    if not config.share_layers or sum(count > 0 for count in layers_per_ipu) < 2:
        return ""
    return (
        f"its {config.n_layer} layers are one block (share_layers true), whose weights are on one IPU; put all of them "
        f"on one, such as {config.n_layer} or 0 {config.n_layer}"
    )


def parameter_sizes(stage: Stage, config: GPT2Config) -> Iterator[int]:
    """Elements of what the stage holds: each embedding, each block as a whole, the last layer norm.

    The tied matrix counts with the token embedding, a block that all layers share with the first.
    """
    into, out = projection_parameters(config)
    rows = {TOKENS: config.vocab_size, POSITIONS: config.n_positions * config.learns_positions}
    yield from (rows[name] * config.embedding_width for name in stage.embeddings)
    if TOKENS in stage.embeddings and config.embedding_norm:
        yield 2 * config.embedding_width
    if last_embedding(config) in stage.embeddings:
        yield into
    here = (0 in stage.layers) if config.share_layers else len(stage.layers)
    yield from [block_parameters(config)] * here
    if config.n_layer - 1 in stage.layers:
        yield 2 * config.n_embd * config.final_norm + out
    if stage.head and not config.tie_word_embeddings:
        yield config.vocab_size * config.embedding_width


def last_embedding(config: GPT2Config) -> str:
    """The embedding behind which the input of the first block is made."""
    return POSITIONS if has_position_embedding(config) else TOKENS


def stage_parameters(stage: Stage, config: GPT2Config) -> int:
    """Parameters of a stage; those of all stages are parameter_count(config)."""
    return sum(parameter_sizes(stage, config))


# Passes in units of the forward one: a backward pass makes two products for each of the forward pass.
TRAINING, RECOMPUTED, FORWARD = 3, 4, 1


def layer_operations(config: GPT2Config, length: int) -> int:
    """Multiplications and additions of one block for one token, forward: 2 (4 C A + 2 C I) + 4 T A.

    A is the width of all heads, C in GPT-2. The last term is attention's two products over all T positions, masked ones
    included.
    """
    width, heads = config.n_embd, config.attention_size
    return 2 * (4 * width * heads + 2 * width * config.inner_size) + 4 * length * heads


def head_operations(config: GPT2Config) -> int:
    """The same of the head: 2 V E, tied or not."""
    return 2 * config.vocab_size * config.embedding_width


def lookup_operations(config: GPT2Config) -> int:
    """The same of one embedding: a row is read and added."""
    return 2 * config.embedding_width


def projection_operations(config: GPT2Config) -> int:
    """The same of each of a factorised embedding's two projections: 2 C E; 0 without them."""
    return 0 if config.embedding_size is None else 2 * config.n_embd * config.embedding_size


def stage_operations(
    stage: Stage, config: GPT2Config, length: int, recomputed: Collection[int] = (), training: bool = True
) -> int:
    """Multiplications and additions of a stage for one token of a sample of `length`.

    In training those of forward and backward pass, and blocks in `recomputed` run forward twice.
    """
    once = TRAINING if training else FORWARD
    again = sum(layer in recomputed for layer in stage.layers) if training else 0
    passes = (len(stage.layers) - again) * once + again * RECOMPUTED
    work = passes * layer_operations(config, length) + len(stage.embeddings) * once * lookup_operations(config)
    projections = (last_embedding(config) in stage.embeddings) + (config.n_layer - 1 in stage.layers)
    work += projections * once * projection_operations(config)
    return work + stage.head * once * head_operations(config)


def bubble(steps: int, micro_batches: int) -> float:
    """The share of the time that a pipeline of equal parts is not full: (p - 1) / (m + p - 1).

    Args:
        steps: p, the parts that work at the same time, each a step behind the one before it.
        micro_batches: m, from one weight update to the next. ShardedExecution has one micro-batch in the pipeline at a
            time, whatever their number: bubble(p, 1).
    """
    return (steps - 1) / (micro_batches + steps - 1)


def speed_up(shares: Sequence[float], micro_batches: int) -> float:
    """How many times as fast parts with these shares of the work are at best as one part that does everything.

    The first micro-batch goes through all parts, and each further one ends a slowest part's time later.
    """
    return micro_batches * sum(shares) / (sum(shares) + (micro_batches - 1) * max(shares))
