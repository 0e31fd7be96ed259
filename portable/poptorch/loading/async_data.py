"""AsynchronousDataAccessor: another process loads batches ahead of time. Spec: section 12."""

from __future__ import annotations

import multiprocessing
import multiprocessing.util
import os
import pickle
import signal
import tempfile
from collections.abc import Iterable, Iterator
from multiprocessing import connection as mp_connection
from multiprocessing.reduction import ForkingPickler
from typing import Any

import torch

from .. import notices
from ..checks import require, require_positive_int
from ..enums import SharingStrategy
from ..poptorch_core import createPoptorchError
from . import async_worker, batch_ring

_GRACE = 1.0  # seconds in which the process has to end by itself
_CHECK = 1.0  # seconds between looks at whether it still lives, should nothing else tell

_MISS_SLEEP_TIME = 0.1  # milliseconds, PopTorch's default

_START_METHODS = {
    SharingStrategy.SharedMemory: "spawn",
    SharingStrategy.FileSystem: "spawn",
    SharingStrategy.Fork: "fork",
    SharingStrategy.ForkServer: "forkserver",
}
_FAILED_TO_START = "AsynchronousDataAccessor worker thread failed to start (Check above for details)"

_open: set[Any] = set()  # this process's ends of all connections: a forked process must close its copies


class AsynchronousDataAccessor:
    """Iterates `dataset` in another process, which puts batches into a ring of shared memory.

    A batch's tensors lie in the ring: they are valid until the next batch is asked for, clone what is to be kept.
    A new iterator begins a new epoch, also if the last one was not used up. The random generators of the process start
    in the states that those of the calling one have.

    Args:
        dataset: anything that can be iterated, usually a DataLoader, and be sent to another process. Empty ones are
            refused.
        buffer_size: batches in the ring, the one in use included.
        miss_sleep_time_in_ms: has no effect (said once if it is given): the process is woken up when there is room.
        load_indefinitely: go on with the next epoch as soon as one is loaded, before it is asked for.
        early_preload: fill the ring at once instead of with the first iterator. The first batch is loaded in any case.
        sharing_strategy: how the process is started and gets the data set: forked with it, forked from a server or
            started anew with a pickle of it (SharedMemory: its tensors are shared; FileSystem: by way of a file).
        rebatched_size: cut and join what the data set gives into batches of so many samples. What is left over at the
            end comes as a smaller batch, unless the data set has an attribute drop_last that is true.
    Raises:
        poptorch.Error: the data set is empty, cannot be sent to another process or fails to give its first batch; later
            on the process fails, or dies. An exception of the data set is the cause of the error.
    """

    def __init__(
        self,
        dataset: Any,
        buffer_size: int = 3,
        miss_sleep_time_in_ms: float = _MISS_SLEEP_TIME,
        load_indefinitely: bool = True,
        early_preload: bool = False,
        sharing_strategy: SharingStrategy = SharingStrategy.ForkServer,
        rebatched_size: int | None = None,
    ) -> None:
        require_positive_int("buffer_size", buffer_size)
        require(
            isinstance(sharing_strategy, SharingStrategy),
            f"sharing_strategy must be a poptorch.SharingStrategy, got {sharing_strategy!r}",
        )
        if miss_sleep_time_in_ms != _MISS_SLEEP_TIME:
            notices.once(
                "miss_sleep_time_in_ms",
                "miss_sleep_time_in_ms of AsynchronousDataAccessor has no effect off-IPU: nobody sleeps between looks, "
                "the process is woken up.",
            )
        if _length(dataset) == 0:
            raise createPoptorchError("The Dataset is empty")
        if rebatched_size is not None:
            require_positive_int("rebatched_size", rebatched_size)
            dataset = batch_ring.Rebatched(dataset, rebatched_size, bool(getattr(dataset, "drop_last", False)))
        self._dataset = dataset
        self._epoch = -1
        self._position = 0  # batches taken from the epoch
        self._ended = True
        self._held: int | None = None  # the slot of the batch in use
        self._slots: list[list[torch.Tensor]] = [[] for _ in range(buffer_size)]
        self._start(sharing_strategy, (buffer_size, load_indefinitely, early_preload))

    def __len__(self) -> int:
        """Batches in an epoch. TypeError if the data set does not know."""
        return len(self._dataset)

    def __iter__(self) -> Iterator[Any]:
        self._require_running()
        self._release()
        self._epoch += 1
        self._position, self._ended = 0, False
        self._send("epoch", self._epoch)
        return self

    def __next__(self) -> Any:
        if self._ended and self._epoch >= 0:
            raise StopIteration
        self._require_running()
        if self._epoch < 0:
            iter(self)
        self._release()
        while True:
            message, *details = self._receive()
            if message == "end" and details[0] == self._epoch:
                self._ended = True
                if not self._position:
                    raise createPoptorchError("The Dataset is empty")
                raise StopIteration
            if message == "batch":
                epoch, slot, skeleton, tensors = details
                if tensors is not None:
                    self._slots[slot] = tensors
                self._held = slot
                if epoch == self._epoch:
                    self._position += 1
                    return batch_ring.put_together(skeleton, self._slots[slot])
                self._release()  # of an epoch that was not used up

    def terminate(self) -> None:
        """End the process. Going on with an epoch, or beginning one, raises poptorch.Error afterwards."""
        self._finalizer()

    # -- the process ---------------------------------------------------------------------------------------------

    def _start(self, strategy: SharingStrategy, settings: tuple[int, bool, bool]) -> None:
        context = multiprocessing.get_context(_START_METHODS[strategy])
        if strategy is SharingStrategy.ForkServer:
            context.set_forkserver_preload([async_worker.__name__])  # torch is imported once, not in each process
        ours, theirs = context.Pipe()
        _open.add(ours)
        inherited = list(_open) if strategy is SharingStrategy.Fork else []
        # A data loader in the process starts its workers as it would in this one. None: as Python does by default.
        start_method = multiprocessing.get_start_method(allow_none=True)
        sent, path = self._dataset, None
        try:
            if strategy is SharingStrategy.FileSystem:
                sent = path = _pickled_file(self._dataset)
            elif strategy is not SharingStrategy.Fork:
                # Left to Process, tensors that exist only while pickling would be gone before the process has them.
                sent = bytes(ForkingPickler.dumps(self._dataset))
            process = context.Process(
                target=async_worker.serve,
                args=(theirs, sent, async_worker.random_states(), start_method, inherited, *settings),
                name="poptorch.AsynchronousDataAccessor",
            )
            process.start()
            theirs.close()
            # Runs when this object is collected and at exit, before multiprocessing waits for its processes.
            self._finalizer = multiprocessing.util.Finalize(self, _stop, (process, ours), exitpriority=100)
            self._process, self._connection = process, ours
            _, has_batch = self._receive(_FAILED_TO_START)
        except (pickle.PicklingError, AttributeError, TypeError, RuntimeError) as error:
            _open.discard(ours)
            raise createPoptorchError(
                f"{_FAILED_TO_START}: the data set, or something in it, cannot be sent to another process "
                f"({type(error).__name__}: {error}). Define classes and functions at the top level of a module, "
                "protect the main program by `if __name__ == '__main__':`, or use poptorch.SharingStrategy.Fork"
            ) from error
        finally:
            if path is not None:
                os.unlink(path)
        if not has_batch:
            self.terminate()
            raise createPoptorchError("The Dataset is empty")

    def _receive(self, died: str = "") -> tuple[Any, ...]:
        """The next message. Raises poptorch.Error if the process failed, or has ended without one."""
        while True:
            ready = mp_connection.wait([self._connection, self._process.sentinel], _CHECK)
            try:
                if self._connection in ready or self._connection.poll():
                    message = self._connection.recv()
                    break
                alive = self._process.is_alive()
            except (EOFError, OSError):
                alive = False
            if not alive:
                raise self._dead(died)
        if message[0] == "failed":
            self.terminate()
            text = died or "AsynchronousDataAccessor: loading data failed"
            raise createPoptorchError(f"{text}:\n{message[1]}") from _unpickled(message[2])
        return message

    def _dead(self, text: str) -> Exception:
        self._process.join(_GRACE)
        code = self._process.exitcode
        self.terminate()
        if not text:
            text = "AsynchronousDataAccessor: the process that loads data has ended unexpectedly"
        reason = f"exit code {code}"
        if code is not None and code < 0:
            reason = f"signal {signal.Signals(-code).name}"
        hint = " There may be too little shared memory (/dev/shm)." if code == -signal.SIGBUS else ""
        return createPoptorchError(f"{text} [{reason}].{hint}")

    def _send(self, *message: Any) -> None:
        try:
            self._connection.send(message)
        except OSError:
            pass  # the process is gone: _receive() finds out what happened

    def _release(self) -> None:
        if self._held is not None:
            self._send("free", self._held)
            self._held = None

    def _require_running(self) -> None:
        if not self._finalizer.still_active():
            raise createPoptorchError("AsynchronousDataAccessor has been terminated")


def _length(dataset: Iterable) -> int | None:
    if isinstance(dataset, batch_ring.Rebatched):  # which counts on elements that are samples
        return None
    try:
        return len(dataset)
    except TypeError:
        return None


def _unpickled(error: bytes | None) -> BaseException | None:
    try:
        return None if error is None else pickle.loads(error)
    except Exception:  # its class is known in the other process only; the text says what happened
        return None


def _pickled_file(dataset: Any) -> str:
    """Path of a temporary file with the pickle of `dataset`."""
    with tempfile.NamedTemporaryFile(prefix="poptorch-", suffix=".pickle", delete=False) as file:
        try:
            pickle.dump(dataset, file)
        except BaseException:
            os.unlink(file.name)
            raise
    return file.name


def _stop(process: Any, connection: Any) -> None:
    """Ends the process, by force if it does not listen."""
    _open.discard(connection)
    try:
        connection.send(("stop",))
    except OSError:
        pass
    connection.close()
    for end in (process.terminate, process.kill):
        process.join(_GRACE)
        if not process.is_alive():
            break
        end()
    process.join()
    process.close()
