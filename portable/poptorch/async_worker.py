"""The process behind AsynchronousDataAccessor: it loads batches into a ring of shared memory. Spec: section 12.

Messages over one connection. To this process: ("epoch", n) asks for epoch n, ("free", slot) gives a slot of the ring
back, ("stop",). From it: ("ready",), ("batch", epoch, slot, skeleton, tensors), where `tensors` is None while the slot
keeps the tensors it had, ("end", epoch), ("failed", text, pickled exception or None).

A batch may be any picklable structure. Its skeleton is its pickle with a number in the place of each tensor.
"""

from __future__ import annotations

import io
import os
import pickle
import random
import signal
import sys
import threading
import time
import traceback
from collections.abc import Iterable, Iterator
from multiprocessing import connection as mp_connection
from multiprocessing import parent_process
from typing import Any

import torch
import torch.multiprocessing  # noqa: F401  (teaches multiprocessing to hand over tensors)
from torch.utils.data import BatchSampler, IterableDataset

_PARENT_GONE_GRACE = 2.0  # seconds between asking the loading code to end and ending the process

Piece = tuple[bytes, list[torch.Tensor]]  # skeleton and tensors


class Stopped(Exception):
    """The accessor is gone, or has asked to stop."""


class _NextEpoch(Exception):
    """The accessor wants a later epoch: the rest of this one is not needed."""


class Rebatched:
    """The elements of `loader`, cut and joined along dim 0 into batches of `size`.

    The last one is smaller unless `drop_last`. Iterating gives lists of pieces that make up a batch; they are joined
    where they are going to lie.
    """

    def __init__(self, loader: Iterable, size: int, drop_last: bool) -> None:
        self._loader = loader
        self._size = size
        self._drop_last = drop_last

    def __len__(self) -> int:
        samples = _samples(self._loader)
        return samples // self._size if self._drop_last else -(-samples // self._size)

    def pieces(self) -> Iterator[list[Piece]]:
        """Pieces of one batch after the other."""
        joined: list[Piece] = []
        missing = self._size
        for element in self._loader:
            skeleton, tensors = taken_apart(element)
            rows = _rows(tensors)
            start = 0
            while start < rows:
                taken = min(missing, rows - start)
                joined.append((skeleton, [tensor.narrow(0, start, taken) for tensor in tensors]))
                start, missing = start + taken, missing - taken
                if not missing:
                    yield joined
                    joined, missing = [], self._size
        if joined and not self._drop_last:
            yield joined


def _samples(loader: Any) -> int:
    """Samples in an epoch of a DataLoader; of anything else, whose elements are samples, its length."""
    batches = getattr(loader, "batch_sampler", None)
    if not isinstance(batches, BatchSampler) or isinstance(loader.dataset, IterableDataset):
        return len(loader) * (getattr(loader, "batch_size", None) or 1)
    samples = len(batches.sampler)
    return samples - samples % batches.batch_size if batches.drop_last else samples


def _rows(tensors: list[torch.Tensor]) -> int:
    """The common size of dim 0."""
    sizes = {tensor.shape[0] if tensor.dim() else None for tensor in tensors}
    if len(sizes) != 1 or None in sizes:
        raise ValueError(
            "batches can be cut and joined only if they consist of tensors of the same size along dim 0, got the "
            f"shapes {[tuple(tensor.shape) for tensor in tensors]}"
        )
    return sizes.pop()


class _Pickler(pickle.Pickler):
    def __init__(self, file: io.BytesIO) -> None:
        super().__init__(file, pickle.HIGHEST_PROTOCOL)
        self.tensors: list[torch.Tensor] = []
        self._numbers: dict[int, int] = {}

    def persistent_id(self, obj: Any) -> int | None:
        if type(obj) is not torch.Tensor or obj.layout is not torch.strided or obj.device.type != "cpu":
            return None
        number = self._numbers.setdefault(id(obj), len(self.tensors))
        if number == len(self.tensors):
            self.tensors.append(obj.detach())
        return number


class _Unpickler(pickle.Unpickler):
    def __init__(self, file: io.BytesIO, tensors: list[torch.Tensor]) -> None:
        super().__init__(file)
        self._tensors = tensors

    def persistent_load(self, pid: int) -> torch.Tensor:
        return self._tensors[pid]


def taken_apart(batch: Any) -> Piece:
    """Skeleton and tensors of a batch."""
    file = io.BytesIO()
    pickler = _Pickler(file)
    pickler.dump(batch)
    return file.getvalue(), pickler.tensors


def put_together(skeleton: bytes, tensors: list[torch.Tensor]) -> Any:
    """The batch that taken_apart() was given, with these tensors."""
    return _Unpickler(io.BytesIO(skeleton), tensors).load()


class _Slot:
    """One place of the ring: tensors in shared memory, made anew when a batch needs others."""

    def __init__(self) -> None:
        self._tensors: list[torch.Tensor] = []
        self._layout: list[tuple[torch.dtype, tuple[int, ...]]] | None = None

    def fill(self, pieces: list[Piece]) -> tuple[bytes, list[torch.Tensor] | None]:
        """Join the pieces here: the skeleton, and the tensors if they are new ones."""
        skeleton, first = pieces[0]
        if any(other != skeleton for other, _ in pieces):
            raise ValueError("batches can be joined only if they differ in nothing but their tensors")
        columns = [list(column) for column in zip(*(tensors for _, tensors in pieces), strict=True)]
        layout = [_layout(column) for column in columns]
        changed = layout != self._layout
        if changed:
            self._layout = layout
            self._tensors = [torch.empty(shape, dtype=dtype).share_memory_() for dtype, shape in layout]
        for tensor, column in zip(self._tensors, columns, strict=True):
            if len(column) == 1:
                tensor.copy_(column[0])
            else:
                torch.cat(column, out=tensor)
        return skeleton, self._tensors if changed else None


def _layout(column: list[torch.Tensor]) -> tuple[torch.dtype, tuple[int, ...]]:
    shape = tuple(column[0].shape)
    return column[0].dtype, shape if len(column) == 1 else (sum(part.shape[0] for part in column), *shape[1:])


class _Loader:
    """Keeps the ring filled and tells the accessor."""

    def __init__(
        self, connection: Any, dataset: Iterable, buffer_size: int, load_indefinitely: bool, early_preload: bool
    ) -> None:
        self._connection = connection
        self._dataset = dataset
        self._load_indefinitely = load_indefinitely
        self._slots = [_Slot() for _ in range(buffer_size)]
        self._free = list(range(buffer_size))
        self._wanted = 0 if early_preload else -1  # the last epoch asked for

    def run(self) -> None:
        """Load epoch after epoch. Ends with Stopped."""
        self._send("ready")
        epoch = 0
        while True:
            while not (epoch <= self._wanted or self._load_indefinitely and self._wanted >= 0):
                self._receive()
            try:
                for pieces in self._batches():
                    slot = self._wait_for_slot(epoch)
                    skeleton, tensors = self._slots[slot].fill(pieces)
                    self._send("batch", epoch, slot, skeleton, tensors)
            except _NextEpoch:
                pass
            self._send("end", epoch)
            epoch += 1

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
            raise Stopped from None
        if message == "stop":
            raise Stopped
        if message == "free":
            self._free.append(details[0])
        else:
            self._wanted = details[0]

    def _send(self, *message: Any) -> None:
        try:
            self._connection.send(message)
        except OSError:
            raise Stopped from None


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


def _exit_on_sigterm(number: int, frame: Any) -> None:
    raise SystemExit(0)  # so that a data loader in this process ends its own workers


def serve(
    connection: Any,
    dataset: Any,
    states: tuple[Any, ...],
    inherited: list[Any],
    buffer_size: int,
    load_indefinitely: bool,
    early_preload: bool,
) -> None:
    """The main function of the process.

    `dataset` is what to iterate, or its pickle (bytes), or the path of a file with it (str); `inherited` are
    connections to close, which a fork copied.
    """
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
        connection.recv()
    except (EOFError, OSError):
        pass
