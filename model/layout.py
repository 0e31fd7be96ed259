"""Which part of a run each of its processes holds."""

from __future__ import annotations

import dataclasses
import os
from typing import Sequence

# torchrun's and PopRun's: the number of a process, how many there are, its number on its machine.
_LAUNCHERS = (
    ("RANK", "WORLD_SIZE", "LOCAL_RANK"),
    ("OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_LOCAL_RANK"),
)


def launched() -> tuple[int, int]:
    """Number of this process and how many a launcher has started: (0, 1) without one.

    Where several processes hold one replica popdist counts them as one instance. Raises ValueError for variables that
    are no numbers, ModuleNotFoundError without popdist.
    """
    import popdist

    for number, count, _ in _LAUNCHERS:
        if popdist.isPopdistEnvSet() and count in os.environ:
            return int(os.environ.get(number, "0")), int(os.environ[count])
    return 0, 1


def is_first_of_machine() -> bool:
    """Whether this process is the first, or the only one, of its run on this machine."""
    for _, count, number in _LAUNCHERS:
        if count in os.environ:
            return os.environ.get(number, "0") == "0"
    return True


@dataclasses.dataclass(frozen=True)
class Layout:
    """W processes share R replicas of P IPUs each.

    W divides R: a rank holds R / W whole replicas. W = R k, where k divides P: a rank holds P / k consecutive IPUs of
    one replica, and ranks r k to r k + k - 1 are replica r. One process does everything in turn.

    Raises:
        ValueError: the numbers do not fit, with those that do.
    """

    processes: int
    replicas: int
    ipus: int

    def __post_init__(self) -> None:
        fitting = fitting_processes(self.replicas, self.ipus)
        if self.processes not in fitting:
            *fewer, most = map(str, fitting)
            start = f"{', '.join(fewer)} or {most}" if fewer else most
            raise ValueError(
                f"{self.processes} processes cannot share {self.replicas} replica{'s'[: self.replicas != 1]} of "
                f"{self.ipus} IPU{'s'[: self.ipus != 1]}; start {start}"
            )

    @property
    def ranks_a_replica(self) -> int:
        """k, the ranks that work on one replica."""
        return max(1, self.processes // self.replicas)

    @property
    def replicas_a_rank(self) -> int:
        """The replicas that a rank holds, wholly or a part of: more than one are computed in turn."""
        return max(1, self.replicas // self.processes)

    def rank(self, ipu: int) -> int:
        """The rank of the first replica that holds this IPU of it."""
        return ipu // (self.ipus // self.ranks_a_replica)

    def spans(self, ipus: Sequence[int]) -> int:
        """Of stages on these IPUs, in order: how many there are where neighbours of one rank count as one."""
        ranks = [self.rank(ipu) for ipu in ipus]
        return 1 + sum(here != there for here, there in zip(ranks, ranks[1:]))


def fitting_processes(replicas: int, ipus: int) -> list[int]:
    """The numbers of processes that can share so many replicas of so many IPUs, from 1 on."""
    whole = {number for number in range(1, replicas + 1) if replicas % number == 0}
    return sorted(whole | {replicas * number for number in range(1, ipus + 1) if ipus % number == 0})
