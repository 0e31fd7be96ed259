"""What several processes of a program did when, as a file for programs and as one for Perfetto or chrome://tracing.

An event has a kind (forward, backward, waiting, communication, update), the rank, start and end in seconds, and where
they are known iteration, micro-batch and stages.
"""

from __future__ import annotations

import json
from typing import Any


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


def _from_zero(events: list[dict[str, Any]]) -> list[dict[str, Any]]:
    begin = min((event["start"] for event in events), default=0.0)
    return [{**event, "start": event["start"] - begin, "end": event["end"] - begin} for event in events]
