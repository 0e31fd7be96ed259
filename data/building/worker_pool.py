"""Processes that are ready when the work is: forked from a server that has imported what they need.

The server is started first of all, so that it imports while its parent still reads a vocabulary.
"""

from __future__ import annotations

import concurrent.futures
import contextlib
import multiprocessing
import multiprocessing.connection
import multiprocessing.forkserver
import os
import signal
import threading
from typing import Any, Callable, Iterator

_METHOD = "forkserver"


def start_server() -> None:
    """Start the server, if this system has such; `worker_pool` does it where this was not called."""
    if _METHOD in multiprocessing.get_all_start_methods():
        multiprocessing.get_context(_METHOD).set_forkserver_preload(["data.building.assembly"])
        with _sigint_ignored():  # its children are born with what it was born with
            multiprocessing.forkserver.ensure_running()


def worker_pool(workers: int, initializer: Callable[..., None], *arguments: Any) -> concurrent.futures.Executor:
    """A pool whose processes ignore Ctrl-C, which is their parent's to handle, and end with it."""
    start_server()
    methods = multiprocessing.get_all_start_methods()
    context = multiprocessing.get_context(_METHOD if _METHOD in methods else "spawn")
    return concurrent.futures.ProcessPoolExecutor(
        workers, context, initializer=_start_worker, initargs=(initializer, arguments)
    )


def _start_worker(initializer: Callable[..., None], arguments: tuple[Any, ...]) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    initializer(*arguments)


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        multiprocessing.connection.wait([parent.sentinel])
        os._exit(1)


@contextlib.contextmanager
def _sigint_ignored() -> Iterator[None]:
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
