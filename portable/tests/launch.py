"""Runs a function in several processes, with the environment that torchrun gives them, or a program in its own."""

from __future__ import annotations

import atexit
import multiprocessing
import multiprocessing.forkserver
import os
import pickle
import runpy
import socket
import subprocess
import sys
import tempfile
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

_context = multiprocessing.get_context("forkserver")
# The server of processes imports what a program does, seconds of it, once for all of them.
_IMPORTED = ["pytest", "poptorch", "popdist.poptorch", "poptorch.execution.compilation"]
_IMPORTED += ["torch.fx.experimental.proxy_tensor", "torch.fx.experimental.symbolic_shapes"]
_context.set_forkserver_preload(_IMPORTED)


def start_server() -> None:
    """Before any test: a loader of poptorch that came first would start it with less."""
    multiprocessing.forkserver.ensure_running()


def free_port() -> int:
    """A port that was free a moment ago."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def together(processes: int, function: Callable[..., Any], *arguments: Any, **environment: str) -> list[Any]:
    """What `function(*arguments)`, a function of a module, returns in each of `processes` processes.

    AssertionError with the tracebacks of those that failed. A process of its own even if it is one.
    """
    port = free_port()
    pipes, started = [], []
    for rank in range(processes):
        variables = {
            "RANK": str(rank),
            "WORLD_SIZE": str(processes),
            "LOCAL_RANK": str(rank),
            "LOCAL_WORLD_SIZE": str(processes),
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(port),
            "POPTORCH_PORTABLE_TIMEOUT": "60",
            **environment,
        }
        receiver, sender = _context.Pipe(duplex=False)
        process = _context.Process(target=_one, args=(variables, function, arguments, sender), daemon=True)
        process.start()
        sender.close()
        pipes.append(receiver)
        started.append(process)
    results: list[Any] = [None] * processes
    failed = []
    for rank, receiver in enumerate(pipes):
        try:
            done, result = pickle.loads(receiver.recv_bytes())
        except EOFError:
            done, result = False, "ended without a word"
        results[rank] = result
        if not done:
            failed.append(f"process {rank}: {result}")
    for process in started:
        process.join()
    assert not failed, "\n".join(failed)
    return results


def _one(variables: dict[str, str], function: Callable[..., Any], arguments: tuple, sender: Any) -> None:
    os.environ.update(variables)
    import torch

    torch.set_num_threads(1)
    torch.manual_seed(0)  # torch's own first seed is another in each process that was not forked from one with a seed
    try:
        message = pickle.dumps((True, function(*arguments)))
    except BaseException:
        message = pickle.dumps((False, traceback.format_exc()))
    sender.send_bytes(message)
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


def run_program(path: str | Path, *arguments: str, own_server: bool = False) -> subprocess.CompletedProcess[str]:
    """subprocess.run([sys.executable, path, *arguments], capture_output=True, text=True), with everything imported.

    Processes that it starts by the server of processes begin so, too, but what they say is not with what it says:
    `own_server` is for that.
    """
    with tempfile.TemporaryDirectory() as folder:
        files = [Path(folder, name) for name in ("out", "err")]
        process = _context.Process(target=_become, args=(str(path), list(arguments), list(map(str, files)), own_server))
        process.start()
        process.join()
        said = [file.read_text() for file in files]
    return subprocess.CompletedProcess([str(path), *arguments], process.exitcode, *said)


def _become(path: str, arguments: list[str], files: list[str], own_server: bool) -> None:
    """As the interpreter does it: the program as `__main__`, a traceback if it fails, then what is left for the end."""
    for number, file in enumerate(files, start=1):
        descriptor = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(descriptor, number)
        os.close(descriptor)
    if not own_server:
        multiprocessing.forkserver._forkserver.ensure_running = lambda: None  # it has the address of the one it is from
    multiprocessing.set_start_method(None, force=True)  # its own is that of the server
    sys.argv, status = [path, *arguments], 0
    sys.path.insert(0, str(Path(path).parent))
    try:
        runpy.run_path(path, run_name="__main__")
    except SystemExit as end:
        status = end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException:
        traceback.print_exc()
        status = 1
    atexit._run_exitfuncs()
    sys.stdout.flush()
    os._exit(status)
