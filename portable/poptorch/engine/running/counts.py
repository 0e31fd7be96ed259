"""How many micro-batches a call has, and where each lies in its inputs (spec section 2)."""

from __future__ import annotations

import dataclasses

from ...enums import CommGroupType

Place = tuple[int, int, int]  # (s, a, r) of a micro-batch: iteration, accumulation step, replica


@dataclasses.dataclass(frozen=True)
class Counts:
    """S, A and R of this process, and how replicas share inputs."""

    iterations: int
    accumulation: int
    replicas: int
    input_group_size: int = 1
    input_group_type: CommGroupType = CommGroupType.Consecutive
    processes: int = 1  # which have as many replicas each
    process: int = 0  # the number of this one

    @property
    def all_replicas(self) -> int:
        """The replicas of all processes together."""
        return self.replicas * self.processes

    def replica(self, r: int) -> int:
        """The number among all replicas of number `r` of this process."""
        return self.process * self.replicas + r

    @property
    def micro_batches(self) -> int:
        """Micro-batches computed in one call."""
        return self.iterations * self.accumulation * self.replicas

    @property
    def fed(self) -> int:
        """Micro-batches that the inputs of one call hold: groups of replicas share theirs."""
        return self.iterations * self.accumulation * (self.replicas // self.input_group_size)

    def position(self, s: int, a: int, r: int) -> int:
        """Where micro-batch (s, a, r) lies in the inputs: [S][A][R/g], the replica fastest."""
        groups = self.replicas // self.input_group_size
        consecutive = self.input_group_type is CommGroupType.Consecutive
        group = r // self.input_group_size if consecutive else r % groups
        return (s * self.accumulation + a) * groups + group

    def last_of_group(self, r: int) -> bool:
        """Whether no later replica shares the inputs of replica r."""
        return all(self.position(0, 0, other) != self.position(0, 0, r) for other in range(r + 1, self.replicas))
