"""Where the processes of one start find each other: a part of the store that earlier ones have not written to.

torchrun keeps its store when it starts processes again, and its count of restarts differs between its agents. torch's
own meeting takes the addresses that it finds there for those of now.
"""

from __future__ import annotations

import json
import time
import uuid
from datetime import timedelta

import torch.distributed as dist
from torch.distributed.rendezvous import rendezvous

_LOOK = 0.02  # seconds


def meet(process: int, processes: int, patience: timedelta) -> dist.Store:
    """A store that only these processes have. RuntimeError, naming who is missing, if some do not come in time.

    All meet at MASTER_ADDR and MASTER_PORT.
    """
    store, _, _ = next(rendezvous("env://", process, processes, timeout=patience))
    store = dist.PrefixStore("poptorch", store)
    until = time.monotonic() + patience.total_seconds()
    name = _invite(store, processes, until) if process == 0 else _answer(store, process, until)
    return dist.PrefixStore(name, store)


def _invite(store: dist.Store, processes: int, until: float) -> str:
    """The first process makes a name up, and says whom it has seen until everybody has found himself there."""
    name, others = uuid.uuid4().hex, range(1, processes)
    said: list[str] | None = None
    while True:
        seen = [_entry(store, f"here {other}") for other in others]
        if seen != said:
            store.set("meeting", json.dumps([name, seen]))
            said = seen
        missing = [other for other in others if _entry(store, f"joined {other}") != name]
        if not missing:
            return name
        if time.monotonic() > until:
            raise RuntimeError(f"process {', '.join(map(str, missing))} has not come")
        time.sleep(_LOOK)


def _answer(store: dist.Store, process: int, until: float) -> str:
    """Another process says that it is there, under a name of this start, and waits until the first has seen that."""
    mine = uuid.uuid4().hex
    store.set(f"here {process}", mine)
    while True:
        name, seen = json.loads(_entry(store, "meeting") or '["", []]')
        if len(seen) >= process and seen[process - 1] == mine:
            store.set(f"joined {process}", name)
            return name
        if time.monotonic() > until:
            raise RuntimeError("process 0 has not come")
        time.sleep(_LOOK)


def _entry(store: dist.Store, key: str) -> str:
    """Empty if it is not there."""
    return store.get(key).decode() if store.check([key]) else ""
