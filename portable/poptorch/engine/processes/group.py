"""Joining the processes of a program: the default group of torch.distributed."""

from __future__ import annotations

import datetime
import os
from collections.abc import Callable, Mapping

import torch
import torch.distributed as dist
from torch.distributed.rendezvous import rendezvous

from ...poptorch_core import createPoptorchError
from .layout import Layout
from .reduction import exchange

TIMEOUT_VARIABLE = "POPTORCH_PORTABLE_TIMEOUT"
_TIMEOUT = 1800  # seconds; one process may load data or validate while others wait


def timeout() -> datetime.timedelta:
    """How long a process waits for another one. Raises poptorch.Error for a variable that is no number of seconds."""
    text = os.environ.get(TIMEOUT_VARIABLE, str(_TIMEOUT))
    try:
        seconds = float(text)
    except ValueError:
        seconds = 0.0
    if not 0 < seconds < 1e9:
        raise createPoptorchError(f"environment variable {TIMEOUT_VARIABLE}={text!r} must be a number of seconds")
    return datetime.timedelta(seconds=seconds)


def join(layout: Layout, device: torch.device) -> None:
    """Meet the other processes, if that has not happened: the program may have done it by itself.

    Raises poptorch.Error if they cannot be reached, or are another number than the options say.
    """
    if not dist.is_initialized():
        missing = [name for name in ("MASTER_ADDR", "MASTER_PORT") if name not in os.environ]
        if missing:
            raise createPoptorchError(
                f"Options.Distributed says process {layout.process} of {layout.processes}, but {' and '.join(missing)} "
                "do not say where they meet: start the program with torchrun, set both variables for every process "
                "(the address of the first one's host and a free port there), or call Distributed.disable()."
            )
        try:
            store, _, _ = next(rendezvous("env://", layout.process, layout.processes, timeout=timeout()))
            # torchrun may keep its store when it starts processes again, with what the earlier ones wrote.
            attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
            dist.init_process_group(
                "gloo" if device.type == "cpu" else "cpu:gloo,cuda:nccl",
                store=dist.PrefixStore(f"poptorch/{attempt}", store),
                rank=layout.process,
                world_size=layout.processes,
                timeout=timeout(),
            )
        except (RuntimeError, ValueError) as error:
            address = f"{os.environ['MASTER_ADDR']}:{os.environ['MASTER_PORT']}"
            raise createPoptorchError(
                f"process {layout.process} of {layout.processes} cannot meet the others at {address} "
                f"({str(error).splitlines()[0]}): start all of them, with the same address"
            ) from error
    if (dist.get_rank(), dist.get_world_size()) != (layout.process, layout.processes):
        raise createPoptorchError(
            f"Options.Distributed says process {layout.process} of {layout.processes}, torch.distributed is process "
            f"{dist.get_rank()} of {dist.get_world_size()}: make them agree"
        )


def replicas(layout: Layout) -> dist.ProcessGroup | None:
    """The processes over which gradients are reduced. None if this is the only one."""
    return dist.group.WORLD if layout.processes > 1 else None


def everybody() -> dist.ProcessGroup:
    """All processes that have met."""
    return dist.group.WORLD


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
    told: list[Mapping[str, str] | None] = [None] * layout.processes
    dist.all_gather_object(told, dict(facts))
    first = told[0]
    for process, other in enumerate(told):
        for name in first:
            if other.get(name) != first[name]:
                raise createPoptorchError(
                    f"process {process} has another {name} than process 0: {other.get(name)} instead of {first[name]}. "
                    "Start all processes with the same program, flags, data and checkpoint."
                )
