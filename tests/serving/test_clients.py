"""The server at a port, as others see it: the official openai client, curl, and a client that hangs up."""

import json
import shutil
import socket
import subprocess
import threading
import time

import pytest

pytest.importorskip("starlette", reason="requirements-serving.txt is not installed")
pytest.importorskip("uvicorn", reason="requirements-serving.txt is not installed")

import tiny_server  # noqa: E402

KEY = "a secret"


@pytest.fixture(scope="module")
def service():
    with tiny_server.service(slots=4) as one:
        yield one


@pytest.fixture(scope="module")
def address(service):
    with tiny_server.listening(service, KEY) as found:
        yield found


@pytest.fixture(scope="module")
def openai(address):
    library = pytest.importorskip("openai", reason="requirements-dev.txt is not installed")
    return library.OpenAI(base_url=f"{address}/v1", api_key=KEY, max_retries=0)


def until(condition):
    """Waits for what another thread does, with an end for a test that fails."""
    deadline = time.monotonic() + 60
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.005)
    return condition()


def test_openais_client_gets_models_and_completions(openai):
    (model,) = openai.models.list().data
    assert model.id == tiny_server.NAME == openai.models.retrieve(model.id).id
    fields = dict(model=model.id, prompt="the river", max_tokens=6, seed=4)
    answer = openai.completions.create(**fields, n=2, logprobs=2, echo=True, stop=["never there"])
    assert [choice.index for choice in answer.choices] == [0, 1] and answer.usage.completion_tokens <= 12
    assert all(choice.text.startswith("the river") for choice in answer.choices)
    assert len(answer.choices[0].logprobs.tokens) == len(answer.choices[0].logprobs.token_logprobs)
    parts = list(openai.completions.create(**fields, stream=True, stream_options={"include_usage": True}))
    text = "".join(part.choices[0].text for part in parts[:-1])
    assert text == answer.choices[0].text[len("the river") :]
    assert parts[-1].usage.total_tokens == parts[-1].usage.prompt_tokens + parts[-1].usage.completion_tokens


def test_openais_client_raises_its_own_errors(openai, address):
    import openai as library

    with pytest.raises(library.BadRequestError) as told:
        openai.completions.create(model=tiny_server.NAME, prompt="x", max_tokens=100)
    assert told.value.code == "context_length_exceeded" and told.value.param == "max_tokens"
    with pytest.raises(library.NotFoundError, match="does not exist"):
        openai.completions.create(model="gpt-4", prompt="x")
    with pytest.raises(library.AuthenticationError, match="Incorrect API key"):
        library.OpenAI(base_url=f"{address}/v1", api_key="wrong", max_retries=0).models.list()


def test_many_openai_clients_at_once_get_what_each_gets_alone(openai):
    def text(number):
        fields = dict(model=tiny_server.NAME, prompt="the " * (1 + number % 5), max_tokens=1 + number % 7)
        return openai.completions.create(**fields, seed=number).choices[0].text

    alone = [text(number) for number in range(12)]
    together = [None] * len(alone)

    def ask(number):
        together[number] = text(number)

    threads = [threading.Thread(target=ask, args=[number]) for number in range(len(alone))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert together == alone


def curl(address, *words):
    if shutil.which("curl") is None:
        pytest.skip("curl is not installed")
    command = ["curl", "--silent", "--show-error", "--no-buffer", *words, "--header", f"Authorization: Bearer {KEY}"]
    return subprocess.run([*command, address], capture_output=True, text=True, check=True, timeout=60).stdout


def test_curl(address):
    body = json.dumps({"model": tiny_server.NAME, "prompt": "the river", "max_tokens": 4, "temperature": 0})
    json_type = ("--header", "Content-Type: application/json")
    whole = json.loads(curl(f"{address}/v1/completions", *json_type, "--data", body))["choices"][0]["text"]
    stream = curl(f"{address}/v1/completions", *json_type, "--data", body[:-1] + ', "stream": true}')
    *parts, end = [line[len("data: ") :] for line in stream.splitlines() if line]
    assert "".join(json.loads(part)["choices"][0]["text"] for part in parts) == whole and end == "[DONE]"
    assert "application/json" in json.loads(curl(f"{address}/v1/completions", "--data", body))["error"]["message"]
    assert json.loads(curl(f"{address}/health")) == {"status": "ok"}
    assert "serving_new_tokens_total" in curl(f"{address}/metrics")


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])
def test_a_client_that_hangs_up_frees_its_slot(stream):
    """While the engine is held inside a step, so that nothing else can have ended the text."""
    release, begun = threading.Event(), threading.Event()

    def step(*inputs):
        begun.set()
        release.wait()
        return tiny_server.model(1).step(*inputs)

    with tiny_server.service(slots=1, step=step) as one, tiny_server.listening(one) as address:
        host, port = address[len("http://") :].split(":")
        body = json.dumps({"model": tiny_server.NAME, "prompt": "x", "max_tokens": 25, "stream": stream}).encode()
        head = (
            f"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: {len(body)}"
        )
        with socket.create_connection((host, int(port))) as connection:
            connection.sendall(head.encode() + b"\r\n\r\n" + body)
            assert begun.wait(60)
            (job,) = [row.job for row in one.engine._rows if row is not None]
        assert until(lambda: job.cancelled)
        release.set()
        assert until(lambda: one.engine.running == 0)
        assert len(job.text.tokens) < 25
