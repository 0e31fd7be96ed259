"""What a table of published figures asks of a run: whether it is the row's, and the figures of its columns.

The conditions and measures are those of tasks/published_tables.json.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from tasks.texts import unpacked_name

if TYPE_CHECKING:  # heavy, and --help of tasks.tables need not wait for them
    from tasks.records import Evaluation
    from tasks.runs import Run

_ANY = "any"  # in the place of a system: a run of any model


class Found(NamedTuple):
    """A measured figure: its value, None if it is not finite, and what of a run it was computed of."""

    value: Any
    evaluation: Evaluation | None = None


def matches(run: Run, system: str | None, where: dict[str, Any]) -> bool:
    """Whether a run is of this system and has these settings; of a list of values one of them."""
    if system is None or (system != _ANY and system not in run.systems):
        return False
    return all(_is(name, run.facts.get(name), wanted) for name, wanted in where.items())


def _is(name: str, value: Any, wanted: Any) -> bool:
    if isinstance(wanted, list):
        return any(_is(name, value, one) for one in wanted)
    if name == "corpus":
        return wanted in _of_path(value or "")
    if isinstance(wanted, float) and isinstance(value, (int, float)):
        return math.isclose(value, wanted, rel_tol=1e-9)
    return value == wanted


def _of_path(path: Any) -> str:
    """A path in which names are looked for: their separators are written in more than one way."""
    return str(path).lower().replace("_", "-")


def measured(asked: Any, run: Run, window: int | None) -> Found | None:
    """The figure that a measure of PUBLISHED asks for: of its alternatives the first that the run has."""
    for one in asked if isinstance(asked, list) else [asked] if asked else []:
        if "run" in one:
            value = run.facts.get(one["run"])
            found = Found(value) if value is not None else None
        elif "harness" in one:
            found = _of_harness(one, run)
        else:
            found = _of_evaluations(one, run, window)
        if found is not None:
            return found
    return None


def _of_harness(asked: dict[str, Any], run: Run) -> Found | None:
    for evaluation in run.evaluations:
        if evaluation.shots:  # published figures are without examples
            continue
        values = evaluation.harness.get(asked["harness"], {})
        key = next((key for key in (asked["value"], f"{asked['value']},none") if key in values), None)
        if key is not None:
            return Found(values[key], evaluation)
    return None


def _of_evaluations(asked: dict[str, Any], run: Run, window: int | None) -> Found | None:
    for evaluation in run.evaluations:
        for result in evaluation.results:
            if not result.get("complete", True) or (result["task"], result["protocol"]) != (
                asked["task"],
                asked["protocol"],
            ):
                continue
            path = Path(str(result["files"][0])) if result["files"] else Path()
            of_file = asked.get("file") in (None, unpacked_name(path)) and asked.get("folder", "") in _of_path(
                path.parent.name
            )
            # LAMBADA's window only has to hold its passages.
            of_window = window in (None, result["window"]) or asked["task"] == "LAMBADA"
            # A protocol that drops what fills no batch has the batch that the run was trained with.
            of_batch = not asked.get("batch_of_run") or result["counts"].get("batch") == run.facts.get("batch")
            values = {**result["counts"], **result["values"]}
            # Whole chunks of T - 1 tokens, as lm-finetuning counts its sequences.
            values["sequences"] = result["counts"].get("bpe", 0) // max(1, result["window"] - 1)
            if of_file and of_window and of_batch and asked["value"] in values:
                return Found(values[asked["value"]], evaluation)
    return None
