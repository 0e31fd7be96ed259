"""--layers-per-ipu auto: the blocks on each IPU such that the slowest IPU has the least work.

Embeddings and head count: the head alone can be the work of several blocks, and it is on IPU 0. An IPU that has two
stages, as IPU 0 with the token embedding and the head, takes them in turn, so that its work is that of both.
"""

from __future__ import annotations

from typing import Collection, Sequence

from model.config import GPT2Config
from model.pipeline import Stage, forward_stages, has_position_embedding, pipeline_stages, stage_operations


def ipu_operations(
    config: GPT2Config,
    length: int,
    layers_per_ipu: Sequence[int],
    recomputed: Collection[int] = (),
    training: bool = True,
) -> list[int]:
    """The work of each IPU for one token, as model.pipeline.stage_operations counts it."""
    work = [0] * len(layers_per_ipu)
    for stage in pipeline_stages(layers_per_ipu, training, has_position_embedding(config)):
        work[stage.ipu] += stage_operations(stage, config, length, recomputed, training)
    return work


def balanced_layers(
    config: GPT2Config,
    length: int,
    ipus: int,
    recomputed: Collection[int] = (),
    training: bool = True,
    micro_batches: int | None = None,
) -> list[int]:
    """Blocks on each of `ipus` IPUs, in order.

    The slowest IPU has the least work that is possible. Of all such splits it is one with the fewest stages (blocks on
    IPU 0 add two in training), of these the most even one, and of these the one with fewer blocks on the earlier IPUs,
    which keep the activations of more micro-batches.

    Args:
        length: T, the tokens of a sample.
        recomputed: the blocks that training computes twice.
        micro_batches: of a weight update. A split whose pipeline needs more of them is not taken if there is another.

    Raises:
        ValueError: an IPU other than the first would have no block.
    """
    blocks = config.n_layer
    if config.share_layers:
        if ipus > 2:
            raise ValueError(
                f"{blocks} layers that are one block (share_layers true) are on one IPU, beside the one of embedding "
                "and head; at most 2 IPUs"
            )
        return [blocks] if ipus == 1 else [0, blocks]
    if blocks < ipus - 1:
        raise ValueError(f"{blocks} blocks cannot fill IPUs 1 to {ipus - 1}; at most {blocks + 1} IPUs")
    if ipus == 1:
        return [blocks]
    alone = [Stage(0, 0, layers=(layer,)) for layer in range(blocks)]
    work = [stage_operations(stage, config, length, recomputed, training) for stage in alone]
    parts = ipu_operations(config, length, [0] * ipus, (), training)  # embeddings and head
    splits = [_split(work, parts, 0, 0)]
    room = blocks - (ipus - 1)  # for IPU 0, if each of the others has a block
    if room:
        split = _split(work, parts, 1, room)
        stages = forward_stages(split, has_position_embedding(config))
        if not training or micro_batches is None or 2 * stages - 1 <= micro_batches:
            splits.append(split)
    # min takes the first of equals: the one without blocks on IPU 0
    return min(splits, key=lambda split: max(ipu_operations(config, length, split, recomputed, training)))


def _split(work: Sequence[int], parts: Sequence[int], least: int, most: int) -> list[int]:
    """The most even split of the least slowest IPU, with `least` to `most` blocks on IPU 0 and one on each other.

    Args:
        work: of each block. parts: of each IPU without blocks.
    """
    low, high = max(parts), max(parts) + sum(work)
    while low < high:  # the least bound that some split keeps to
        middle = (low + high) // 2
        if _fits(work, parts, least, most, middle):
            high = middle
        else:
            low = middle + 1
    return _most_even(work, parts, least, most, low)


def _fits(work: Sequence[int], parts: Sequence[int], least: int, most: int, bound: int) -> bool:
    """Whether the blocks fit if each IPU takes as many as its bound allows."""
    done = 0
    for ipu, load in enumerate(parts):
        limit = most if ipu == 0 else len(work) - done
        taken = 0
        while taken < limit and load + work[done + taken] <= bound:
            load += work[done + taken]
            taken += 1
        if load > bound or (taken < least if ipu == 0 else taken < 1 and done < len(work)):
            return False
        done += taken
    return done == len(work)


def _most_even(work: Sequence[int], parts: Sequence[int], least: int, most: int, bound: int) -> list[int]:
    """Of the splits that keep to the bound the one with the smallest sum of squares, then fewer blocks in front."""
    blocks, ipus = len(work), len(parts)
    # squares[i] of the IPUs from `ipu` on, if they have the blocks from i on; None: they cannot
    squares: list[int | None] = [None] * blocks + [0]
    choices: list[list[int]] = []
    for ipu in reversed(range(ipus)):
        fewest, limit = (least, most) if ipu == 0 else (1, blocks)
        found: list[int | None] = [None] * (blocks + 1)
        choice = [0] * (blocks + 1)
        for start in range(1 if ipu == 0 else blocks + 1):
            load = parts[ipu]
            for taken in range(min(limit, blocks - start) + 1):
                load += work[start + taken - 1] if taken else 0
                if load > bound:
                    break
                rest = squares[start + taken]
                if taken < fewest or rest is None:
                    continue
                if found[start] is None or load**2 + rest < found[start]:
                    found[start], choice[start] = load**2 + rest, taken
        squares = found
        choices.insert(0, choice)
    split, start = [], 0
    for choice in choices:
        split.append(choice[start])
        start += choice[start]
    return split
