"""Joining the processes of a program: the default group of torch.distributed."""

from __future__ import annotations

import atexit
import datetime
import os
import uuid
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
import torch.distributed as dist

from ...poptorch_core import createPoptorchError
from . import watch
from .activity import wait_for_rest
from .layout import Layout
from .meeting import meet
from .reduction import exchange

TIMEOUT_VARIABLE = "POPTORCH_PORTABLE_TIMEOUT"
HEARTBEAT_VARIABLE = "POPTORCH_PORTABLE_HEARTBEAT"
_TIMEOUT = 1800.0  # seconds; one process may load data or validate while others wait
_HEARTBEAT = 20.0  # seconds without a sign of life; three times as long, and the launcher's part, are below a minute
_ARRIVAL = 300.0  # seconds; a launcher starts all processes at once

# A thread of gloo lets go of a collective's tensors some time after those who wait for it know that it is done, and
# needs the interpreter's lock for that (pytorch#190489). While the interpreter ends Python ends a thread that asks for
# it, in a destructor: std::terminate, the end of the process by SIGABRT. Said here, once the program imports this, it
# comes after what the program says later. Leaving the groups (destroy_process_group) would not do: gloo's threads end
# with the last reference to a group, and the program's executors have some.
atexit.register(wait_for_rest, "pt_gloo_runloop", 5.0)


def _seconds(variable: str, default: float, least: float) -> float:
    """Of an environment variable. Raises poptorch.Error for what is no number of seconds."""
    text = os.environ.get(variable, str(default))
    try:
        seconds = float(text)
    except ValueError:
        seconds = -1.0
    if not least <= seconds < 1e9:
        raise createPoptorchError(f"environment variable {variable}={text!r} must be a number of seconds")
    return seconds


def timeout() -> datetime.timedelta:
    """How long a process waits for another one. Raises poptorch.Error for a variable that is no number of seconds."""
    return datetime.timedelta(seconds=_seconds(TIMEOUT_VARIABLE, _TIMEOUT, 0.001))


def join(layout: Layout, device: torch.device, holds: str) -> None:
    """Meet the other processes, if that has not happened: the program may have done it by itself.

    From then on they watch each other; `holds` is what this one has of the model, for messages. Raises poptorch.Error
    if they cannot be reached, or are another number than the options say.
    """
    patience = _seconds(HEARTBEAT_VARIABLE, _HEARTBEAT, 0.0)
    if not dist.is_initialized():
        missing = [name for name in ("MASTER_ADDR", "MASTER_PORT") if name not in os.environ]
        if missing:
            raise createPoptorchError(
                f"Options.Distributed says process {layout.rank} of {layout.ranks}, but {' and '.join(missing)} "
                "do not say where they meet: start the program with torchrun, set both variables for every process "
                "(the address of the first one's host and a free port there), or call Distributed.disable()."
            )
        try:
            store = meet(layout.rank, layout.ranks, min(timeout(), datetime.timedelta(seconds=_ARRIVAL)))
            dist.init_process_group(
                "gloo" if device.type == "cpu" else "cpu:gloo,cuda:nccl",
                store=store,
                rank=layout.rank,
                world_size=layout.ranks,
                timeout=timeout(),
            )
        except (RuntimeError, ValueError) as error:
            address = f"{os.environ['MASTER_ADDR']}:{os.environ['MASTER_PORT']}"
            raise createPoptorchError(
                f"process {layout.rank} of {layout.ranks} cannot meet the others at {address} "
                f"({str(error).splitlines()[0]}): start all of them, with the same address"
            ) from error
    if (dist.get_rank(), dist.get_world_size()) != (layout.rank, layout.ranks):
        raise createPoptorchError(
            f"Options.Distributed says process {layout.rank} of {layout.ranks}, torch.distributed is process "
            f"{dist.get_rank()} of {dist.get_world_size()}: make them agree"
        )
    if watch.current() is not None:
        watch.current().hold(holds)
    elif layout.ranks > 1 and patience:
        name = [uuid.uuid4().hex]  # the store may have what an earlier start of the program wrote
        dist.broadcast_object_list(name, src=0)
        store = dist.PrefixStore(name[0], dist.distributed_c10d._get_default_store())
        watch.begin(store, layout.rank, layout.ranks, holds, patience)


def joined() -> bool:
    """Whether the processes have met, and watch each other."""
    return watch.current() is not None


def check() -> None:
    """Raises poptorch.Error, naming the process, if one of the program has ended or hangs.

    Looks for a few seconds, for one that has just gone is not known at once.
    """
    watched = watch.current()
    gone = "" if watched is None else watched.explanation("")
    if gone:
        raise createPoptorchError(gone)


_made: list[tuple[dist.ProcessGroup, dict[tuple[int, ...], dist.ProcessGroup]]] = []  # with the default group


def subgroup(ranks: Iterable[int]) -> dist.ProcessGroup:
    """The group of these ranks, made once. All processes must ask for all groups in the same order."""
    if not _made or _made[0][0] is not dist.group.WORLD:
        _made[:] = [(dist.group.WORLD, {})]
    groups, key = _made[0][1], tuple(ranks)
    if key == tuple(range(dist.get_world_size())):
        return dist.group.WORLD
    if key not in groups:
        groups[key] = dist.new_group(list(key), timeout=timeout())
    return groups[key]


def everybody() -> dist.ProcessGroup:
    """All processes that have met."""
    return dist.group.WORLD


def replicas(layout: Layout) -> dist.ProcessGroup | None:
    """The processes over which the gradients here are reduced: those that hold the same part of other replicas.

    None if there are no others.
    """
    if layout.processes == 1:
        return None
    groups = [subgroup(range(part, layout.ranks, layout.parts)) for part in range(layout.parts)]
    return groups[layout.part]


def ranks_of(layout: Layout, process: int) -> list[int]:
    """The numbers in torch.distributed of the processes that hold a replica together."""
    return list(range(process * layout.parts, (process + 1) * layout.parts))


def parts(layout: Layout, which: Iterable[int] | None = None) -> dist.ProcessGroup | None:
    """The processes that hold this replica together, or those with the numbers `which`; None for one that is not."""
    chosen = range(layout.parts) if which is None else list(which)
    groups = []
    for process in range(layout.processes):
        ranks = ranks_of(layout, process)
        groups.append(subgroup([ranks[part] for part in chosen]))
    return groups[layout.process] if layout.part in chosen else None


def from_first(value: Any) -> Any:
    """`value` of the first of all processes, which have met, and each of which must ask."""
    told = [value]
    with exchange():
        dist.broadcast_object_list(told, src=0)
    return told[0]


def in_first(action: Callable[[], None], members: dist.ProcessGroup | None) -> None:
    """`action` is done by the first of some processes, all of which must call this and wait for it; or by the only one.

    Raises what it raised, poptorch.Error in the others.
    """
    if members is None:
        return action()
    failed: Exception | None = None
    if dist.get_rank(members) == 0:
        try:
            action()
        except Exception as error:  # the others must not wait for ever
            failed = error
    told = [None if failed is None else f"process 0 failed: {failed}"]
    with exchange():
        dist.broadcast_object_list(told, src=dist.get_global_rank(members, 0), group=members)
    if failed is not None:
        raise failed
    if told[0] is not None:
        raise createPoptorchError(told[0])


def agree_on(facts: Mapping[str, str], layout: Layout) -> None:
    """Raises poptorch.Error in every process, naming the first that differs, unless all give the same facts."""
    told: list[Mapping[str, str] | None] = [None] * layout.ranks
    dist.all_gather_object(told, dict(facts))
    first = told[0]
    for process, other in enumerate(told):
        for name in first:
            if other.get(name) != first[name]:
                raise createPoptorchError(
                    f"process {process} has another {name} than process 0: {other.get(name)} instead of {first[name]}. "
                    "Start all processes with the same program, flags, data and checkpoint."
                )


def check_gpus(device: torch.device, layout: Layout) -> None:
    """Raises poptorch.Error in every process if two of them have the same GPU, between which NCCL carries nothing."""
    told: list[str] = [""] * layout.ranks
    dist.all_gather_object(told, str(torch.cuda.get_device_properties(device).uuid) if device.type == "cuda" else "")
    first: dict[str, int] = {}
    for process, gpu in enumerate(told):
        if gpu and first.setdefault(gpu, process) != process:
            raise createPoptorchError(
                f"processes {first[gpu]} and {process} have the same GPU, and NCCL wants one for each: start no more "
                "processes on a machine than it has GPUs, or all of them with POPTORCH_PORTABLE_DEVICE=cpu"
            )
