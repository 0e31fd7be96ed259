"""The process behind AsynchronousDataAccessor: it loads batches into a ring of shared memory. Spec: section 12.

Messages over one connection. To this process: ("epoch", n) asks for epoch n, ("free", slot) gives a slot of the ring
back, ("stop",). From it: ("ready", whether there is a batch), ("batch", epoch, slot, skeleton, tensors), where
`tensors` is None while the slot keeps the tensors it had, ("end", epoch), ("failed", text, pickled exception or None).

Skeletons are those of batch_ring.
"""

from __future__ import annotations

import itertools
import multiprocessing
import os
import pickle
import random
import select
import signal
import sys
import threading
import time
import traceback
from collections.abc import Iterable, Iterator
from multiprocessing import connection as mp_connection
from multiprocessing import parent_process
from typing import Any, NoReturn

import torch
import torch.multiprocessing  # noqa: F401  (teaches multiprocessing to hand over tensors)

from .batch_ring import Piece, Rebatched, Slot, taken_apart

_PARENT_GONE_GRACE = 2.0  # seconds between asking the loading code to end and ending the process


class Stopped(Exception):
    """The accessor is gone, or has asked to stop."""


class _NextEpoch(Exception):
    """The accessor wants a later epoch: the rest of this one is not needed."""


class _Loader:
    """Keeps the ring filled and tells the accessor."""

    def __init__(
        self, connection: Any, dataset: Iterable, buffer_size: int, load_indefinitely: bool, early_preload: bool
    ) -> None:
        self._connection = connection
        self._dataset = dataset
        self._load_indefinitely = load_indefinitely
        self._slots = [Slot() for _ in range(buffer_size)]
        self._free = list(range(buffer_size))
        self._wanted = 0 if early_preload else -1  # the last epoch asked for

    def run(self) -> None:
        """Load epoch after epoch. Ends with Stopped.

        The first batch is loaded before anybody asks, so that a broken data set fails while the accessor is being made.
        """
        batches = self._batches()
        first = list(itertools.islice(batches, 1))
        self._send("ready", bool(first))
        batches = itertools.chain(first, batches)
        epoch = 0
        while True:
            while not (epoch <= self._wanted or self._load_indefinitely and self._wanted >= 0):
                self._receive()
            try:
                for pieces in batches or self._batches():
                    slot = self._wait_for_slot(epoch)
                    skeleton, tensors = self._slots[slot].fill(pieces)
                    self._send("batch", epoch, slot, skeleton, tensors)
            except _NextEpoch:
                pass
            self._send("end", epoch)
            epoch += 1
            batches = None

    def _batches(self) -> Iterator[list[Piece]]:
        if isinstance(self._dataset, Rebatched):
            return self._dataset.pieces()
        return ([taken_apart(batch)] for batch in self._dataset)

    def _wait_for_slot(self, epoch: int) -> int:
        while not self._free or self._connection.poll():
            self._receive()
        if epoch < self._wanted:
            raise _NextEpoch
        return self._free.pop(0)

    def _receive(self) -> None:
        try:
            message, *details = self._connection.recv()
        except (EOFError, OSError):
            message, details = "stop", []
        if message == "stop":
            _stop()
        if message == "free":
            self._free.append(details[0])
        else:
            self._wanted = details[0]

    def _send(self, *message: Any) -> None:
        try:
            self._connection.send(message)
        except OSError:
            _stop()


def random_states() -> tuple[Any, ...]:
    """The states of the random generators that data sets use, for `serve`."""
    numpy = sys.modules.get("numpy")
    return (
        torch.get_rng_state().numpy().tobytes(),
        random.getstate(),
        None if numpy is None else numpy.random.get_state(),
    )


def _set_random_states(states: tuple[Any, ...]) -> None:
    torch.set_rng_state(torch.frombuffer(bytearray(states[0]), dtype=torch.uint8))
    random.setstate(states[1])
    if states[2] is not None:
        import numpy

        numpy.random.set_state(states[2])


def _end_with_parent() -> None:
    """Ends this process when the one that started it is gone, even if the data set's code never comes back."""
    mp_connection.wait([parent_process().sentinel])
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(_PARENT_GONE_GRACE)
    os._exit(1)


_ending = False  # this process is on its way out


_accessor: Any = None  # this process's end of the connection


def _abandoned() -> bool:
    """Whether the accessor has closed its end, as it does before it signals this process, or is gone."""
    if os.getppid() != parent_process().pid:
        return True
    poll = select.poll()
    poll.register(_accessor.fileno(), 0)
    return bool(poll.poll(0))


def _exit_on_sigterm(number: int, frame: Any) -> None:
    if not _abandoned():  # a scheduler signals all processes of a job: as with Ctrl-C, the main one decides
        return
    ending = _ending
    _end_workers()
    if not ending:  # otherwise it may be in a destructor, which would print what is raised
        raise SystemExit(0)


def _stop() -> NoReturn:
    _end_workers()  # before the exception makes the data loader's destructor run
    raise Stopped from None


def _end_workers() -> None:
    """Ends the processes of a data loader in this one, which would wait seconds for those that do not listen."""
    global _ending
    _ending = True
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # torch's handler would call it a failure
    for worker in multiprocessing.active_children():
        worker.kill()  # a SIGTERM they may ignore, which is not for them to decide


def serve(
    connection: Any,
    dataset: Any,
    states: tuple[Any, ...],
    start_method: str | None,
    inherited: list[Any],
    buffer_size: int,
    load_indefinitely: bool,
    early_preload: bool,
) -> None:
    """The main function of the process.

    `dataset` is what to iterate, or its pickle (bytes), or the path of a file with it (str); `start_method` is how a
    data loader in this process starts its own; `inherited` are connections to close, which a fork copied.
    """
    global _accessor
    _accessor = connection
    multiprocessing.set_start_method(start_method, force=True)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a Ctrl-C reaches every process; the main one decides
    signal.signal(signal.SIGTERM, _exit_on_sigterm)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    for other in inherited:
        other.close()
    _set_random_states(states)
    torch.set_num_threads(1)  # as in torch's loader processes: the cores belong to the model
    try:
        if isinstance(dataset, str):
            with open(dataset, "rb") as file:
                dataset = pickle.load(file)
        elif isinstance(dataset, bytes):
            dataset = pickle.loads(dataset)
        _Loader(connection, dataset, buffer_size, load_indefinitely, early_preload).run()
    except Stopped:
        pass
    except Exception as error:
        _report(connection, error)
        _end_workers()


def _report(connection: Any, error: Exception) -> None:
    """Tells the accessor, which then ends this process: shared memory is handed over until it says "stop"."""
    text = ""
    while not text:
        try:
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            text = "".join(traceback.format_exception(error))
        except RuntimeError:  # from torch's handler, which tells once more that a loader's worker has died
            pass
    try:
        pickled = pickle.dumps(error)
        pickle.loads(pickled)
    except Exception:  # not every exception can be sent
        pickled = None
    try:
        connection.send(("failed", text, pickled))
        while connection.recv() != ("stop",):
            pass
    except (EOFError, OSError):
        pass
