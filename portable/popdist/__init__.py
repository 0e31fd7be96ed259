"""Which process this is among those of one run, and which replicas they hold together.

Processes are described by torchrun's environment (RANK and WORLD_SIZE) or by PopRun's (Open MPI's
OMPI_COMM_WORLD_RANK and OMPI_COMM_WORLD_SIZE). POPDIST_NUM_TOTAL_REPLICAS, POPDIST_NUM_LOCAL_REPLICAS and
POPDIST_NUM_IPUS_PER_REPLICA, which PopRun sets, say how many replicas there are; without the first two every process
holds one. Without any variable there is one process. Programs import it; it imports nothing of the runtime, which would
take seconds, and popdist/poptorch.py the options. Start below.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Collection
from typing import Any

_LAUNCHERS = (("RANK", "WORLD_SIZE"), ("OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE"))
_TOTAL, _LOCAL, _IPUS = "POPDIST_NUM_TOTAL_REPLICAS", "POPDIST_NUM_LOCAL_REPLICAS", "POPDIST_NUM_IPUS_PER_REPLICA"


def init() -> None:
    """Reads what the launcher says. Processes meet when a program of several of them is compiled.

    ValueError, naming the numbers that fit, if the processes cannot share the replicas out.
    """
    getInstanceIndex()
    getNumLocalReplicas()


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
    """How many replicas this process holds. ValueError, naming the numbers that fit, if they cannot be shared out."""
    if _LOCAL in os.environ or _TOTAL not in os.environ:
        return _number(_LOCAL, 1)
    processes, replicas = getNumInstances(), getNumTotalReplicas()
    if replicas % processes:
        *fewer, all_of_them = [number for number in range(1, replicas + 1) if replicas % number == 0]
        fit = f"{', '.join(map(str, fewer))} or {all_of_them}" if fewer else "1"
        raise ValueError(
            f"{processes} processes cannot share {replicas} replica{'s'[: replicas != 1]}: start {fit}, or choose a "
            f"multiple of {processes} replicas"
        )
    return replicas // processes


def getNumTotalReplicas() -> int:
    """How many replicas all processes hold together."""
    return _number(_TOTAL, getNumInstances() * _number(_LOCAL, 1))


def getNumIpusPerReplica() -> int:
    """How many IPUs a replica has."""
    return _number(_IPUS, 1)


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
