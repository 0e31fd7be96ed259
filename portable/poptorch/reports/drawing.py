"""The pictures of a report: SVG texts, in the colours of page.css, that say nothing a table does not say."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

# Kinds of events in the order of the legend, with the letter that a wide enough one has.
KINDS = {
    "forward": "F",
    "backward": "B",
    "waiting": "",
    "communication": "",
    "update": "U",
    "data": "D",
    "program": "",
    "rest": "",
}
_LABELS, _ROW, _GAP = 150, 26, 6  # widths and heights in pixels
_NARROWEST, _WIDEST = 900, 12_000
# Once a page: what page.css fills waiting with.
HATCH = (
    '<svg width="0" height="0" aria-hidden="true"><pattern id="hatch" width="6" height="6" '
    'patternUnits="userSpaceOnUse"><path class="stroke" d="M0 6 6 0M-1 1 1 -1M5 7 7 5"/></pattern></svg>'
)


def timeline(rows: Sequence[Mapping[str, Any]], events: Sequence[Mapping[str, Any]], unit: str, title: str) -> str:
    """A row for each of `rows`, from left to right the time of `events`, in seconds ("s") or another `unit`."""
    end = max((event["end"] for event in events), default=0.0) or 1.0
    counts = [0] * len(rows)
    for event in events:
        counts[event["row"]] += 1
    width = min(_WIDEST, max(_NARROWEST, 14 * max(counts, default=0)))
    height = len(rows) * (_ROW + _GAP)
    parts = [_open(_LABELS + width + 20, height + 34, title)]
    for number, tick in enumerate(ticks(end, width // 110)):
        x = _LABELS + tick / end * width
        parts.append(f'<line class="grid" x1="{x:.1f}" x2="{x:.1f}" y1="0" y2="{height}"/>')
        anchor = "start" if number == 0 else "middle"
        parts.append(
            f'<text class="tick" x="{x:.1f}" y="{height + 18}" text-anchor="{anchor}">{of_time(tick, unit)}</text>'
        )
    for number, row in enumerate(rows):
        y = number * (_ROW + _GAP)
        parts.append(f'<text class="label" x="0" y="{y + 18}">{escape(shortened(row_name(row), 22))}</text>')
        parts.append(f'<rect class="lane" x="{_LABELS}" y="{y}" width="{width}" height="{_ROW}"/>')
    for event in events:
        x = _LABELS + event["start"] / end * width
        parts.append(_event(event, rows, x, (event["end"] - event["start"]) / end * width, unit))
    return "".join([*parts, "</svg>"])


def _event(event: Mapping[str, Any], rows: Sequence[Mapping[str, Any]], x: float, width: float, unit: str) -> str:
    y = event["row"] * (_ROW + _GAP)
    words = [row_name(rows[event["row"]]), event["kind"]]
    words += [f"stage {', '.join(map(str, event['stages']))}"] if "stages" in event else []
    first = event.get("micro_batch")
    last = None if first is None else first + event.get("together", 1) - 1
    words += [] if first is None else [f"micro-batch {first}" if first == last else f"micro-batches {first} to {last}"]
    lasts = of_time(event["end"] - event["start"], unit)
    title = escape(f"{', '.join(words)}: {lasts} from {of_time(event['start'], unit)} on")
    known = event["kind"] if event["kind"] in KINDS else "rest"
    box = f'<rect class="{known}" x="{x:.2f}" y="{y}" width="{max(width, 0.5):.2f}" height="{_ROW}"/>'
    text = KINDS[known] + ("" if first is None else f"{first}" if first == last else f"{first}–{last}")
    inside = ""
    if KINDS[known] and width >= 8 * len(text) + 4:
        inside = f'<text class="inside" x="{x + width / 2:.2f}" y="{y + 17}" text-anchor="middle">{text}</text>'
    return f"<g>{box}{inside}<title>{title}</title></g>"


def stacked(rows: Sequence[tuple[str, Mapping[str, float]]], kinds: Sequence[str], title: str) -> str:
    """A bar for each row, made of its kinds one behind the other, all on one scale of bytes."""
    largest = max((sum(row.values()) for _, row in rows), default=0) or 1
    width, height = _NARROWEST, len(rows) * (_ROW + _GAP)
    parts = [_open(_LABELS + width + 120, height, title)]
    for number, (name, row) in enumerate(rows):
        y, x = number * (_ROW + _GAP), float(_LABELS)
        parts.append(f'<text class="label" x="0" y="{y + 18}">{escape(shortened(name, 22))}</text>')
        for kind in kinds:
            size = row.get(kind, 0)
            if size:
                wide = size / largest * width
                hint = escape(f"{name}, {kind}: {of_bytes(size)}")
                box = f'x="{x:.2f}" y="{y}" width="{wide:.2f}" height="{_ROW}"'
                parts.append(f'<rect class="{escape(kind)}" {box}><title>{hint}</title></rect>')
                x += wide
        parts.append(f'<text class="tick" x="{x + 6:.1f}" y="{y + 18}">{of_bytes(sum(row.values()))}</text>')
    return "".join([*parts, "</svg>"])


def _open(width: float, height: float, title: str) -> str:
    size = f'width="{width:.0f}" height="{height:.0f}" viewBox="0 0 {width:.0f} {height:.0f}"'
    return f'<svg role="img" aria-label="{escape(title)}" {size}>'


def row_name(row: Mapping[str, Any]) -> str:
    """A row's name with its stages: `rank 0: stages 0, 4`."""
    stages = row.get("stages") or ()
    return row["name"] + (f": stage{'s'[: len(stages) > 1]} {', '.join(map(str, stages))}" if stages else "")


def shortened(text: str, most: int) -> str:
    """At most so many characters of it."""
    return text if len(text) <= most else text[: most - 1] + "…"


def ticks(end: float, most: int) -> list[float]:
    """Round numbers from 0 to `end`, at most about `most` of them."""
    rough = end / max(1, most)
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= rough * 0.999)
    return [number * step for number in range(int(end / step * 1.0001) + 1)]


def of_time(value: float, unit: str = "s") -> str:
    """Seconds as s, ms or µs; of another unit the number alone."""
    if unit != "s":
        return f"{value:.4g}"
    for factor, name in ((1.0, "s"), (1e3, "ms")):
        if value * factor >= 1:
            return f"{value * factor:.4g} {name}"
    return f"{value * 1e6:.3g} µs" if value else "0"


def of_bytes(value: float) -> str:
    """Bytes as KiB, MiB or GiB."""
    for power, name in ((30, "GiB"), (20, "MiB"), (10, "KiB")):
        if value >= 1 << power:
            return f"{value / (1 << power):.4g} {name}"
    return f"{value:.0f} B"
