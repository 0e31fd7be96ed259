"""What a run will take, before anything starts: the plan that --compile-only prints.

A pure function of the flags and the model's configuration, whatever the number of IPUs and processes: nothing is
allocated, and none of the processes has to be there.
"""

from __future__ import annotations

import argparse
import dataclasses
from typing import Sequence

from model.balance import ipu_operations
from model.config import GPT2Config, parameter_count
from model.layout import Layout
from model.pipeline import (
    POSITIONS,
    TOKENS,
    Stage,
    bubble,
    has_position_embedding,
    pipeline_stages,
    speed_up,
    stage_parameters,
)
from training.arithmetic import samples_per_call
from training.as_one import micro_batches_as_one
from training.stage_memory import IPU, Device, Memory, stage_memory, together

COLUMNS = ("rank", "IPU", "stage", "layers", "parameters", "weights", "gradients", "optimizer", "in flight")
LAST_COLUMNS = ("working", "total", "work")


@dataclasses.dataclass(frozen=True)
class Row:
    """What is on one IPU of a replica: its stages, their parameters and memory, and its share of the work."""

    rank: int
    ipu: int
    stages: tuple[Stage, ...]
    parameters: int
    memory: Memory
    work: float


def plan_rows(config: GPT2Config, args: argparse.Namespace, layout: Layout, device: Device) -> list[Row]:
    """A row for each IPU of the first replica.

    Args:
        config: with the positions and dropouts of the run.
        args: the checked flags of train_gpt2.py.
    """
    stages = pipeline_stages(args.layers_per_ipu, positions=has_position_embedding(config))
    work = ipu_operations(config, args.max_len, args.layers_per_ipu, args.recompute_checkpoint_layers)
    as_one = micro_batches_as_one(config, args, layout, device)
    rows = []
    for ipu, own_work in enumerate(work):
        own = tuple(stage for stage in stages if stage.ipu == ipu)
        memory = [stage_memory(stage, stages, config, args, layout, device, as_one) for stage in own] or [Memory()]
        parameters = sum(stage_parameters(stage, config) for stage in own)
        rows.append(Row(layout.rank(ipu), ipu, own, parameters, together(memory), own_work / sum(work)))
    return rows


def rank_memory(rows: Sequence[Row], rank: int) -> Memory:
    """What a rank holds with the stages of all its IPUs."""
    return together([row.memory for row in rows if row.rank == rank])


def plan_lines(config: GPT2Config, args: argparse.Namespace, layout: Layout, device: Device) -> list[str]:
    """The plan, a line each: the model, a step (one call of the training model), the table, the bubble."""
    rows = plan_rows(config, args, layout, device)
    samples = samples_per_call(args)
    return [
        f"{parameter_count(config):,} parameters in {config.n_layer} layers",
        f"a step: {samples:,} samples, {samples * args.max_len:,} tokens, {args.device_iterations} weight updates on "
        f"{args.ipus_per_replica} IPUs x {args.replication_factor} replicas",
        *table(rows, layout, device, off_chip=off_chip(args, device)),
        *_places(args, layout, device),
        *_pace(rows, config, args, layout, device),
    ]


def table(rows: Sequence[Row], layout: Layout, device: Device, off_chip: bool) -> list[str]:
    """The rows under their head, in columns, with a sum below the IPUs of a process that has several in its memory.

    `off_chip`: the optimizer's state is not in the total.
    """
    cells = [[*COLUMNS, *LAST_COLUMNS]]
    for rank in range(layout.ranks_a_replica):
        own = [row for row in rows if row.rank == rank]
        for row in own:
            stages = "+".join(str(stage.index) for stage in row.stages) or "-"
            front = [str(rank), str(row.ipu), stages, _contents(row.stages), f"{row.parameters:,}"]
            cells.append([*front, *_sizes(row.memory, off_chip), f"{row.work:.1%}"])
        if len(own) > 1 and device is not IPU:
            front = [str(rank), "all", "", "", f"{sum(row.parameters for row in own):,}"]
            memory, work = rank_memory(rows, rank), sum(row.work for row in own)
            cells.append([*front, *_sizes(memory, off_chip), f"{work:.1%}"])
    widths = [max(map(len, column)) for column in zip(*cells)]
    left = COLUMNS.index("layers")
    return [
        "  ".join(cell.ljust(width) if at == left else cell.rjust(width) for at, (cell, width) in enumerate(line))
        for line in (list(zip(row, widths)) for row in cells)
    ]


def _contents(stages: Sequence[Stage]) -> str:
    """What is in these stages, in few words: `tokens, head`, `positions, 0-3`."""
    short = {TOKENS: "tokens", POSITIONS: "positions"}
    found = [short[name] for stage in stages for name in stage.embeddings]
    layers = [layer for stage in stages for layer in stage.layers]
    if layers:
        found.append(f"{layers[0]}-{layers[-1]}" if len(layers) > 1 else f"{layers[0]}")
    return ", ".join(found + ["head"] * any(stage.head for stage in stages)) or "-"


def off_chip(args: argparse.Namespace, device: Device) -> bool:
    """Whether the optimizer's state is not in the device's own memory."""
    return not device.is_cpu and args.optimizer_state_offchip


def _sizes(memory: Memory, off_chip: bool) -> list[str]:
    """In MiB: the kinds and their sum, which on an IPU or a GPU is without an optimizer's state off chip."""
    total = memory.total - (memory.optimizer if off_chip else 0)
    return [f"{size / 2**20:,.0f}" for size in (*memory, total)]


def _places(args: argparse.Namespace, layout: Layout, device: Device) -> list[str]:
    """What the table is of, and who holds the other replicas."""
    if device is IPU:
        where = "optimizer off chip, not in the total" if args.optimizer_state_offchip else "all on chip"
        lines = [f"memory in MiB of each IPU, estimated; {where}"]
    else:
        data = f"{data_bytes(args, layout) / 2**20:,.0f} MiB of data"
        where = "; optimizer in the host's memory, not in the total" if off_chip(args, device) else ""
        lines = [f"memory in MiB of {device.name}s, estimated{where}; beside it the program itself and {data}"]
    ranks, processes = layout.ranks_a_replica, layout.processes
    if ranks > 1 and layout.replicas > 1:
        lines.append(f"{processes:,} processes: rank {ranks} r + i holds of replica r what rank i holds of the first")
    elif processes > 1 and ranks == 1:
        lines.append(f"{processes:,} processes: each holds {_count(layout.replicas_a_rank, 'whole replica')}")
    return lines


def data_bytes(args: argparse.Namespace, layout: Layout) -> int:
    """Ids and labels of a call in one process, int32."""
    samples = samples_per_call(args) // args.replication_factor * layout.replicas_a_rank
    return samples * args.max_len * 2 * 4


def _pace(
    rows: Sequence[Row], config: GPT2Config, args: argparse.Namespace, layout: Layout, device: Device
) -> list[str]:
    """The passes of an update, the bubble, and how fast a replica is at best beside one device that does everything."""
    as_one = micro_batches_as_one(config, args, layout, device)
    passes = args.gradient_accumulation * (1 if device is IPU else layout.replicas_a_rank) // as_one
    lines = []
    if as_one > 1:
        of = _count(layout.replicas_a_rank, "replica") if layout.replicas_a_rank > 1 else "a replica"
        lines = [f"{as_one:,} micro-batches of {of} run as one, {_count(passes, 'time')} a weight update"]
    if device is IPU:
        steps, what = sum(len(row.stages) for row in rows), "stages"
        shares = [row.work for row in rows]
    else:
        steps, what = layout.ranks_a_replica, "ranks"
        shares = [sum(row.work for row in rows if row.rank == rank) for rank in range(steps)]
    if len(shares) == 1:
        return [*lines, *_in_turn(rows, config, args, layout, device)]
    slowest = max(range(len(shares)), key=shares.__getitem__)
    name = f"{'IPU' if device is IPU else 'rank'} {slowest}"
    even, faster = 1 / len(shares), speed_up(shares, passes)
    each = "micro-batches" if as_one == 1 else f"times {as_one} micro-batches"
    return [
        *lines,
        f"bubble: {bubble(steps, passes):.2%} = ({steps} - 1) / ({passes:,} + {steps} - 1): {passes:,} {each} through "
        f"{steps} {what}",
        f"slowest: {name} with {shares[slowest]:.1%} of the work, evenly it were {even:.1%}; a replica is at best "
        f"{faster:.2f} times as fast as one {device.name}",
    ]


def _in_turn(
    rows: Sequence[Row], config: GPT2Config, args: argparse.Namespace, layout: Layout, device: Device
) -> list[str]:
    """Of a process that has all stages of a replica: what a process an IPU would make of it."""
    line = "bubble: none, the stages of a replica are computed in turn"
    if len(rows) > 1:
        spread = Layout(layout.replicas * len(rows), layout.replicas, len(rows))
        passes = args.gradient_accumulation // micro_batches_as_one(config, args, spread, device)
        pipeline = f"{len(rows)} a replica: {bubble(len(rows), passes):.2%}"
        faster = speed_up([row.work for row in rows], passes)
        line += f"; by a process an IPU, {pipeline}, at best {faster:.2f} times as fast"
    return [line]


def _count(number: int, noun: str) -> str:
    return f"{number:,} {noun}{'s'[: number != 1]}"
