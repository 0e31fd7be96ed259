"""The phases that a report's time is divided into: every moment of a run belongs to one."""

from __future__ import annotations

from typing import Any

BETWEEN, WAITING, OTHERS, REST, UPDATE, AWAITING, EXCHANGE, REPORTING = (
    "program between calls",
    "data wait",
    "calls of other executors",
    "rest of the calls",
    "optimizer",
    "waiting for other processes",
    "communication",
    "profiler and report",
)
# What a phase is called in the picture, where its name does not say it.
_KINDS = {
    BETWEEN: "program",
    WAITING: "data",
    REST: "rest",
    UPDATE: "update",
    AWAITING: "waiting",
    EXCHANGE: "communication",
}


def forward(stage: Any) -> str:
    """The phase of a stage's forward pass."""
    return f"stage {stage.index} forward"


def backward(stage: Any) -> str:
    """The phase of a stage's backward pass."""
    return f"stage {stage.index} backward"


def kind_of(phase: str) -> str:
    """forward, backward, waiting, communication, update, data, program or rest."""
    return _KINDS.get(phase) or phase.rsplit(" ", 1)[1]


def stage_of(phase: str) -> int | None:
    """The stage that the phase is of, if it is one's."""
    return int(phase.split(" ")[1]) if phase.startswith("stage ") else None
