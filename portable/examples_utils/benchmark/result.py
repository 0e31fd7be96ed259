"""What one variant came to."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any


@dataclass
class Result:
    """What one variant came to. `status` is success, failure, timeout or interrupted; `problems` say why.

    `rules` say in words which rule made each of the `metrics`; `output` has what the spec asks to be shown, `notes`
    what it says of the data, `additional` what --additional-metrics adds.
    """

    benchmark: str
    variant: str
    description: str
    command: list[str]
    parameters: dict[str, Any]
    log_folder: str
    started: str
    status: str = "success"
    exit_code: int | None = None
    seconds: float = 0.0
    metrics: dict[str, float | str] = field(default_factory=dict)
    rules: dict[str, str] = field(default_factory=dict)
    output: dict[str, Any] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)
    spec: str = ""
    notes: dict[str, Any] = field(default_factory=dict)
    additional: dict[str, Any] = field(default_factory=dict)

    def fail(self, status: str, problem: str) -> None:
        """Notes why it is no success; the first status stays."""
        self.status = status if self.status == "success" else self.status
        self.problems.append(problem)
