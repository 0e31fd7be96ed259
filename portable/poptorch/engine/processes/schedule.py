"""In which order each process takes the stages of a pipeline: one forward, one backward (1F1B, PipeDream-Flush).

Harlap et al. 2018, "PipeDream"; Narayanan et al. 2021, "Memory-Efficient Pipeline-Parallel DNN Training". Here the
order comes from a simulation, so that any map of stages to processes has one, such as a first and a last stage on the
same process.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence


@dataclasses.dataclass(frozen=True)
class Task:
    """The forward or the backward pass of a span of stages on one micro-batch."""

    forward: bool
    span: int
    micro_batch: int


def schedule(
    parts: Sequence[int], costs: Sequence[float], micro_batches: int, backward: bool, in_flight: int
) -> dict[int, list[Task]]:
    """What each process does, in order.

    The backward pass goes first where both could run, and at most `in_flight` micro-batches are between the begin of
    their first and the end of their last task. Everybody who follows his list in order finishes: it is the order of a
    run that did.

    Args:
        parts: the process of each span, in the order of the forward pass.
        costs: of a forward pass of each span, in any unit; a backward pass takes twice as long.
        backward: whether there is one, as in training.
    """
    last = len(parts) - 1
    done: dict[Task, float] = {}  # when
    lists: dict[int, list[Task]] = {part: [] for part in sorted(set(parts))}
    free = dict.fromkeys(lists, 0.0)
    next_forward, next_backward = [0] * len(parts), [0] * len(parts)
    total = micro_batches * len(parts) * (2 if backward else 1)
    while len(done) < total:
        candidates: list[tuple[float, bool, int, Task]] = []
        for span, part in enumerate(parts):
            for forward, numbers in ((True, next_forward), (False, next_backward)):
                task = Task(forward, span, numbers[span])
                ready = _ready(task, last, done, in_flight, backward)
                if task.micro_batch == micro_batches or (not forward and not backward) or ready is None:
                    continue
                candidates.append((max(ready, free[part]), forward, -span, task))
        # Earliest start first, then backward passes, then the span that is furthest.
        start, forward, _, task = min(candidates, key=lambda candidate: candidate[:3])
        (next_forward if forward else next_backward)[task.span] += 1
        part = parts[task.span]
        lists[part].append(task)
        done[task] = free[part] = start + costs[task.span] * (1 if forward else 2)
    return lists


def _ready(task: Task, last: int, done: dict[Task, float], in_flight: int, backward: bool) -> float | None:
    """When what the task waits for is done; None if that is not known yet."""
    span, micro_batch = task.span, task.micro_batch
    if not task.forward:
        return done.get(Task(True, span, micro_batch) if span == last else Task(False, span + 1, micro_batch))
    if span:
        return done.get(Task(True, span - 1, micro_batch))
    if micro_batch < in_flight:
        return 0.0
    ended = Task(False, 0, micro_batch - in_flight) if backward else Task(True, last, micro_batch - in_flight)
    return done.get(ended)
