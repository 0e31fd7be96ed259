"""The server of a GPT-2 checkpoint: python -m serving --model DIR, then http://127.0.0.1:8000

    pip install -r requirements-serving.txt -c constraints.txt
    curl http://127.0.0.1:8000/v1/completions -H 'Content-Type: application/json' \
        -d '{"model": "DIR", "prompt": "My name is", "max_tokens": 20}'
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import socket
import sys
from typing import Sequence

from command_line.checks import not_installed, refuse
from command_line.collection import no_collection
from command_line.interruption import interruptible
from command_line.openmp import bound_spinning
from serving.flags import KEY_VARIABLE, PROGRAM, parse_serving_args

EXTRA, REQUIREMENTS = ("starlette", "uvicorn"), "requirements-serving.txt -c constraints.txt"


def listening(host: str, port: int) -> socket.socket:
    """A socket that listens there, before a model is loaded. Raises ValueError, naming the flag, if there is none."""
    try:
        (family, kind, protocol, _, address), *_ = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
        listener = socket.socket(family, kind, protocol)
    except OSError as error:
        raise ValueError(f"--host {host}: no such address ({error.strerror}); 127.0.0.1 is this machine") from error
    try:
        if os.name == "posix":  # elsewhere this option would take a port from another program
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
        listener.listen(1024)
    except OSError as error:
        listener.close()
        raise ValueError(
            f"--host {host} --port {port}: cannot be listened at ({error.strerror}); --port 0 takes a free one"
        ) from error
    return listener


def run(args: argparse.Namespace, key: str | None) -> int:
    """Raises ValueError for what is wrong with flags and files. Returns the exit status."""
    missing = [name for name in EXTRA if importlib.util.find_spec(name) is None]
    if missing:
        raise ValueError(f"{missing[0]} is not installed, and the server needs it: pip install -r {REQUIREMENTS}")
    with no_collection():
        import asyncio

        from generation.sampling import Sampling
        from serving.model import ServedModel
        from serving.server import serve
        from serving.service import Limits, Service
    with listening(args.host, args.port) as listener:
        model = ServedModel(args)
        limits = Limits(min(args.prompt_len or model.positions, model.positions), args.request_time, args.body_size)
        sampling = Sampling(typical_p=args.typical_p, eta_cutoff=args.eta_cutoff)
        service = Service(model, args.served_name, args.queue_len, limits, sampling)
        return asyncio.run(serve(service, listener, key, args.drain_time))


@interruptible
def main(argv: Sequence[str] | None = None) -> int:
    """Run the program with these arguments (default: the command line's). Returns the exit status."""
    args = parse_serving_args(argv)
    bound_spinning()
    key = os.environ.get(KEY_VARIABLE)
    if key is not None and (not key.isascii() or not key.isprintable() or not key.strip()):
        refuse(PROGRAM, [f"{KEY_VARIABLE}: a key is printable ASCII, and not empty; unset it to serve without one"])
    for line in args.notes:
        print(line, file=sys.stderr)
    try:
        return run(args, key)
    except ModuleNotFoundError as error:
        refuse(PROGRAM, [not_installed(error)])
    except ValueError as error:
        refuse(PROGRAM, [str(error)])
    except RuntimeError as error:
        if "HINT:" not in str(error):
            raise
        print(f"{PROGRAM}: {error}", file=sys.stderr)
        return 1


if __name__ == "__main__":
    raise SystemExit(main())
