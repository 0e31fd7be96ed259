"""poptorch.Options filled in from the run's processes and replicas."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NoReturn

import popdist
from poptorch.options.executor_options import Options as _PoptorchOptions
from poptorch.options.groups import DistributedOptions


def _refuse(name: str) -> NoReturn:
    raise RuntimeError(f"Cannot call `{name}` with popdist.poptorch.Options")


class _PopdistDistributedOptions(DistributedOptions):
    """Process number and count as popdist knows them; not for the program to change."""

    def __init__(self) -> None:
        super().__init__()
        self.set(num_distributed_processes=popdist.getNumInstances(), distributed_process_id=popdist.getInstanceIndex())
        self._replica_part = popdist.getReplicaPart()

    def _read_environment(self, var_num_processes: str, var_process_id: str) -> None:
        """popdist reads the environment, under its own names."""

    def configureProcessId(self, process_id: int, num_processes: int) -> NoReturn:
        """Always RuntimeError: popdist has done it."""
        _refuse("Distributed.configureProcessId")

    def setEnvVarNames(self, var_num_processes: str, var_process_id: str) -> NoReturn:
        """Always RuntimeError: popdist has done it."""
        _refuse("Distributed.setEnvVarNames")

    def disable(self) -> NoReturn:
        """Always RuntimeError: popdist has done it."""
        _refuse("Distributed.disable")


class Options(_PoptorchOptions):
    """poptorch.Options whose replicas and processes are those of the run.

    Args:
        ipus_per_replica: IPUs that one replica of the model takes; by default popdist.getNumIpusPerReplica().
    Raises:
        RuntimeError: later calls of useIpuId, replicationFactor or Distributed.*.
        ValueError: replicas that the processes cannot share out.
    """

    def __init__(self, ipus_per_replica: int | None = None) -> None:
        count = popdist.getNumIpusPerReplica() if ipus_per_replica is None else ipus_per_replica
        if isinstance(count, bool) or not isinstance(count, int) or count < 1:
            raise ValueError(f"ipus_per_replica must be a whole number of at least 1, got {ipus_per_replica!r}")
        super().__init__()
        self._ipus_per_replica = count
        self._distributed = _PopdistDistributedOptions()
        self.set(replication_factor=popdist.getNumLocalReplicas())

    def _entries(self) -> Iterator[tuple[str, Any]]:
        yield "ipus_per_replica", self._ipus_per_replica
        yield from super()._entries()

    @property
    def ipus_per_replica(self) -> int:
        """IPUs that one replica takes."""
        return self._ipus_per_replica

    def useIpuId(self, ipu_id: int) -> Any:
        """Always RuntimeError: popdist chooses the device."""
        _refuse("useIpuId")

    def replicationFactor(self, replication_factor: int) -> Any:
        """Always RuntimeError: the launcher chooses the number of replicas."""
        _refuse("replicationFactor")
