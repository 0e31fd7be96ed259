"""Which of a program's replicas each of its processes holds: as many each, in order (PopTorch's own convention)."""

from __future__ import annotations

import dataclasses
from typing import Any


@dataclasses.dataclass(frozen=True)
class Layout:
    """This is process number `process` of `processes`."""

    process: int = 0
    processes: int = 1

    @classmethod
    def of(cls, options: Any) -> Layout:
        """As poptorch.Options say it."""
        return cls(options.Distributed.processId, options.Distributed.numProcesses)
