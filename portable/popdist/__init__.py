"""Which process this is among those of one run, and which replicas they hold together.

Processes are described by torchrun's environment (RANK and WORLD_SIZE) or by PopRun's (Open MPI's
OMPI_COMM_WORLD_RANK and OMPI_COMM_WORLD_SIZE). POPDIST_NUM_TOTAL_REPLICAS, POPDIST_NUM_LOCAL_REPLICAS and
POPDIST_NUM_IPUS_PER_REPLICA, which PopRun sets, say how many replicas there are; without the first two every process
holds one. Fewer replicas than processes: neighbouring processes hold one together. Without any variable there is one
process. Programs import it; it imports the runtime's layout, and popdist/poptorch.py the options. Start below.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Collection
from typing import Any

from poptorch.engine.processes import layout

_LAUNCHERS = (("RANK", "WORLD_SIZE"), ("OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE"))
_TOTAL, _LOCAL, _IPUS = "POPDIST_NUM_TOTAL_REPLICAS", "POPDIST_NUM_LOCAL_REPLICAS", "POPDIST_NUM_IPUS_PER_REPLICA"


def init() -> None:
    """Reads what the launcher says. Processes meet when a program of several of them is compiled.

    ValueError if the number of processes, replicas and IPUs do not go together.
    """
    getInstanceIndex()
    getNumProcessesPerReplica()


def isPopdistEnvSet() -> bool:
    """Whether a launcher started this process as one of a run."""
    return ("RANK" in os.environ and "WORLD_SIZE" in os.environ) or _TOTAL in os.environ


def _variables() -> tuple[str, str]:
    """Names of the variables for the number of this process and of all."""
    torchrun, mpi = _LAUNCHERS
    return mpi if torchrun[1] not in os.environ and isPopdistEnvSet() else torchrun


def getInstanceIndex() -> int:
    """The number of this process, from 0. ValueError if it is not below the number of processes."""
    rank, size = _variables()
    index = _number(rank, 0, least=0)
    if index >= getNumInstances():
        raise ValueError(f"{rank}={index} is not below {size}={getNumInstances()}: correct both, or unset them")
    return index


def getNumInstances() -> int:
    """How many processes the run has."""
    return _number(_variables()[1], 1)


def getNumLocalReplicas() -> int:
    """How many replicas this process holds, or is one of the holders of. ValueError if they cannot be shared out."""
    if _LOCAL in os.environ:
        return _number(_LOCAL, 1)
    if _TOTAL not in os.environ:
        return 1
    return max(1, getNumTotalReplicas() // getNumInstances()) if getNumProcessesPerReplica() else 1


def getNumTotalReplicas() -> int:
    """How many replicas all processes hold together."""
    return _number(_TOTAL, getNumInstances() * _number(_LOCAL, 1))


def getNumIpusPerReplica() -> int:
    """How many IPUs a replica has."""
    return _number(_IPUS, 1)


def getNumProcessesPerReplica() -> int:
    """How many processes hold a replica together: 1 unless there are fewer replicas than processes.

    An addition of the portable runtime. ValueError, naming the numbers that fit, if they cannot be shared out.
    """
    return layout.ranks_per_replica(getNumInstances(), getNumTotalReplicas(), getNumIpusPerReplica())


def execute_on_instances(instances: Collection[int], func: Callable, *args: Any, **kwargs: Any) -> Any:
    """Calls `func` in the processes whose numbers are in `instances`.

    Returns what it returned, None in the other processes. ValueError if a number is not that of a process.
    """
    outside = [index for index in instances if not 0 <= index < getNumInstances()]
    if outside:
        raise ValueError(f"execute_on_instances: there is no process {outside}, the run has {getNumInstances()}")
    return func(*args, **kwargs) if getInstanceIndex() in instances else None


def _number(variable: str, default: int, least: int = 1) -> int:
    """The whole number in an environment variable. ValueError naming it if it is none or below `least`."""
    text = os.environ.get(variable, str(default))
    if not text.strip().isdigit() or int(text) < least:
        raise ValueError(f"environment variable {variable}={text!r} must be a whole number of at least {least}")
    return int(text)
