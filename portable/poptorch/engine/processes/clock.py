"""What several processes did when, on one clock: that of the first one."""

from __future__ import annotations

import time
from typing import Any

import torch
import torch.distributed as dist

from .reduction import exchange

now = time.perf_counter
_ROUNDS = 32  # trips to the first process and back, of which the fastest counts


def _offset() -> float:
    """Seconds to add to `now()` here for what it is in the first process. All processes must call it.

    As in Mills's Network Time Protocol (RFC 5905): the answer was given in the middle of the trip. The error is at most
    half of the fastest trip.
    """
    rank, best = dist.get_rank(), (float("inf"), 0.0)
    for other in range(1, dist.get_world_size()):
        for _ in range(_ROUNDS if rank in (0, other) else 0):
            told = torch.zeros(1, dtype=torch.float64)
            if rank == 0:
                dist.recv(told, other)
                dist.send(torch.tensor([now()], dtype=torch.float64), other)
                continue
            begun = now()
            dist.send(told, 0)
            dist.recv(told, 0)
            trip = now() - begun
            best = min(best, (trip, told.item() - begun - trip / 2))
    return best[1]


def gather(
    events: list[dict[str, Any]], facts: dict[str, Any]
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]] | None:
    """Events and facts of all processes in the first one, None elsewhere. All processes must call it.

    An event has a `start` and an `end` by `now()`; here it gets the `rank`, and the clock becomes the first process's.
    Facts come as they are, one of each process in their order.
    """
    rank, told = dist.get_rank(), [None] * dist.get_world_size()
    with exchange():
        offset = _offset()
        mine = [{**e, "rank": rank, "start": e["start"] + offset, "end": e["end"] + offset} for e in events]
        dist.gather_object((mine, facts), told if rank == 0 else None)
    if rank:
        return None
    return sorted((e for each, _ in told for e in each), key=lambda e: e["start"]), [each for _, each in told]
