"""Programs in processes of their own that begin with everything imported.

A process that imports torch and torch.export anew spends some four seconds on it. One server for each process of pytest
has done that; asked to, it forks, and the copy becomes the program: its words, environment, folder, standard streams,
session. From there on all is as in a process that was started: signals, exit status, handlers at exit. Only what is
about the start itself (the order of imports, messages before them, variables that libraries read when they are loaded)
needs a process from scratch.
"""

from __future__ import annotations

import atexit
import contextlib
import gc
import importlib
import json
import os
import runpy
import shlex
import signal
import socket
import subprocess
import sys
import tempfile
import threading
from pathlib import Path
from typing import Sequence

ROOT = Path(__file__).resolve().parent.parent
IMPORTED = (
    "poptorch", "torch.export", "torch._dynamo", "torch.fx.experimental.proxy_tensor", "torch._functorch.aot_autograd",
    "torch.distributed.run",
    "safetensors.torch", "poptorch.execution.compilation", "training.run", "training.log.run_log",
    "generation.text_generator",
)  # fmt: skip
# What `python -m torch.distributed.run` does. The processes that it starts are from scratch, unless flags of its own,
# FORKED, stand before the program.
TORCHRUN = ("-c", "from torch.distributed.run import main; main()")
FORKED = ("--run-path", "--start-method", "fork", str(ROOT / "tests" / "forked_program.py"))
_LONGEST = 1 << 20  # bytes of a request


class WarmProcess:
    """A program that the server has forked; what tests use of subprocess.Popen.

    `words` are what follows the interpreter: a path, `-c CODE` or `-m MODULE`, and arguments. Streams are file
    descriptors.
    """

    def __init__(self, words: Sequence[str], stdin: int, stdout: int, stderr: int, env: dict, cwd: str) -> None:
        self._status, theirs = socket.socketpair()
        request = {"words": list(map(str, words)), "env": env, "cwd": str(cwd)}
        with theirs:
            socket.send_fds(_server(), [json.dumps(request).encode()], [stdin, stdout, stderr, theirs.fileno()])
        self._messages = self._status.makefile("r")
        self.pid, self.returncode = int(self._messages.readline()), None

    def wait(self, timeout: float | None = None) -> int:
        """The exit status, negative for a signal. Raises subprocess.TimeoutExpired."""
        if self.returncode is None:
            self._status.settimeout(timeout)
            try:
                self.returncode = int(self._messages.readline())
            except OSError as error:  # a socket's time limit
                raise subprocess.TimeoutExpired(str(self.pid), timeout or 0.0) from error
            self._messages.close()
            self._status.close()
        return self.returncode

    def poll(self) -> int | None:
        if self.returncode is None and _readable(self._status):
            self.wait()
        return self.returncode

    def send_signal(self, number: int) -> None:
        """Nothing once it has ended."""
        if self.poll() is None:
            with contextlib.suppress(ProcessLookupError):  # ended since
                os.kill(self.pid, number)

    def terminate(self) -> None:
        self.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)


class PipedProcess(WarmProcess):
    """One whose output and errors are read while it runs, as lines of text."""

    def __init__(self, words: Sequence[str], env: dict, cwd: str = str(ROOT)) -> None:
        (out, out_end), (err, err_end) = os.pipe(), os.pipe()
        with open(os.devnull) as nothing:
            super().__init__(words, nothing.fileno(), out_end, err_end, env, cwd)
        os.close(out_end), os.close(err_end)
        self.stdout, self.stderr = os.fdopen(out, encoding="utf-8"), os.fdopen(err, encoding="utf-8")

    def communicate(self, timeout: float) -> tuple[str, str]:
        """What is left of output and errors, at the end of the process. Raises subprocess.TimeoutExpired."""
        errors: list[str] = []
        reader = threading.Thread(target=lambda: errors.append(self.stderr.read()), daemon=True)
        late = threading.Event()
        watch = threading.Timer(timeout, lambda: (late.set(), self.kill()))
        reader.start(), watch.start()
        out = self.stdout.read()
        reader.join()
        watch.cancel()
        self.stdout.close(), self.stderr.close()
        self.wait(timeout)
        if late.is_set():
            raise subprocess.TimeoutExpired(str(self.pid), timeout, out, errors[0])
        return out, errors[0]


def run(words: Sequence[str], env: dict, cwd: str = str(ROOT), timeout: float = 300.0) -> subprocess.CompletedProcess:
    """subprocess.run([sys.executable, *words], capture_output=True, text=True, …) with a warm interpreter."""
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err, open(os.devnull) as nothing:
        process = WarmProcess(words, nothing.fileno(), out.fileno(), err.fileno(), env, cwd)
        try:
            process.wait(timeout)
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGKILL)
            raise
        texts = []
        for file in (out, err):
            file.seek(0)
            texts.append(file.read().decode("utf-8"))
    return subprocess.CompletedProcess(list(words), process.returncode, *texts)


def interpreter(path: Path) -> Sequence[int]:
    """Makes `path` a program that does what sys.executable does by the server: scripts take it as their PYTHON.

    Returns the file descriptors that a process needs to call it: subprocess's pass_fds. Signals to the script and its
    group do not reach the program.
    """
    server = str(_server().fileno())
    client = [sys.executable, "-SEs", str(ROOT / "tests" / "warm_client.py"), server, sys.executable]
    path.write_text(f'#!/bin/sh\nexec {shlex.join(client)} "$@"\n', encoding="utf-8")
    path.chmod(0o755)
    return [int(server)]


def _readable(connection: socket.socket) -> bool:
    connection.setblocking(False)
    try:
        return bool(connection.recv(1, socket.MSG_PEEK))
    except BlockingIOError:
        return False
    finally:
        connection.setblocking(True)


_connection: socket.socket | None = None


def _server() -> socket.socket:
    """The connection to the server of this process, which ends with it."""
    global _connection
    if _connection is None:
        _connection, theirs = socket.socketpair()
        path = os.pathsep.join([str(ROOT), *(entry for entry in sys.path if entry)])
        environment = {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"}
        with theirs:
            process = subprocess.Popen(
                [sys.executable, __file__, str(theirs.fileno())],
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                env=environment,
                start_new_session=True,  # signals to the group of the tests are not for it
            )
        atexit.register(process.wait)
        atexit.register(_connection.close)
    return _connection


# ---- the server --------------------------------------------------------------------------------------------------


def serve(connection: socket.socket) -> list | None:
    """Answers requests until pytest's process ends; returns the words of the program that a copy is to become."""
    while True:
        message, descriptors, _, _ = socket.recv_fds(connection, _LONGEST, 4)
        with contextlib.suppress(ChildProcessError):  # waited for, their processor time counts as the tests' own
            while os.waitpid(-1, os.WNOHANG if message else 0)[0]:
                pass
        if not message:
            return None
        if os.fork() == 0:
            connection.close()
            return become(json.loads(message), descriptors)
        for descriptor in descriptors:
            os.close(descriptor)


def become(request: dict, descriptors: Sequence[int]) -> list:
    """The program begins in a child of this process, which reports its id and, in the end, its exit status."""
    *streams, status = descriptors
    program = os.fork()
    if program:
        for descriptor in (*range(3), *streams):
            os.close(descriptor)
        os.write(status, b"%d\n" % program)
        os.write(status, b"%d\n" % os.waitstatus_to_exitcode(os.waitpid(program, 0)[1]))
        os._exit(0)
    os.close(status)
    os.setsid()
    for number, descriptor in enumerate(streams):
        os.dup2(descriptor, number)
        os.close(descriptor)
    os.chdir(request["cwd"])
    os.environ.clear()
    os.environ.update(request["env"])
    return request["words"]


def main() -> None:
    for name in IMPORTED:
        importlib.import_module(name)
    gc.collect()
    gc.freeze()  # what is collected later would be copied to be looked at
    words = serve(socket.socket(fileno=int(sys.argv[1])))
    if words is None:
        return
    before, sys.path[:] = (
        list(sys.path),
        [entry for entry in os.environ.get("PYTHONPATH", "").split(os.pathsep) if entry],
    )
    sys.path += [entry for entry in before if entry not in sys.path]
    if words[0] == "-c":
        sys.argv = ["-c", *words[2:]]
        exec(compile(words[1], "<string>", "exec"), {"__name__": "__main__"})
    elif words[0] == "-m":
        sys.argv = list(words[1:])
        runpy.run_module(words[1], run_name="__main__", alter_sys=True)
    else:
        sys.argv = list(words)
        runpy.run_path(words[0], run_name="__main__")


if __name__ == "__main__":
    main()
