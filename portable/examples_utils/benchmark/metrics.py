"""From the logs of a run to its figures: what regular expressions find, reduced to one each.

The rules are those of Graphcore's runner, so that a spec file gives the same figures here and there.
"""

from __future__ import annotations

import math
import re
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from .expressions import Expression

Figure = float | str  # `reduction_type: value` may find a text

REDUCTIONS = ("mean", "final", "min", "value")
THROUGHPUT = "throughput"  # every instance of a program prints its own: it is multiplied by their number
LATENCY = "latency"  # the one metric of which the largest values are the warm-up


@dataclass(frozen=True)
class Metric:
    """How a figure is read: the first group of every match over stdout and then stderr, the whole match without one.

    mean: the values are sorted and the `skip` smallest left out (of `latency` the largest), for a program that warms
    up is slow at first. final: the last one. min: the smallest. value: the one there is, after the first `skip`; it may
    be a text. final and min ignore `skip`.
    """

    name: str
    pattern: re.Pattern[str]
    skip: int = 0
    reduction: str = "mean"

    @property
    def rule(self) -> str:
        """The rule in words, for the record."""
        if not self.skip or self.reduction in ("final", "min"):
            return self.reduction
        if self.reduction == "value":
            return f"value after the first {self.skip}"
        return f"mean without the {self.skip} {'largest' if self.name == LATENCY else 'smallest'}"

    def read(self, texts: Sequence[str]) -> Figure:
        """The figure. Raises ValueError saying why there is none."""
        group = min(self.pattern.groups, 1)
        found = [match.group(group) for text in texts for match in self.pattern.finditer(text)]
        skip = self.skip if self.reduction in ("mean", "value") else 0
        if len(found) <= skip:
            skipped = f" after the first {skip} of {len(found)}" if found else ""
            raise ValueError(f"metric {self.name}: {self.pattern.pattern!r} was not found{skipped}")
        try:
            if self.reduction == "value":
                return _only(found[skip:])
            values = [_number(text) for text in found]
        except ValueError as error:
            raise ValueError(f"metric {self.name}: {error}") from error
        if self.reduction == "final":
            return values[-1]
        if self.reduction == "min":
            return min(values)
        return statistics.fmean(sorted(values, reverse=self.name == LATENCY)[skip:])


def _only(found: Sequence[str | None]) -> Figure:
    """The one value of several mentions, as a number if it is one."""
    try:
        values: list[Figure] = [_number(text) for text in found]
        shown = [f"{value:g}" for value in values]
    except ValueError:
        values = shown = [(text or "").strip() for text in found]
        if not any(values):
            raise
    if len(set(values)) > 1:
        raise ValueError(
            f"reduction_type value is for one figure, but there are {len(values)}: {shown[0]}, {shown[1]}, …"
        )
    return values[0]


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
    data: Sequence[Metric],
    derived: Mapping[str, Expression],
    texts: Sequence[str],
    parameters: Mapping[str, Any] | None = None,
    instances: int = 1,
) -> tuple[dict[str, Figure], list[str]]:
    """The metrics that can be had, and why the others cannot.

    Args:
        texts: the logs, stdout before stderr.
        parameters: those of the variant, which derived metrics may name.
        instances: how many processes of the program wrote into the logs.
    """
    values: dict[str, Figure] = {}
    problems: list[str] = []
    for metric in data:
        try:
            value = metric.read(texts)
            values[metric.name] = value * instances if _multiplied(metric.name, instances, value) else value
        except ValueError as error:
            problems.append(str(error))
    for name, expression in derived.items():
        known = {**(parameters or {}), **values}
        missing = expression.names - set(known)
        try:
            if missing:
                raise ValueError(f"{' and '.join(sorted(missing))} missing")
            values[name] = expression.value(known)
        except ValueError as error:
            problems.append(f"metric {name}: {error}")
    return values, problems


def _multiplied(name: str, instances: int, value: Figure) -> bool:
    return name == THROUGHPUT and instances > 1 and isinstance(value, float)


def rules(data: Sequence[Metric], derived: Mapping[str, Expression], instances: int = 1) -> dict[str, str]:
    """Which rule makes each figure, in words."""
    times = f", times {instances} instances" if instances > 1 else ""
    found = {metric.name: metric.rule + (times if metric.name == THROUGHPUT else "") for metric in data}
    return {**found, **{name: f"= {expression.text}" for name, expression in derived.items()}}
