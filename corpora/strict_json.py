"""JSON that every reader takes: there is no NaN and no infinity in it (RFC 8259, section 6)."""

from __future__ import annotations

import json
import math
from typing import Any


def json_text(value: Any, **layout: Any) -> str:
    """`value` as JSON, with null for each float that is not finite. `layout` is json.dumps's: indent and the like."""
    try:
        return json.dumps(value, allow_nan=False, **layout)
    except ValueError:
        return json.dumps(_without_non_finite(value), allow_nan=False, **layout)


def _without_non_finite(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {key: _without_non_finite(each) for key, each in value.items()}
    if isinstance(value, (list, tuple)):
        return [_without_non_finite(each) for each in value]
    return value
