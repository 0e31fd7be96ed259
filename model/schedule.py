"""When the stages of a pipeline work, by their work alone: what a plan draws.

Plain numbers: neither torch nor poptorch. Times are in units of the work of one micro-batch, forward and backward.
"""

from __future__ import annotations

from typing import Collection, NamedTuple, Sequence

from model.config import GPT2Config
from model.pipeline import TRAINING, Stage, stage_operations


class Passes(NamedTuple):
    """What a stage takes of the work of a micro-batch."""

    forward: float
    backward: float


class Event(NamedTuple):
    """What a row of the picture does, from `start` to `end`. A row that waits has no stage."""

    row: int
    kind: str  # forward, backward or waiting
    start: float
    end: float
    stage: int | None = None
    micro_batch: int | None = None


def stage_passes(
    stages: Sequence[Stage], config: GPT2Config, length: int, recomputed: Collection[int] = ()
) -> list[Passes]:
    """Of each stage in training. What is recomputed is so in the backward pass."""
    whole = [stage_operations(stage, config, length, recomputed) for stage in stages]
    once = [stage_operations(stage, config, length) / TRAINING for stage in stages]
    total = sum(whole)
    return [Passes(first / total, (all_passes - first) / total) for first, all_passes in zip(once, whole)]


def in_step(stages: Sequence[Stage], passes: Sequence[Passes], micro_batches: int) -> list[Event]:
    """IPUs under PipelinedExecution: a row each, and all go on to the next micro-batch together.

    There are 2 n - 1 steps from the first stage to its backward pass: the last stage does both passes in one. In step c
    of time the k-th is at micro-batch c - k. A step lasts as long as the IPU that has the most to do in it; what
    an IPU has to do is done in turn, and the others wait.
    """
    last = len(stages) - 1
    tasks = [[(stage.index, "forward")] for stage in stages] + [[(k, "backward")] for k in reversed(range(last))]
    tasks[last].append((last, "backward"))
    events: list[Event] = []
    now = 0.0
    rows = 1 + max(stage.ipu for stage in stages)
    for step in range(micro_batches + len(tasks) - 1):
        busy = [now] * rows
        for place, done in enumerate(tasks):
            if not 0 <= step - place < micro_batches:
                continue
            for index, kind in done:
                row = stages[index].ipu
                end = busy[row] + getattr(passes[index], kind)
                events.append(Event(row, kind, busy[row], end, index, step - place))
                busy[row] = end
        end = max(busy)
        events += [Event(row, "waiting", start, end) for row, start in enumerate(busy) if start < end]
        now = end
    return events


def in_order(
    stages: Sequence[Stage], passes: Sequence[Passes], micro_batches: int, owners: Sequence[int], in_flight: int
) -> list[Event]:
    """Processes, or one: each does the first thing that it can, backward passes before forward ones.

    Args:
        owners: the process of each stage, which has one thing to do at a time. in_flight: micro-batches under way.
    """
    last = len(stages) - 1
    tasks = [(m, "forward", 0) for m in range(micro_batches)]
    ready = {task: 0.0 for task in tasks[:in_flight]}
    waiting, free = tasks[in_flight:], [0.0] * (1 + max(owners))
    events: list[Event] = []
    while ready:
        # the earliest; of those that are possible at the same time backward passes and earlier micro-batches
        m, kind, k = task = min(ready, key=lambda t: (max(ready[t], free[owners[t[2]]]), t[1] == "forward", t[0], t[2]))
        start = max(ready.pop(task), free[owners[k]])
        end = start + getattr(passes[k], kind)
        if free[owners[k]] < start:
            events.append(Event(owners[k], "waiting", free[owners[k]], start))
        events.append(Event(owners[k], kind, start, end, k, m))
        free[owners[k]] = end
        if kind == "forward":
            ready[(m, "backward", k) if k == last else (m, "forward", k + 1)] = end
        elif k:
            ready[m, "backward", k - 1] = end
        elif waiting:
            ready[waiting.pop(0)] = end
    return sorted(events, key=lambda event: event.start)
