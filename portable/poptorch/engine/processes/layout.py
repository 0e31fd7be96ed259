"""Which of a program's replicas, or of one replica's IPUs, each of its processes holds."""

from __future__ import annotations

import dataclasses
from typing import Any


@dataclasses.dataclass(frozen=True)
class Layout:
    """This is process number `process` of `processes` that hold as many replicas each, in order.

    That is PopTorch's own convention. Where `parts` is above 1, such a "process" is one replica over as many ranks of
    torch.distributed, each with as many consecutive IPUs; this is number `part` of them.
    """

    process: int = 0
    processes: int = 1
    part: int = 0
    parts: int = 1

    @classmethod
    def of(cls, options: Any) -> Layout:
        """As poptorch.Options say it."""
        distributed = options.Distributed
        return cls(distributed.processId, distributed.numProcesses, *distributed._replica_part)

    @property
    def rank(self) -> int:
        """The number of this process among `ranks`."""
        return self.process * self.parts + self.part

    @property
    def ranks(self) -> int:
        """Processes of torch.distributed."""
        return self.processes * self.parts
