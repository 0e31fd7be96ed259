"""The server's course: it listens, says where, and on SIGTERM or Ctrl-C ends when what is under way is done."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import socket
import sys
from typing import Any, Iterator

import uvicorn

from corpora.termination import SAME_TERMINATION
from serving.application import create_application
from serving.service import Service


class _Server(uvicorn.Server):
    """Leaves the signals to `serve`."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield

    def install_signal_handlers(self) -> None:  # of older versions
        pass


async def serve(service: Service, listener: socket.socket, key: str | None, drain_seconds: float) -> int:
    """Serves until a signal comes, or the engine fails. Returns the exit status: 0 after a signal.

    The first signal closes the listening socket; requests under way have `drain_seconds` left. The second one ends
    them at once.
    """
    config = uvicorn.Config(
        create_application(service, key),
        log_level="warning",
        access_log=False,
        lifespan="off",
        server_header=False,
        timeout_graceful_shutdown=max(1, round(drain_seconds)),
    )
    server, loop = _Server(config), asyncio.get_running_loop()

    first, since = 0, 0.0

    def leave(number: int = 0) -> None:
        nonlocal first, since
        if server.should_exit:
            if number != first or number != signal.SIGTERM or loop.time() - since > SAME_TERMINATION:
                server.force_exit = True
                service.abandon()
            return
        first, since, server.should_exit = number, loop.time(), True
        service.engine.close()
        if number:
            under_way = service.engine.running + service.engine.waiting
            name = "Ctrl-C" if number == signal.SIGINT else "SIGTERM"
            print(f"{name}: {under_way} texts are under way; the server ends behind them", file=sys.stderr, flush=True)

    service.failed = lambda: loop.call_soon_threadsafe(leave)
    for number in (signal.SIGINT, signal.SIGTERM):
        _handle(loop, number, leave)
    service.start()
    host, port = listener.getsockname()[:2]
    shown = f"[{host}]" if ":" in host else host
    about = f"{service.model.slots} texts at a time, up to {service.model.positions} tokens each"
    print(f"serving {service.name} at http://{shown}:{port} ({about})", flush=True)
    try:
        await server.serve(sockets=[listener])
    finally:
        await loop.run_in_executor(None, service.stop)
    return 1 if service.error else 0


def _handle(loop: asyncio.AbstractEventLoop, number: int, leave: Any) -> None:
    try:
        loop.add_signal_handler(number, leave, number)
    except NotImplementedError:  # Windows
        signal.signal(number, lambda number, frame: loop.call_soon_threadsafe(leave, number))
