"""The text of a report: wall time by phase, and the operators that make up most of it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

RANGES = ("micro-batches", "backward", "optimizer")  # of the report itself, and `stage N forward`
SHARE = 0.9  # the operators listed make up this share of the time


class Window:
    """What the profiler recorded over some micro-batches.

    Args:
        profiler: stopped. seconds: wall time from its start to its end. micro_batches: how many.
        first: whether they are of the first call. device: "cpu" or "cuda".
    """

    def __init__(self, profiler: torch.profiler.profile, seconds: float, micro_batches: int, first: bool, device: str):
        self._profiler: torch.profiler.profile | None = profiler
        self.seconds, self.micro_batches, self.first, self.device = seconds, micro_batches, first, device
        self.rows = operator_rows(profiler.key_averages(), device)

    @property
    def written(self) -> bool:
        """Whether the trace was exported; its events are dropped then."""
        return self._profiler is None

    def export(self, path: Path) -> None:
        """Write the trace."""
        self._profiler.export_chrome_trace(str(path))
        self._profiler = None


def operator_rows(events: Any, device: str) -> list[tuple[float, int, str]]:
    """(seconds of its own, calls, name) of every operator, slowest first.

    On a CPU the time of an operator without that of those it calls; what the program's own ranges keep for themselves
    is Python between operators. On CUDA the time of its kernels.
    """
    rows, python = [], 0.0
    for event in events:
        if device == "cuda":
            if event.device_type == torch.autograd.DeviceType.CUDA and not event.is_user_annotation:
                rows.append((event.self_device_time_total / 1e6, event.count, event.key))
        elif event.is_user_annotation or event.key in RANGES or event.key.startswith("stage "):
            python += event.self_cpu_time_total / 1e6
        else:
            rows.append((event.self_cpu_time_total / 1e6, event.count, event.key))
    if python:
        rows.append((python, 1, "(Python between operators)"))
    return sorted(rows, key=lambda row: -row[0])


Phases = list[tuple[str, float]]  # name and seconds


def summary(
    head: list[str], phases: Phases, wall: float, elsewhere: Phases, micro_batches: int, window: Window | None
) -> str:
    """The whole text. `wall` was measured apart from `phases` and is without the time that went `elsewhere`."""
    wall = wall or 1e-12
    left_out = [f"{name} {seconds:.3f} s" for name, seconds in elsewhere]
    lines = [*head, *([f"left out: {', '.join(left_out)}"] if left_out else []), ""]
    lines += [f"{'wall time':<28}{wall:12.3f} s  100.0%   {micro_batches:,} micro-batches"]
    lines += [f"  {name:<26}{seconds:12.3f} s {seconds / wall:7.1%}" for name, seconds in phases]
    total = sum(seconds for _, seconds in phases)
    lines.append(f"{'sum of the phases':<28}{total:12.3f} s {total / wall:7.1%}")
    lines += _stages(phases, wall)
    if window is not None:
        lines += _operators(window)
    return "\n".join(lines) + "\n"


def _stages(phases: Phases, wall: float) -> list[str]:
    """Each stage's share, forward and backward together, of the wall time and of all stages."""
    stages: dict[str, float] = {}
    for name, seconds in phases:
        if name.startswith("stage "):
            stage = name.rsplit(" ", 1)[0]
            stages[stage] = stages.get(stage, 0.0) + seconds
    total = sum(stages.values()) or 1e-12
    return [""] + [
        f"{stage}: {seconds / wall:.1%} of the wall time, {seconds / total:.1%} of all stages"
        for stage, seconds in stages.items()
    ]


def _operators(window: Window) -> list[str]:
    where = "kernels" if window.device == "cuda" else "operators, each without those it calls"
    count = "1 micro-batch" if window.micro_batches == 1 else f"{window.micro_batches} micro-batches"
    lines = [
        "",
        f"{where}: {count} of the {'first' if window.first else 'second'} call, {window.seconds:.3f} s under the "
        f"profiler; {SHARE:.0%} of the time is in",
        f"{'ms':>12} {'share':>7} {'in all':>7} {'times':>8}  name",
    ]
    total = sum(seconds for seconds, _, _ in window.rows) or 1e-12
    so_far = 0.0
    for seconds, calls, name in window.rows:
        so_far += seconds
        share = f"{seconds / total:7.1%} {so_far / total:7.1%}"
        lines.append(f"{seconds * 1e3:12.3f} {share} {calls:8,}  {name}")
        if so_far >= SHARE * total:
            break
    lines.append(f"{total * 1e3:12.3f} ms in all, {total / window.seconds:.1%} of the wall time of these micro-batches")
    return lines
