"""The text in a line of JSON, or what is wrong with the line."""

from __future__ import annotations

import json

_AN_OBJECT_A_LINE = "where a JSON object a line is expected; jq -c '.[]' FILE writes an array so"


def text_in(line: str, key: str, missing: str, remedy: str) -> str:
    """The member `key` of the object in a line. Raises ValueError that says what is there instead.

    `missing` is how the caller says that there is no text, `remedy` how to name another key or how a line has to look.
    """
    if line.lstrip().startswith("["):  # of an array over several lines no line is JSON
        raise ValueError(f"a JSON array begins here, {_AN_OBJECT_A_LINE}")
    try:
        row = json.loads(line)
    except ValueError as error:
        raise ValueError(f"not JSON: {error}") from error
    if not isinstance(row, dict):
        raise ValueError(f"{_shown(row)}, where a JSON object a line is expected")
    if key not in row:
        raise ValueError(f"{missing} (found {', '.join(map(repr, row)) or 'nothing'}); {remedy}")
    if not isinstance(row[key], str):
        raise ValueError(f"{missing}: the value is {_shown(row[key])}; take the row out, or {remedy}")
    return row[key]


def _shown(value: object) -> str:
    if value is None or isinstance(value, bool):
        return json.dumps(value)
    return {dict: "an object", list: "an array", str: "a string"}.get(type(value), "a number")
