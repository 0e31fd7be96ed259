"""Which replicas and which IPUs of a program each of its processes holds.

W processes hold R replicas of P IPUs. Either W divides R, and a process holds R / W whole replicas; or W = R x k where
k divides P, and a process holds P / k consecutive IPUs of one replica. The processes of a replica are neighbours.
"""

from __future__ import annotations

import dataclasses
from typing import Any


def ranks_per_replica(processes: int, replicas: int, ipus: int) -> int:
    """k: 1 where processes hold whole replicas. Raises ValueError, naming the numbers that fit, where none is right."""
    if replicas % processes == 0:
        return 1
    k, rest = divmod(processes, replicas)
    if rest or ipus % k:
        fit = sorted(
            {d for d in range(1, replicas + 1) if replicas % d == 0}
            | {replicas * d for d in range(1, ipus + 1) if ipus % d == 0}
        )
        raise ValueError(
            f"{processes} processes cannot share {replicas} replica{'s'[: replicas != 1]} of {ipus} "
            f"IPU{'s'[: ipus != 1]}: start {_one_of(fit)} of them, or choose as many replicas as processes"
        )
    return k


def _one_of(numbers: list[int]) -> str:
    *others, last = [f"{number}" for number in numbers]
    return f"{', '.join(others)} or {last}" if others else last


@dataclasses.dataclass(frozen=True)
class Layout:
    """What one process holds.

    `unit` is its number among the `units` groups of processes that hold whole replicas, `rank` its number among the
    `ranks` processes of one of them: (0, 1) unless a replica is spread over several.
    """

    unit: int = 0
    units: int = 1
    rank: int = 0
    ranks: int = 1

    @classmethod
    def of(cls, options: Any) -> Layout:
        """As poptorch.Options say it."""
        distributed = options.Distributed
        return cls(
            distributed.processId, distributed.numProcesses, distributed.rank_in_replica, distributed.ranks_per_replica
        )

    @property
    def processes(self) -> int:
        """W, all processes of the program."""
        return self.units * self.ranks

    @property
    def process(self) -> int:
        """The number of this one among all."""
        return self.unit * self.ranks + self.rank

    def ipus_of(self, ipus: int) -> list[range]:
        """The IPUs of each process of a replica of `ipus` of them. Raises ValueError if they do not come out even."""
        if ipus % self.ranks:
            raise ValueError(
                f"{self.ranks} processes cannot share the {ipus} IPU{'s'[: ipus != 1]} of a replica evenly: start a "
                "number of them that divides it"
            )
        each = ipus // self.ranks
        return [range(rank * each, (rank + 1) * each) for rank in range(self.ranks)]
