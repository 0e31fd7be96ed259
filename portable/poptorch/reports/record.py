"""The numbers of a report: what report.json holds and report.html shows.

    kind, program, device, torch, written   what ran, where and when
    stages      of the program: stage, ipu, blocks; by the shapes, what a micro-batch keeps and what it needs for a time
    ranks       of each process what it measured: phases that add up to wall_seconds, memory, operators; `warming_up`
                says that it is of the first call
    timeline    rows, and the events of one iteration in them, in seconds from the first start
    estimate    what the program expected (estimates.py); null if it told nothing
    comparison  rows of an estimate beside what was measured

Seconds are of all `calls` together, bytes are bytes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from ..engine.as_one.stacking import stage_bytes
from . import phases
from .memory import KINDS, MemoryMeter, peak
from .report_text import SHARE, Window

FORM = "poptorch report 1"


def record(
    about: Mapping[str, Any],
    program: Any,
    training: bool,
    ranks: Sequence[Mapping[str, Any]],
    timeline: Mapping[str, Any],
    estimate: Mapping[str, Any] | None,
) -> dict[str, Any]:
    """All of it. `ranks` are empty where nothing was run."""
    stages = []
    for stage in program.stages:
        kept, most = stage_bytes(stage, training)
        row = {"stage": stage.index, "ipu": stage.ipu, "blocks": list(stage.blocks)}
        stages.append({**row, "kept_bytes": kept, "working_bytes": most})
    found = {
        "form": FORM,
        **about,
        "stages": stages,
        "ranks": list(ranks),
        "timeline": dict(timeline),
        "estimate": None if estimate is None else dict(estimate),
    }
    return {**found, "comparison": comparison(found)}


def phase_rows(seconds: Sequence[tuple[str, float]]) -> list[dict[str, Any]]:
    """[{"name", "kind", "seconds"}], with the stage where it is one's; without stages that nothing was done for."""
    rows = []
    for name, value in seconds:
        stage = phases.stage_of(name)
        if value or stage is None:
            rows.append({"name": name, "kind": phases.kind_of(name), "seconds": value})
            rows[-1].update({} if stage is None else {"stage": stage})
    return rows


def memory_of(meter: MemoryMeter, stages: Sequence[int], device: torch.device) -> dict[str, Any]:
    """Bytes by stage and kind, and the peak of the whole process."""
    return {"stages": meter.record(stages), "together": meter.together, "peak": peak(device)}


def operators_of(window: Window | None) -> dict[str, Any] | None:
    """The operators that make up SHARE of the time of the traced micro-batches; None if there was no trace."""
    if window is None:
        return None
    total = sum(seconds for seconds, _, _ in window.rows) or 1e-12
    rows: list[dict[str, Any]] = []
    so_far = 0.0
    for seconds, calls, name in window.rows:
        so_far += seconds
        shares = {"share": seconds / total, "in_all": so_far / total}
        rows.append({"name": name, "calls": calls, "seconds": seconds, **shares})
        if so_far >= SHARE * total:
            break
    return {
        "of": "kernels" if window.device == "cuda" else "operators",
        "micro_batches": window.micro_batches,
        "first_call": window.first,
        "window_seconds": window.seconds,
        "seconds": total,
        "rows": rows,
    }


# -- what was estimated beside what was measured ----------------------------------------------------------------------


def comparison(found: Mapping[str, Any]) -> list[dict[str, Any]]:
    """[{"what", "unit", "estimated", "measured", "by"}]; what is not known is null. `unit` is "share" or "bytes"."""
    rows = _pipeline(found)
    estimate = found["estimate"] or {}
    work, held = _work(found["ranks"]), _held(found["ranks"])
    expected = {row["stage"]: row for row in estimate.get("stages", ())}
    together = max((rank["memory"]["together"] for rank in found["ranks"]), default=1)
    for stage in found["stages"]:
        number, own = stage["stage"], expected.get(stage["stage"], {})
        if "work" in own:
            rows.append(_row(f"stage {number}: share of the work", "share", own["work"], work.get(number), "program"))
        for kind, size in own.get("memory", {}).items() if number in held else ():
            measured = held[number][kind] if kind in KINDS else None
            if size or measured:
                rows.append(_row(f"stage {number}: {kind}", "bytes", size, measured, "program"))
        if found["kind"] == "training" and number in held:
            size = (stage["kept_bytes"] * held[number]["in_flight"] + stage["working_bytes"]) * together
            what = f"stage {number}: activations, with what is computed again, by the shapes in the program"
            measured = held[number]["activations"] + held[number]["recomputed"]
            rows.append(_row(what, "bytes", size, measured, "runtime"))
    return rows


def _row(what: str, unit: str, estimated: float, measured: float | None, by: str) -> dict[str, Any]:
    return {"what": what, "unit": unit, "estimated": estimated, "measured": measured, "by": by}


def _work(ranks: Sequence[Mapping[str, Any]]) -> dict[int, float]:
    """Each stage's share of the time of all stages."""
    seconds: dict[int, float] = {}
    for rank in ranks:
        for row in rank["phases"]:
            if "stage" in row:
                seconds[row["stage"]] = seconds.get(row["stage"], 0.0) + row["seconds"]
    total = sum(seconds.values()) or 1e-12
    return {stage: value / total for stage, value in seconds.items()}


def _held(ranks: Sequence[Mapping[str, Any]]) -> dict[int, Mapping[str, int]]:
    """Memory by stage, as the first process that has the stage measured it."""
    found: dict[int, Mapping[str, int]] = {}
    for rank in ranks:
        for row in rank["memory"]["stages"]:
            found.setdefault(row["stage"], row)
    return found


def _pipeline(found: Mapping[str, Any]) -> list[dict[str, Any]]:
    """How much of the time a pipeline is not full: (p - 1) / (m + p - 1), or as the program expects it."""
    estimate = found["estimate"] or {}
    owners = [_owner(found["ranks"], stage["stage"]) for stage in found["stages"]]
    steps = 1 + sum(here != there for here, there in zip(owners, owners[1:], strict=False))
    idle = _idle(found["ranks"]) if steps > 1 else None
    rows = []
    if steps > 1:
        passes = len({event["micro_batch"] for event in found["timeline"]["events"] if "stages" in event})
        share = (steps - 1) / (passes + steps - 1)
        what = f"pipeline not full: {passes} micro-batches, those that run as one counted once, {steps} spans of stages"
        rows.append(_row(what, "share", share, idle, "runtime"))
    if "bubble" in estimate:
        rows.append(_row("pipeline not full", "share", estimate["bubble"], idle, "program"))
    return rows


def _owner(ranks: Sequence[Mapping[str, Any]], stage: int) -> int:
    """The first process that ran the stage."""
    return next((r["rank"] for r in ranks if any(row.get("stage") == stage for row in r["phases"])), 0)


def _idle(ranks: Sequence[Mapping[str, Any]]) -> float:
    """Waiting for other processes, of all processes' time in passes and waiting."""
    waiting = passes = 0.0
    for rank in ranks:
        for row in rank["phases"]:
            waiting += row["seconds"] * (row["kind"] == "waiting")
            passes += row["seconds"] * ("stage" in row)
    return waiting / ((waiting + passes) or 1e-12)
