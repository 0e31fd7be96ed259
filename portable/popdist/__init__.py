"""Which process this is among those of one run, and how many replicas they hold together.

Processes are described by torchrun's environment: RANK and WORLD_SIZE. POPDIST_NUM_LOCAL_REPLICAS and
POPDIST_NUM_IPUS_PER_REPLICA (default 1) say what torchrun does not. Without any of them there is one process. Programs
import it; it imports nothing here, and popdist/poptorch.py the options. Start below.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Collection
from typing import Any


def init() -> None:
    """Joins the processes of the run.

    Forward-only programs need nothing of each other; training as one of several is refused by poptorch.trainingModel.
    ValueError if RANK and WORLD_SIZE do not go together.
    """
    getInstanceIndex()


def isPopdistEnvSet() -> bool:
    """Whether a launcher started this process as one of a run."""
    return "RANK" in os.environ and "WORLD_SIZE" in os.environ


def getInstanceIndex() -> int:
    """The number of this process, from 0. ValueError if RANK is not below WORLD_SIZE."""
    index = _number("RANK", 0, least=0)
    if index >= getNumInstances():
        raise ValueError(f"RANK={index} is not below WORLD_SIZE={getNumInstances()}: correct both, or unset them")
    return index


def getNumInstances() -> int:
    """How many processes the run has."""
    return _number("WORLD_SIZE", 1)


def getNumLocalReplicas() -> int:
    """How many replicas this process holds."""
    return _number("POPDIST_NUM_LOCAL_REPLICAS", 1)


def getNumTotalReplicas() -> int:
    """How many replicas all processes hold together."""
    return getNumInstances() * getNumLocalReplicas()


def getNumIpusPerReplica() -> int:
    """How many IPUs a replica has."""
    return _number("POPDIST_NUM_IPUS_PER_REPLICA", 1)


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
