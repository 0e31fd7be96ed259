"""A thousand requests, of which clients leave some: no slot is lost, memory stays as it is, every answer is right."""

import concurrent.futures
import json
import random
import signal
import urllib.request

import psutil
import pytest

pytest.importorskip("starlette", reason="requirements-serving.txt is not installed")
pytest.importorskip("uvicorn", reason="requirements-serving.txt is not installed")

from test_serving_program import Server  # noqa: E402

REQUESTS, CLIENTS, SLOTS = 1000, 16, 4
PROMPTS = ["the", "a b c", "of the river", "x", [5, 6, 7], [100, 3, 5]]


def fields(number):
    """Of a request; that of `number` is always the same."""
    rng = random.Random(number % 60)  # each of them comes about 17 times
    warm = {"temperature": rng.choice([0, 0.8, 1.5]), "top_p": rng.choice([1, 0.7]), "seed": rng.randrange(5)}
    return {"prompt": rng.choice(PROMPTS), "max_tokens": rng.randrange(1, 12), **warm}


def answer(server, number, left_by):
    """The text of a request, None if its client has left after a number of lines that `left_by` draws."""
    stream = number % 2 == 0
    connection = server.begin(**fields(number), stream=stream)
    try:
        if left_by is not None and not stream:
            return None  # before the answer
        response = connection.getresponse()
        if not stream:
            return json.loads(response.read())["choices"][0]["text"]
        text = ""
        for count, line in enumerate(iter(response.readline, b"")):
            if left_by is not None and count >= left_by:
                return None
            if line.startswith(b"data: {"):
                text += json.loads(line[6:])["choices"][0]["text"]
        return text
    finally:
        connection.close()


def metrics(server):
    lines = urllib.request.urlopen(f"http://127.0.0.1:{server.port}/metrics").read().decode().splitlines()
    return dict(line.rsplit(" ", 1) for line in lines if line and not line.startswith("#"))


@pytest.fixture
def server():
    one = Server("--slots", SLOTS, "--queue-len", 2 * CLIENTS)
    yield one
    one.process.kill()  # nothing if it has ended


@pytest.mark.long
def test_a_thousand_requests_with_cancellations(server):
    alone = [answer(server, number, None) for number in range(60)]
    process, draw = psutil.Process(server.process.pid), random.Random(3)
    leaves = [draw.randrange(6) if draw.random() < 0.3 else None for _ in range(REQUESTS)]
    held = []
    with concurrent.futures.ThreadPoolExecutor(CLIENTS) as clients:
        for part in range(0, REQUESTS, REQUESTS // 4):
            numbers = range(part, part + REQUESTS // 4)
            told = list(clients.map(lambda number: answer(server, number, leaves[number]), numbers))
            assert all(text in (None, alone[number % 60]) for number, text in zip(numbers, told))
            assert all(text is not None for number, text in zip(numbers, told) if leaves[number] is None)
            held.append(process.memory_info().rss)
    assert answer(server, 1, None) == alone[1]
    counts = metrics(server)
    assert counts["serving_slots_taken"] == counts["serving_queue_length"] == "0", counts
    assert held[3] - held[1] < 8 << 20, held
    status, err = server.end(signal.SIGTERM)
    assert status == 0 and "Traceback" not in err
