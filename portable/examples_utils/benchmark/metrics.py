"""From the logs of a run to its figures: what regular expressions find, reduced to a number each."""

from __future__ import annotations

import math
import re
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from .expressions import Expression


def _only(values: Sequence[float]) -> float:
    if len(set(values)) > 1:
        raise ValueError(
            f"reduction_type value is for one figure, but there are {len(values)}: {values[0]:g}, {values[1]:g}, …"
        )
    return values[0]


REDUCTIONS: dict[str, Callable[[Sequence[float]], float]] = {
    "mean": statistics.fmean,
    "final": lambda values: values[-1],
    "min": min,
    "value": _only,
}


@dataclass(frozen=True)
class Metric:
    """How a figure is read: the first group of every match over stdout and then stderr, the first `skip` left out."""

    name: str
    pattern: re.Pattern[str]
    skip: int = 0
    reduction: str = "mean"

    def read(self, texts: Sequence[str]) -> float:
        """The figure. Raises ValueError saying why there is none."""
        found = [match.group(1) for text in texts for match in self.pattern.finditer(text)]
        kept = found[self.skip :]
        if not kept:
            skipped = f" after the first {self.skip} of {len(found)}" if found else ""
            raise ValueError(f"metric {self.name}: {self.pattern.pattern!r} was not found{skipped}")
        try:
            values = [_number(text) for text in kept]
            return REDUCTIONS[self.reduction](values)
        except ValueError as error:
            raise ValueError(f"metric {self.name}: {error}") from error


def _number(text: str | None) -> float:
    """A number as programs print it, commas between thousands included."""
    try:
        value = float((text or "").strip().replace(",", ""))
    except ValueError as error:
        raise ValueError(f"{text!r} is no number") from error
    if not math.isfinite(value):
        raise ValueError(f"{text} is not finite")
    return value


def collect(
    data: Sequence[Metric], derived: Mapping[str, Expression], texts: Sequence[str]
) -> tuple[dict[str, float], list[str]]:
    """The metrics that can be had, and why the others cannot."""
    values: dict[str, float] = {}
    problems: list[str] = []
    for metric in data:
        try:
            values[metric.name] = metric.read(texts)
        except ValueError as error:
            problems.append(str(error))
    for name, expression in derived.items():
        missing = expression.names - set(values)
        try:
            if missing:
                raise ValueError(f"{' and '.join(sorted(missing))} missing")
            values[name] = expression.value(values)
        except ValueError as error:
            problems.append(f"metric {name}: {error}")
    return values, problems
