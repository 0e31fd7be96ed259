"""A small checkpoint, and servers of it: the service alone, and one that listens at a port of this process."""

import asyncio
import contextlib
import functools
import socket
import tempfile
import threading
from types import SimpleNamespace

import tiny_checkpoint

from model.checkpoint import save_pretrained

NAME, POSITIONS = "tiny", 32


@functools.lru_cache(maxsize=None)
def checkpoint():
    """The folder, which lives as long as the process."""
    holder = tempfile.TemporaryDirectory()
    tokenizer = tiny_checkpoint.tokenizer()
    save_pretrained(tiny_checkpoint.model(tokenizer.vocab_size, POSITIONS), holder.name)
    with open(f"{holder.name}/tokenizer.json", "w", encoding="utf-8") as file:
        file.write(tokenizer.to_json())
    return holder


def folder():
    return checkpoint().name


@functools.lru_cache(maxsize=None)
def model(slots=4, custom_ops=True, fp16=False):
    """One for each number of slots, which tests share: what a slot held before must not matter."""
    from serving.model import ServedModel

    flags = dict(model=folder(), context=None, slots=slots, fp16=fp16, int8=False, custom_ops=custom_ops, profile=None)
    return ServedModel(SimpleNamespace(**flags))


@contextlib.contextmanager
def service(slots=4, queue=16, prompt=POSITIONS, seconds=60.0, body=20_000, started=True, step=None):
    from serving.service import Limits, Service

    served = model(slots)
    if step is not None:
        served = SimpleNamespace(**{**vars(served), "encode": served.encode, "token_text": served.token_text})
        served.step = step
    one = Service(served, NAME, queue, Limits(prompt, seconds, body))
    if started:
        one.start()
    try:
        yield one
    finally:
        one.stop()


@contextlib.contextmanager
def listening(one, key=None):
    """The service at a port; its address."""
    import uvicorn

    from serving.application import create_application

    listener = socket.create_server(("127.0.0.1", 0))
    config = uvicorn.Config(create_application(one, key), log_level="warning", access_log=False, lifespan="off")
    server = uvicorn.Server(config)
    thread = threading.Thread(target=lambda: asyncio.run(server.serve(sockets=[listener])), daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join()
        listener.close()
