"""Which process this is among those of one run, and which replicas they hold together.

torchrun (RANK, WORLD_SIZE) or PopRun (Open MPI's variables) describe processes, POPDIST_NUM_TOTAL_REPLICAS,
POPDIST_NUM_LOCAL_REPLICAS and POPDIST_NUM_IPUS_PER_REPLICA the replicas: without the first two every process holds one.
Where there are more processes than replicas several hold one together and count as one instance; not so on IPUs.
Programs import it; it imports nothing of the runtime, which takes seconds, until several processes meet; poptorch.py
imports the options. Start below.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Collection
from typing import Any

_LAUNCHERS = (("RANK", "WORLD_SIZE"), ("OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE"))
_TOTAL, _LOCAL, _IPUS = "POPDIST_NUM_TOTAL_REPLICAS", "POPDIST_NUM_LOCAL_REPLICAS", "POPDIST_NUM_IPUS_PER_REPLICA"


def init() -> None:
    """Reads what the launcher says, and where it says where that is (MASTER_ADDR and MASTER_PORT), processes meet.

    From then on one that hangs ends all of them. Called again, it tells whether all are there.

    Raises:
        ValueError: naming the numbers that fit, if the processes cannot share the replicas out.
        poptorch.Error: if the others cannot be reached, or one of them has ended or hangs, naming it.
    """
    ranks, (part, parts), index = _process()[1], getReplicaPart(), getInstanceIndex()
    if ranks > 1 and "MASTER_ADDR" in os.environ and "MASTER_PORT" in os.environ:
        from poptorch.device.policy import choose  # torch with it, which takes seconds to import
        from poptorch.engine.processes import group, watch
        from poptorch.engine.processes.layout import Layout

        holds = watch.replicas(index, getNumLocalReplicas())
        holds = holds if parts == 1 else f"part {part + 1} of {parts} of {holds}"
        if group.joined():
            group.check()
        group.join(Layout(index, ranks // parts, part, parts), choose().device, holds)


def isPopdistEnvSet() -> bool:
    """Whether a launcher started this process as one of a run."""
    return ("RANK" in os.environ and "WORLD_SIZE" in os.environ) or _TOTAL in os.environ


def _variables() -> tuple[str, str]:
    """Names of the variables for the number of this process and of all."""
    torchrun, mpi = _LAUNCHERS
    return mpi if torchrun[1] not in os.environ and isPopdistEnvSet() else torchrun


def getInstanceIndex() -> int:
    """The number of this instance, from 0: of this process, or of the replica that it holds a part of.

    ValueError if the process's number is not below the number of processes.
    """
    return _process()[0] // getReplicaPart()[1]


def getNumInstances() -> int:
    """How many instances the run has: processes, or replicas where there are fewer of those."""
    return _process()[1] // getReplicaPart()[1]


def getReplicaPart() -> tuple[int, int]:
    """(0, 1), or where several processes hold a replica together, which of them this is and how many.

    An addition of the portable runtime. ValueError, naming the numbers that fit, if the processes cannot share the
    replicas out.
    """
    process, processes = _process()
    if _LOCAL in os.environ or _TOTAL not in os.environ:
        return 0, 1
    replicas, ipus = _number(_TOTAL, 1), _number(_IPUS, 1) if _IPUS in os.environ else None
    if replicas % processes == 0:
        return 0, 1
    parts, left = divmod(processes, replicas)
    if left or ipus is not None and ipus % parts:
        fit = [number for number in range(1, replicas + 1) if replicas % number == 0]
        spread = [replicas * part for part in range(2, (ipus or 1) + 1) if ipus % part == 0] if ipus else []
        others = "" if ipus else f", a multiple of {replicas} to lay each over several"
        of = f" of {ipus} IPUs" if (ipus or 1) > 1 else ""
        raise ValueError(
            f"{processes} processes cannot share {replicas} replica{'s'[: replicas != 1]}{of}: start "
            f"{_listed([*fit, *spread])}{others}, or choose a multiple of {processes} replicas"
        )
    return process % parts, parts


def _listed(numbers: list[int]) -> str:
    *first, last = map(str, numbers)
    return f"{', '.join(first)} or {last}" if first else last


def _process() -> tuple[int, int]:
    """Number of this process and how many there are. ValueError if these do not fit."""
    rank, size = _variables()
    index, count = _number(rank, 0, least=0), _number(size, 1)
    if index >= count:
        raise ValueError(f"{rank}={index} is not below {size}={count}: correct both, or unset them")
    return index, count


def getNumLocalReplicas() -> int:
    """How many replicas this instance holds. ValueError, naming the numbers that fit, if they cannot be shared out."""
    if _LOCAL in os.environ or _TOTAL not in os.environ:
        return _number(_LOCAL, 1)
    return getNumTotalReplicas() // getNumInstances()


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
