"""report.html: the numbers of a report as one page that needs nothing else, not even a script.

Each picture has a table beside it; what is wider than the page is a region that the keyboard reaches and scrolls. The
numbers are in the page once more, as the JSON that report.json has.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from . import drawing
from .drawing import of_bytes, of_time
from .memory import KINDS as MEMORY

_STYLE = Path(__file__).with_name("page.css")
_POLICY = "default-src 'none'; style-src 'unsafe-inline'"  # the browser fetches nothing, whatever is in a name
_IN_TURN = " What is computed again is there for one stage of a process at a time: not all of its sum at once."
Cells = Sequence[str]


def html_of(record: Mapping[str, Any]) -> str:
    """The page. `record` is what record.record() made."""
    title = f"{record['kind'].capitalize()} {'on ' + record['device'] if record['ranks'] else 'as planned'}"
    sections = [
        ("pipeline", "Pipeline", _pipeline(record)),
        ("phases", "Where the time goes", "".join(_phases(rank, len(record["ranks"])) for rank in record["ranks"])),
        ("memory", "Memory", _memory(record)),
        ("operators", "Operators", "".join(_operators(rank, len(record["ranks"])) for rank in record["ranks"])),
        ("estimates", "Estimated and measured", _estimates(record)),
    ]
    sections = [section for section in sections if section[2]]
    links = "".join(f'<li><a href="#{name}">{heading}</a></li>' for name, heading, _ in sections)
    body = "".join(
        f'<section id="{name}" aria-labelledby="{name}-h"><h2 id="{name}-h">{heading}</h2>{content}</section>'
        for name, heading, content in sections
    )
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(title)} – PopTorch report</title><style>{_STYLE.read_text(encoding='utf-8')}</style></head>\n"
        f"<body>{drawing.HATCH}<header><h1>{escape(title)}</h1>{_head(record)}</header>"
        f'<nav aria-label="Sections"><ul>{links}</ul></nav><main>{body}</main>\n'
        f'<script type="application/json" id="report">{embedded(record)}</script></body></html>\n'
    )


def embedded(record: Mapping[str, Any]) -> str:
    """JSON that cannot end the element it is in."""
    text = json.dumps(record)
    return text.replace("&", "\\u0026").replace("<", "\\u003c").replace(">", "\\u003e")


def table(caption: str, head: Cells, rows: Sequence[Cells], foot: Cells = ()) -> str:
    """Cells are HTML; the first of each row is its head."""
    titles = "".join(cell if cell.startswith("<th") else f'<th scope="col">{cell}</th>' for cell in head)
    body = "".join(_row(row) for row in rows)
    last = f"<tfoot>{_row(foot)}</tfoot>" if foot else ""
    return _scrolled(
        caption,
        f"<table><caption>{escape(caption)}</caption><thead><tr>{titles}</tr></thead><tbody>{body}</tbody>{last}</table>",
    )


def _row(cells: Cells) -> str:
    first, *rest = cells
    made = "".join(cell if cell.startswith("<td") else f"<td>{cell}</td>" for cell in rest)
    return f'<tr><th scope="row">{first}</th>{made}</tr>'


def _scrolled(label: str, content: str) -> str:
    return f'<div class="scroll" tabindex="0" role="region" aria-label="{escape(label)}">{content}</div>'


def _legend(kinds: Sequence[str]) -> str:
    items = "".join(f'<li><span class="swatch {escape(kind)}"></span>{escape(kind)}</li>' for kind in kinds)
    return f'<ul class="legend" aria-label="Colours">{items}</ul>'


def _bar(share: float, kind: str) -> str:
    return f'<td class="bar"><span class="{kind}" style="width:{100 * min(1.0, max(0.0, share)):.2f}%"></span></td>'


# -- sections ---------------------------------------------------------------------------------------------------------


def _head(record: Mapping[str, Any]) -> str:
    ranks = record["ranks"]
    about = f"{escape(record['written'])}, torch {escape(record['torch'])}"
    lines = [f"<p><code>{escape(record['program'])}</code></p>", f'<p class="soft">{about}</p>']
    if not ranks:
        return "".join([*lines, "<p>Compiled, not run: everything here is estimated.</p>"])
    calls = ranks[0]["calls"]
    counted = (
        "the first call, warming up included" if ranks[0]["warming_up"] else f"{calls:,} calls after the first one"
    )
    wall = max(rank["wall_seconds"] for rank in ranks)
    waits = [_share_of(rank, "data") for rank in ranks]
    figures = [
        (of_time(wall / calls), "a call, with what the program does before the next"),
        (f"{_micro_batches(record) / (wall or 1e-12):,.1f}", "micro-batches a second"),
        (f"{max(waits):.1%}", "of the time waiting for data"),
        (of_bytes(max(r["memory"]["peak"]["bytes"] for r in ranks)), ranks[0]["memory"]["peak"]["of"]),
    ]
    items = "".join(f"<li><strong>{value}</strong> {escape(what)}</li>" for value, what in figures)
    return "".join([*lines, f"<p>Measured over {counted}.</p>", f'<ul class="figures">{items}</ul>'])


def _micro_batches(record: Mapping[str, Any]) -> int:
    """Of all replicas: those of the processes that have the first stage."""
    first = record["stages"][0]["stage"]
    with_it = [rank for rank in record["ranks"] if any(row.get("stage") == first for row in rank["phases"])]
    return sum(rank["micro_batches"] for rank in with_it)


def _share_of(rank: Mapping[str, Any], kind: str) -> float:
    seconds = sum(row["seconds"] for row in rank["phases"] if row["kind"] == kind)
    return seconds / (rank["wall_seconds"] or 1e-12)


def _pipeline(record: Mapping[str, Any]) -> str:
    found, parts = record["timeline"], []
    if found["events"]:
        left = f"; {found['left_out']:,} events are not drawn" if found["left_out"] else ""
        parts.append(f"<p>The first iteration of the {escape(found['of'])}, on one clock{left}.</p>")
        parts.append(_drawn("Measured pipeline", found["rows"], found["events"], "s"))
    expected = (record["estimate"] or {}).get("timeline")
    if expected and expected["events"]:
        parts.append(f"<h3>Estimated</h3><p>{escape(expected['of'])}</p>")
        parts.append(_drawn("Estimated pipeline", expected["rows"], expected["events"], expected["unit"]))
    rows = [
        (str(s["stage"]), str(s["ipu"]), f'<td class="text">{escape(", ".join(s["blocks"]) or "–")}</td>')
        for s in record["stages"]
    ]
    return "".join(
        [*parts, table("The stages of the program", ("stage", "IPU", '<th class="text" scope="col">blocks</th>'), rows)]
    )


def _drawn(title: str, rows: Sequence[Mapping[str, Any]], events: Sequence[Mapping[str, Any]], unit: str) -> str:
    kinds = [kind for kind in drawing.KINDS if any(event["kind"] == kind for event in events)]
    sums = [{kind: 0.0 for kind in kinds} for _ in rows]
    for event in events:
        if event["kind"] in kinds:
            sums[event["row"]][event["kind"]] += event["end"] - event["start"]
    span = max(event["end"] for event in events)
    cells = [
        (escape(drawing.row_name(row)), *(of_time(own[kind], unit) for kind in kinds))
        for row, own in zip(rows, sums, strict=True)
    ]
    caption = f"{title}: time by row and kind, of {of_time(span, unit)} in all{'' if unit == 's' else f'; {unit}'}"
    picture = drawing.timeline(rows, events, unit, f"{title} over time; the table below has its sums")
    return _legend(kinds) + _scrolled(title, picture) + table(caption, ("row", *kinds), cells)


def _phases(rank: Mapping[str, Any], ranks: int) -> str:
    wall = rank["wall_seconds"] or 1e-12
    rows = [
        (
            escape(row["name"]),
            of_time(row["seconds"]),
            of_time(row["seconds"] / rank["calls"]),
            f"{row['seconds'] / wall:.1%}",
            _bar(row["seconds"] / wall, row["kind"]),
        )
        for row in rank["phases"]
    ]
    total = sum(row["seconds"] for row in rank["phases"])
    foot = ("sum of the phases", of_time(total), of_time(total / rank["calls"]), f"{total / wall:.1%}", "")
    name = f"Rank {rank['rank']}: w" if ranks > 1 else "W"
    caption = f"{name}all time by phase, {of_time(wall)} in all"
    text = table(caption, ("phase", "in all", "a call", "share", ""), rows, foot)
    left_out = ", ".join(f"{escape(what)} {of_time(seconds)}" for what, seconds in rank["left_out"].items())
    return text + (f'<p class="soft">Left out: {left_out}.</p>' if left_out else "")


def _memory(record: Mapping[str, Any]) -> str:
    parts = []
    several = len(record["ranks"]) > 1
    rows, kinds = [], MEMORY
    for rank in record["ranks"]:
        for stage in rank["memory"]["stages"]:
            name = f"rank {rank['rank']}, stage {stage['stage']}" if several else f"stage {stage['stage']}"
            rows.append((name, {kind: stage[kind] for kind in kinds}))
    if rows:
        parts.append(_held("Measured memory by stage and kind", rows, kinds))
        together = max(rank["memory"]["together"] for rank in record["ranks"])
        parts.append(
            '<p class="soft">Tensors of the program; Python, libraries, inputs and gradients on their way are not in '
            f"it. Activations are those of all micro-batches under way at a time, {together} as one."
            f"{_IN_TURN if sum(row['recomputed'] > 0 for _, row in rows) > 1 else ''}</p>"
        )
    expected = [stage for stage in (record["estimate"] or {}).get("stages", ()) if stage["memory"]]
    if expected and not rows:
        kinds = tuple(dict.fromkeys([*MEMORY, *(kind for stage in expected for kind in stage["memory"])]))
        kinds = tuple(kind for kind in kinds if any(kind in stage["memory"] for stage in expected))
        rows = [(f"stage {stage['stage']}", stage["memory"]) for stage in expected]
        parts.append(_held("Estimated memory by stage and kind", rows, kinds))
    return "".join(parts)


def _held(title: str, rows: Sequence[tuple[str, Mapping[str, float]]], kinds: Sequence[str]) -> str:
    cells = [
        (escape(name), *(of_bytes(row.get(kind, 0)) for kind in kinds), of_bytes(sum(row.values())))
        for name, row in rows
    ]
    sums = [sum(row.get(kind, 0) for _, row in rows) for kind in kinds]
    foot = ("all", *map(of_bytes, sums), of_bytes(sum(sums)))
    head = ("stage", *map(escape, kinds), "total")
    picture = drawing.stacked(rows, kinds, f"{title}; the table below has the numbers")
    return _legend(kinds) + _scrolled(f"{title}, picture", picture) + table(title, head, cells, foot)


def _operators(rank: Mapping[str, Any], ranks: int) -> str:
    found = rank["operators"]
    if found is None:
        return ""
    rows = [
        (
            f'<span class="mono">{escape(row["name"])}</span>',
            of_time(row["seconds"]),
            f"{row['calls']:,}",
            f"{row['share']:.1%}",
            f"{row['in_all']:.1%}",
            _bar(row["share"], "forward"),
        )
        for row in found["rows"]
    ]
    many = found["micro_batches"]
    name = f"Rank {rank['rank']}: " if ranks > 1 else ""
    caption = (
        f"{name}{found['of']} that make up 90 % of {of_time(found['seconds'])}, of {many:,} micro-batch"
        f"{'es' if many > 1 else ''} of the {'first' if found['first_call'] else 'second'} call"
    )
    return table(caption, ("name", "time", "times", "share", "in all", ""), rows)


def _estimates(record: Mapping[str, Any]) -> str:
    estimate = record["estimate"] or {}
    parts = []
    if record["comparison"]:
        show = {"share": lambda value: f"{value:.1%}", "bytes": of_bytes}
        rows = [
            (
                escape(row["what"]),
                show[row["unit"]](row["estimated"]),
                "–" if row["measured"] is None else show[row["unit"]](row["measured"]),
                row["by"],
            )
            for row in record["comparison"]
        ]
        head = ("", "estimated", "measured", "estimate of the")
        parts.append(table("What was estimated, beside what was measured", head, rows))
    if estimate.get("figures"):
        rows = [
            (
                escape(figure["what"]),
                _number(figure, "estimated"),
                _number(figure, "published"),
                escape(figure["unit"]),
                f'<td class="text">{escape(figure["note"])}</td>',
            )
            for figure in estimate["figures"]
        ]
        parts.append(table("Beside published figures", ("", "estimated", "published", "unit", ""), rows))
    if estimate.get("assumptions"):
        items = "".join(f"<li>{escape(text)}</li>" for text in estimate["assumptions"])
        parts.append(f"<h3>What the program's estimate assumes</h3><ul>{items}</ul>")
    return "".join(parts)


def _number(figure: Mapping[str, Any], name: str) -> str:
    if name not in figure:
        return "–"
    value = figure[name]
    return f"{value:,.0f}" if 1000 <= abs(value) < 1e15 else f"{value:.4g}"
