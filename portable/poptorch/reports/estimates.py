"""What a program expects of its run: estimate.json in the report's folder, which the program itself may write.

A JSON object. Everything in it may be left out:

    program      the command line that it is for, as shlex.join(sys.argv): of another one's run the file is left out
    kind         "training" or "inference": of the program's executors of the other kind it is left out as well
    assumptions  ["…"]: what the numbers rest on, for a reader
    stages       [{"stage": 0, "work": share of all work, "memory": {"weights": bytes, …}}]
    bubble       share of the time that the pipeline is not full
    timeline     {"of": "…", "unit": "…", "rows": [{"name": "IPU 0"}], "events": [{"row": 0, "kind": "forward",
                 "start": 0.0, "end": 1.0, "stages": [0], "micro_batch": 0}]}
    figures      [{"what": "…", "unit": "…", "estimated": number, "published": number, "note": "…"}]
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from .. import notices

FILE = "estimate.json"
_LARGEST = 64 << 20  # bytes


def of_program(path: Path, program: str, kind: str) -> dict[str, Any] | None:
    """What the file at `path` says for an executor of this kind under the command line `program`; None if nothing.

    One that is no estimate is told once and left out.
    """
    try:
        if path.stat().st_size > _LARGEST:
            raise ValueError(f"has more than {_LARGEST >> 20} MiB")
        found = checked(json.loads(path.read_text(encoding="utf-8")))
        return found if (found.get("program", program), found.get("kind", kind)) == (program, kind) else None
    except FileNotFoundError:
        return None
    except (OSError, ValueError, RecursionError) as error:
        notices.once(("estimate", path), f"The report leaves {path} out: it is no estimate of a run ({error}).")
        return None


def checked(found: Any) -> dict[str, Any]:
    """`found` as far as a report knows it. Raises ValueError for what has another form."""
    found = _object(found, "it")
    known: dict[str, Any] = {"assumptions": [_text(each) for each in _list(found.get("assumptions", []))]}
    known["stages"] = [_stage(each) for each in _list(found.get("stages", []))]
    known.update({name: _text(found[name]) for name in ("program", "kind") if name in found})
    if "bubble" in found:
        known["bubble"] = _amount(found["bubble"])
    if "timeline" in found:
        known["timeline"] = _timeline(_object(found["timeline"], "timeline"))
    known["figures"] = [_figure(_object(each, "figures")) for each in _list(found.get("figures", []))]
    return known


def _stage(found: Any) -> dict[str, Any]:
    found = _object(found, "stages")
    row: dict[str, Any] = {"stage": _whole(found.get("stage"))}
    if "work" in found:
        row["work"] = _amount(found["work"])
    row["memory"] = {kind: _amount(size) for kind, size in _object(found.get("memory", {}), "memory").items()}
    return row


def _timeline(found: dict[str, Any]) -> dict[str, Any]:
    rows = [{"name": _text(_object(each, "rows").get("name"))} for each in _list(found.get("rows", []))]
    events = []
    for each in _list(found.get("events", [])):
        each = _object(each, "events")
        event: dict[str, Any] = {"row": _whole(each.get("row")), "kind": _text(each.get("kind"))}
        event.update(start=_number(each.get("start")), end=_number(each.get("end")))
        if not 0 <= event["row"] < len(rows) or not 0 <= event["start"] <= event["end"]:
            raise ValueError(f"an event of its timeline is in no row, or ends before it begins: {each}")
        if "stages" in each:
            event["stages"] = [_whole(stage) for stage in _list(each["stages"])]
        if "micro_batch" in each:
            event["micro_batch"] = _whole(each["micro_batch"])
        events.append(event)
    return {"of": _text(found.get("of", "")), "unit": _text(found.get("unit", "s")), "rows": rows, "events": events}


def _figure(found: dict[str, Any]) -> dict[str, Any]:
    texts = {name: _text(found.get(name, "")) for name in ("what", "unit", "note")}
    return {**texts, **{name: _number(found[name]) for name in ("estimated", "published") if name in found}}


def _object(value: Any, what: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise ValueError(f"{what} must be an object, not {value!r:.60}")
    return value


def _list(value: Any) -> list[Any]:
    if not isinstance(value, list):
        raise ValueError(f"a list is expected, not {value!r:.60}")
    return value


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise ValueError(f"a text is expected, not {value!r:.60}")
    return value


def _number(value: Any) -> float:
    # a whole number that no float holds is as little of use as infinity
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not abs(value) <= sys.float_info.max:
        raise ValueError(f"a number is expected, not {value!r:.60}")
    return value


def _amount(value: Any) -> float:
    if _number(value) < 0:
        raise ValueError(f"a number of 0 or more is expected, not {value!r:.60}")
    return value


def _whole(value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int):
        raise ValueError(f"a whole number is expected, not {value!r:.60}")
    return value
