"""What the processes of a program did when, as a file for programs, one for Perfetto or chrome://tracing, a picture.

An event has a kind (forward, backward, waiting, communication, update, data), the rank, start and end in seconds, and
where they are known iteration, micro-batch and stages; `together` of micro-batches that run as one counts them.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

MOST_DRAWN = 4_000  # events in a picture
MOST_ROWS = 64


def as_json(events: list[dict[str, Any]]) -> str:
    """{"events": [...]}, from the first start on."""
    return json.dumps({"events": _from_zero(events)}, indent=1)


def as_trace(events: list[dict[str, Any]]) -> str:
    """The trace event format: a process for each rank, microseconds."""
    shown = [
        {
            "name": " ".join([event["kind"], *map(str, event.get("stages", ()))]),
            "cat": event["kind"],
            "ph": "X",
            "ts": event["start"] * 1e6,
            "dur": (event["end"] - event["start"]) * 1e6,
            "pid": event["rank"],
            "tid": 0,
            "args": {name: event[name] for name in ("iteration", "micro_batch", "stages") if name in event},
        }
        for event in _from_zero(events)
    ]
    names = [
        {"name": "process_name", "ph": "M", "pid": rank, "args": {"name": f"rank {rank}"}}
        for rank in sorted({event["rank"] for event in events})
    ]
    return json.dumps({"traceEvents": names + shown})


def picture(events: list[dict[str, Any]], ipus: Sequence[int], several: bool) -> dict[str, Any]:
    """The first iteration of a call, or its beginning, as rows and what is in them.

    Args:
        ipus: of each stage.
        several: whether each rank is a row; of one process each IPU is, and the process itself.

    Returns {"rows": [{"name", "stages"}], "events": [{"row", "kind", "start", "end", …}], "left_out"}. Times are in
    seconds from the first start.
    """
    first = sorted((event for event in events if event["iteration"] == 0), key=lambda event: event["start"])
    rows, row_of = _rows_of_ranks(first) if several else _rows_of_ipus(ipus)
    rows = rows[:MOST_ROWS]
    placed = [{"row": row_of(event), **event} for event in first]
    shown = [event for event in placed if event["row"] < len(rows)][:MOST_DRAWN]
    kept = ("row", "kind", "start", "end", "micro_batch", "together", "stages")
    drawn = [{name: event[name] for name in kept if name in event} for event in _from_zero(shown)]
    return {"rows": rows, "events": drawn, "left_out": len(first) - len(drawn)}


def _rows_of_ranks(events: list[dict[str, Any]]) -> tuple[list[dict[str, Any]], Any]:
    stages: dict[int, set[int]] = {}
    for event in events:
        stages.setdefault(event["rank"], set()).update(event.get("stages", ()))
    ranks = sorted(stages)
    rows = [{"name": f"rank {rank}", "rank": rank, "stages": sorted(stages[rank])} for rank in ranks]
    return rows, lambda event: ranks.index(event["rank"])


def _rows_of_ipus(ipus: Sequence[int]) -> tuple[list[dict[str, Any]], Any]:
    there = sorted(set(ipus))
    rows: list[dict[str, Any]] = [
        {"name": f"IPU {ipu}", "stages": [stage for stage, own in enumerate(ipus) if own == ipu]} for ipu in there
    ]
    rows.append({"name": "process", "stages": []})

    def row_of(event: dict[str, Any]) -> int:
        stages = event.get("stages")
        return there.index(ipus[stages[-1]]) if stages else len(there)

    return rows, row_of


def _from_zero(events: list[dict[str, Any]]) -> list[dict[str, Any]]:
    begin = min((event["start"] for event in events), default=0.0)
    return [{**event, "start": event["start"] - begin, "end": event["end"] - begin} for event in events]
