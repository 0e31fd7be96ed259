"""run.json, which a run writes beside its checkpoints: flags, machine, versions, checkpoints, how it ended."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

RUN_FILE = "run.json"


def run_file(folder: Path) -> dict[str, Any]:
    """The content of run.json; empty if it is missing or something else."""
    try:
        content = json.loads((folder / RUN_FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}
