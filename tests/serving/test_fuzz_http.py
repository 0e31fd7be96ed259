"""Mutated HTTP at the server's port: every connection comes to an end, nothing fails, and the server goes on."""

import asyncio
import json
import random
import re
import socket
import urllib.request

import pytest
from fuzzing import mutated, run_cases

pytest.importorskip("starlette", reason="requirements-serving.txt is not installed")
pytest.importorskip("uvicorn", reason="requirements-serving.txt is not installed")

import tiny_server  # noqa: E402

from serving import application  # noqa: E402

BODY = json.dumps({"model": tiny_server.NAME, "prompt": "the river", "max_tokens": 3, "logprobs": 1, "n": 2}).encode()
STREAM = BODY[:-1] + b', "stream": true}'


def post(body, *headers):
    lines = [b"POST /v1/completions HTTP/1.1", b"Host: here", b"Content-Type: application/json", *headers]
    return b"\r\n".join([*lines, b"", body])


CHUNKED = b"".join(b"%x\r\n%s\r\n" % (len(part), part) for part in (BODY[:20], BODY[20:])) + b"0\r\n\r\n"
REQUESTS = [
    post(BODY, b"Content-Length: %d" % len(BODY)),
    post(STREAM, b"Content-Length: %d" % len(STREAM)),
    post(CHUNKED, b"Transfer-Encoding: chunked"),
    *(
        b"GET %s HTTP/1.1\r\nHost: here\r\n\r\n" % path
        for path in (b"/", b"/metrics", b"/v1/models/x", b"/openapi.json")
    ),
]


# Behind each, so that its head has an end, and the connection too.
LAST = b"\r\n\r\nGET /health HTTP/1.1\r\nHost: here\r\nConnection: close\r\n\r\n"


def said(address, content):
    """What the server says to these bytes, and one request more, until it closes the connection."""
    with socket.create_connection(address, timeout=60) as connection:
        found = b""
        try:
            connection.sendall(content + LAST)
            while part := connection.recv(1 << 16):
                found += part
        except ConnectionError:  # it has closed with something unread
            pass
        return found


def run(count, capfd, monkeypatch):
    monkeypatch.setattr(application, "BODY_SECONDS", 0.2)  # of bodies that are said to be longer
    with tiny_server.service() as one, tiny_server.listening(one) as url:
        host, port = url[len("http://") :].split(":")
        address = (host, int(port))
        assert all(b" 200 OK" in said(address, request) for request in REQUESTS if b"/x" not in request)

        def case(rng: random.Random):
            answer = said(address, mutated(rng, rng.choice(REQUESTS)))
            assert answer == b"" or re.match(rb"HTTP/1\.1 [2345]\d\d ", answer), answer
            assert not re.match(rb"HTTP/1\.1 5", answer), answer
            return b" 200 OK" in answer, 0

        taken, _ = run_cases(count, case)
        with urllib.request.urlopen(f"{url}/metrics") as answer:
            found = answer.read().decode()
        assert "serving_slots_taken 0" in found and "serving_queue_length 0" in found and 'status="5' not in found
    assert "Traceback" not in capfd.readouterr().err
    return taken


@pytest.mark.parametrize("path", [b"/v1/completions", b"/nowhere"])
def test_a_body_that_ends_no_chunk_is_no_failure(capfd, path):
    """The HTTP library answers, and takes no second answer."""
    with tiny_server.service() as one, tiny_server.listening(one) as url:
        host, port = url[len("http://") :].split(":")
        broken = post(CHUNKED.replace(b"\r\n0\r\n", b"x\r\n0\r\n"), b"Transfer-Encoding: chunked")
        answer = said((host, int(port)), broken.replace(b"/v1/completions", path))
        assert answer.startswith(b"HTTP/1.1 400 ") and answer.count(b"HTTP/1.1") == 1
        assert b"HTTP/1.1 200 OK" in said((host, int(port)), REQUESTS[0])
    said_there = capfd.readouterr().err
    assert "Traceback" not in said_there and "ERROR" not in said_there


@pytest.mark.parametrize("closes", [True, False])
def test_what_sends_no_answer_fails_unless_the_connection_is_closed(monkeypatch, closes):
    monkeypatch.setattr(application, "CLOSING_SECONDS", 0.01)

    async def receive():
        if not closes:
            await asyncio.Event().wait()
        return {"type": "http.disconnect"}

    async def send(message):
        raise LookupError("no such connection")

    scope = {"type": "http", "method": "GET", "path": "/health", "headers": [], "query_string": b"", "root_path": ""}
    with tiny_server.service() as one:
        answer = application.create_application(one)(scope, receive, send)
        if closes:
            asyncio.run(answer)
        else:
            with pytest.raises(LookupError):
                asyncio.run(answer)
        assert 'path="/health"' not in one.metrics_text()  # which was not answered


def test_mutated_requests(capfd, monkeypatch):
    assert 5 < run(80, capfd, monkeypatch) < 75


@pytest.mark.long
def test_many_mutated_requests(capfd, monkeypatch):
    run(5000, capfd, monkeypatch)
