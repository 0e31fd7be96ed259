"""The endpoints through Starlette's own client: answers, limits, errors in OpenAI's form, and bodies of any kind."""

import asyncio
import json
import re
import threading
import time

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

pytest.importorskip("starlette", reason="requirements-serving.txt is not installed")

import tiny_server  # noqa: E402
from starlette.testclient import TestClient  # noqa: E402

from generation.sampling import Sampling  # noqa: E402
from serving import application, service  # noqa: E402
from serving.application import create_application  # noqa: E402
from serving.completion_request import read_request  # noqa: E402

PROMPT = "the river flows"


@pytest.fixture(scope="module")
def client():
    with tiny_server.service() as one:
        yield TestClient(create_application(one), raise_server_exceptions=False)


def post(client, **fields):
    return client.post("/v1/completions", json={"model": tiny_server.NAME, "prompt": PROMPT, **fields})


def choices(client, **fields):
    answer = post(client, **fields)
    assert answer.status_code == 200, answer.text
    return answer.json()["choices"]


def events(answer):
    assert answer.status_code == 200 and answer.headers["content-type"].startswith("text/event-stream")
    parts = answer.text.split("\n\n")
    assert parts.pop() == "" and all(part.startswith("data: ") for part in parts)
    assert parts.pop() == "data: [DONE]"
    return [json.loads(part[len("data: ") :]) for part in parts]


def error_of(answer, status, param, code):
    assert answer.status_code == status, answer.text
    assert set(answer.json()) == {"error"}
    error = answer.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert (error["param"], error["code"]) == (param, code)
    kind = "rate_limit_error" if status == 429 else "server_error" if status >= 500 else "invalid_request_error"
    assert error["type"] == kind
    return error["message"]


def test_a_completion_has_openais_fields(client):
    answer = post(client, max_tokens=5, temperature=0).json()
    assert answer["object"] == "text_completion" and answer["model"] == tiny_server.NAME
    assert answer["id"].startswith("cmpl-") and isinstance(answer["created"], int)
    (choice,) = answer["choices"]
    assert choice["index"] == 0 and choice["logprobs"] is None and choice["finish_reason"] in ("length", "stop")
    prompt = len(tiny_server.model().encode(PROMPT))
    assert answer["usage"] == {"prompt_tokens": prompt, "completion_tokens": 5, "total_tokens": prompt + 5}


def test_greedy_text_is_that_of_the_model(client):
    import tiny_checkpoint
    import torch

    served = tiny_server.model()
    gpt2, ids = tiny_checkpoint.model(served.config.real_vocab_size), served.encode(PROMPT)
    begin = len(ids)
    with torch.no_grad():
        for _ in range(6):
            ids.append(int(gpt2(torch.tensor([ids]))[0, -1, : served.config.real_vocab_size].argmax()))
    assert choices(client, max_tokens=6, temperature=0)[0]["text"] == served.tokenizer.decode(ids[begin:])


def test_the_default_is_16_tokens_and_a_seed_decides_them(client):
    # without a seed one text of some twenty ends earlier
    assert post(client, logprobs=0, seed=1).json()["usage"]["completion_tokens"] == 16
    texts = [choices(client, seed=seed)[0]["text"] for seed in (1, 1, 2)]
    assert texts[0] == texts[1] != texts[2]
    assert len({choices(client)[0]["text"] for _ in range(3)}) > 1


def test_what_requests_say_nothing_of_is_drawn_as_the_server_does():
    own = Sampling(typical_p=0.9, eta_cutoff=0.01)
    body = {"model": "m", "temperature": 0.5, "top_p": 0.8}
    drawn = read_request(json.dumps(body).encode(), own).sampling
    assert drawn == Sampling(temperature=0.5, top_p=0.8, typical_p=0.9, eta_cutoff=0.01)
    assert read_request(json.dumps({**body, "temperature": 0}).encode(), own).sampling == Sampling(top_k=1)


def test_several_prompts_in_each_of_their_forms_and_several_texts_of_each(client):
    ids = tiny_server.model().encode(PROMPT)
    alone = choices(client, max_tokens=4, seed=1, n=2)
    assert [choice["index"] for choice in alone] == [0, 1] and alone[0]["text"] != alone[1]["text"]
    for prompt in ([PROMPT, PROMPT], [ids, ids]):
        found = choices(client, max_tokens=4, seed=1, n=2, prompt=prompt)
        assert [choice["index"] for choice in found] == [0, 1, 2, 3]
        assert [choice["text"] for choice in found] == [choice["text"] for choice in alone] * 2
    assert choices(client, max_tokens=4, seed=1, prompt=ids)[0]["text"] == alone[0]["text"]
    assert post(client, max_tokens=4, n=2).json()["usage"]["prompt_tokens"] == len(ids)
    assert choices(client, prompt="", max_tokens=2, seed=1)[0]["text"] != ""


def test_a_stream_adds_up_to_the_whole(client):
    fields = dict(max_tokens=8, seed=3, n=2, logprobs=2, echo=True)
    whole, found = choices(client, **fields), events(post(client, **fields, stream=True))
    for choice in whole:
        parts = [part["choices"][0] for part in found if part["choices"][0]["index"] == choice["index"]]
        assert "".join(part["text"] for part in parts) == choice["text"]
        assert [part["finish_reason"] for part in parts] == [None] * (len(parts) - 1) + [choice["finish_reason"]]
        for name, values in choice["logprobs"].items():
            assert [value for part in parts for value in part["logprobs"][name]] == values
    assert len({part["id"] for part in found}) == 1 and len(found) > 4
    assert "usage" not in found[0]


def test_a_stream_tells_the_usage_if_asked_to(client):
    *parts, last = events(post(client, stream=True, stream_options={"include_usage": True}, max_tokens=3))
    assert all(part["usage"] is None for part in parts) and last["choices"] == []
    assert last["usage"]["completion_tokens"] == 3


def test_stop_strings_and_echo(client):
    (free,) = choices(client, max_tokens=12, seed=5)
    place = len(free["text"]) // 2
    stop = free["text"][place : place + 2]
    (stopped,) = choices(client, max_tokens=12, seed=5, stop=[stop, "never there"])
    assert stopped["text"] == free["text"][: free["text"].index(stop)] and stopped["finish_reason"] == "stop"
    (echoed,) = choices(client, max_tokens=12, seed=5, stop=stop, echo=True)
    assert echoed["text"] == PROMPT + stopped["text"]
    assert choices(client, max_tokens=0, echo=True)[0]["text"] == PROMPT


def test_log_probabilities_have_openais_form(client):
    served = tiny_server.model()
    ids = served.encode(PROMPT)
    (choice,) = choices(client, max_tokens=3, temperature=0, logprobs=3, echo=True)
    found = choice["logprobs"]
    assert set(found) == {"tokens", "token_logprobs", "top_logprobs", "text_offset"}
    assert len(found["tokens"]) == len(ids) + 3 == len(found["text_offset"])
    assert found["token_logprobs"][0] is None and found["top_logprobs"][0] is None
    for token, value, best in list(zip(found["tokens"], found["token_logprobs"], found["top_logprobs"]))[1:]:
        assert best[token] == value and 3 <= len(best) <= 4 and value <= max(best.values())
    if all(not token.startswith("bytes:") for token in found["tokens"]):
        assert "".join(found["tokens"]) == choice["text"]
        offsets = [sum(map(len, found["tokens"][:place])) for place in range(len(found["tokens"]))]
        assert found["text_offset"] == offsets
    (plain,) = choices(client, max_tokens=3, temperature=0, logprobs=0)
    assert plain["logprobs"]["token_logprobs"] == pytest.approx(found["token_logprobs"][-3:], abs=1e-4)
    assert plain["logprobs"]["text_offset"] == found["text_offset"][-3:]
    assert [len(best) for best in plain["logprobs"]["top_logprobs"]] == [1, 1, 1]


def test_a_stop_token_is_told_and_is_no_text(client):
    """As of OpenAI's: lm-evaluation-harness takes the last token for the one that it asked for."""
    end = tiny_server.model().stop_ids[0]
    (choice,) = choices(client, max_tokens=4, logprobs=1, logit_bias={str(end): 100}, echo=True)
    prompt = len(tiny_server.model().encode(PROMPT))
    assert (choice["text"], choice["finish_reason"]) == (PROMPT, "stop")
    assert len(choice["logprobs"]["token_logprobs"]) == prompt + 1
    assert choice["logprobs"]["tokens"][-1] == "<|endoftext|>"
    assert post(client, logit_bias={str(end): 100}).json()["usage"]["completion_tokens"] == 0


def test_half_a_character_is_shown_by_its_bytes():
    served = tiny_server.model()
    halves = served.encode("ü")
    assert len(halves) == 2
    assert [served.token_text(token) for token in halves] == ["bytes:\\xc3", "bytes:\\xbc"]


@pytest.mark.parametrize(
    ("fields", "param", "said"),
    [
        ({"model": None}, "model", "must provide a model"),
        ({"model": 3}, "model", "must be a string"),
        ({"prompt": 3}, "prompt", "must be a string"),
        ({"prompt": []}, "prompt", "must be a string"),
        ({"prompt": [[]]}, "prompt", "must be a string"),
        ({"prompt": [True]}, "prompt", "must be a string"),
        ({"prompt": ["a", 1]}, "prompt", "must be a string"),
        ({"prompt": [10**6]}, "prompt", "no token of the vocabulary"),
        ({"prompt": [-1]}, "prompt", "no token of the vocabulary"),
        ({"n": 0}, "n", "from 1 to 128"),
        ({"n": 100}, "n", "the server holds 20"),
        ({"max_tokens": -1}, "max_tokens", "at least 0"),
        ({"max_tokens": 1.5}, "max_tokens", "whole number"),
        ({"temperature": 2.1}, "temperature", "from 0 to 2"),
        ({"temperature": "1"}, "temperature", "from 0 to 2"),
        ({"top_p": True}, "top_p", "from 0 to 1"),
        ({"logprobs": 6}, "logprobs", "from 0 to 5"),
        ({"logprobs": True}, "logprobs", "from 0 to 5"),
        ({"stop": ""}, "stop", "none of them empty"),
        ({"stop": list("abcde")}, "stop", "there may be 4"),
        ({"seed": 2**63}, "seed", "whole number"),
        ({"stream": 1}, "stream", "true or false"),
        ({"stream_options": {}}, "stream_options", "only when stream is true"),
        ({"stream": True, "stream_options": []}, "stream_options", "include_usage"),
        ({"frequency_penalty": 3}, "frequency_penalty", "from -2 to 2"),
        ({"logit_bias": {"x": 1}}, "logit_bias", "token ids"),
        ({"logit_bias": {"1": 101}}, "logit_bias", "from -100 to 100"),
        ({"logit_bias": {"99999": 1}}, "logit_bias", "no token of the vocabulary"),
        ({"logit_bias": {str(token): 1 for token in range(1025)}}, "logit_bias", "there may be 1,024"),
        ({"best_of": 2}, "best_of", "must be n"),
        ({"suffix": "x"}, "suffix", "not supported"),
        ({"temprature": 1}, "temprature", "Unrecognized request argument supplied: temprature"),
    ],
)
def test_what_is_wrong_with_a_field_is_told(client, fields, param, said):
    assert said in error_of(post(client, **fields), 400, param, None)


def test_what_does_not_fit_the_context_is_refused(client):
    message = error_of(post(client, max_tokens=31), 400, "max_tokens", "context_length_exceeded")
    assert "maximum context length is 32 tokens" in message
    assert post(client, prompt=[5] * 30, max_tokens=2).status_code == 200
    error_of(post(client, prompt=[5] * 33), 400, "prompt", "context_length_exceeded")
    with tiny_server.service(prompt=3) as one:
        message = error_of(
            post(TestClient(create_application(one)), prompt=[5] * 4), 400, "prompt", "context_length_exceeded"
        )
        assert "takes up to 3" in message


def test_another_model_and_paths_and_methods_that_there_are_not(client):
    error_of(post(client, model="gpt-4"), 404, "model", "model_not_found")
    error_of(client.get("/v1/models/gpt-4"), 404, "model", "model_not_found")
    error_of(client.get("/v1/nothing"), 404, None, "invalid_request")
    error_of(client.get("/v1/completions"), 405, None, "invalid_request")
    error_of(client.post("/health"), 405, None, "invalid_request")


def test_models_health_and_the_page(client):
    listed = client.get("/v1/models").json()
    assert [model["id"] for model in listed["data"]] == [tiny_server.NAME] and listed["object"] == "list"
    assert client.get(f"/v1/models/{tiny_server.NAME}").json() == listed["data"][0]
    assert client.get("/health").json() == {"status": "ok"}
    page = client.get("/")
    assert page.headers["content-type"].startswith("text/html")
    assert not re.search(r"https?://|src=|@import", page.text)  # nothing from anywhere else


def test_bodies_that_are_none(client):
    def send(content, **headers):
        return client.post("/v1/completions", content=content, headers={"Content-Type": "application/json", **headers})

    for content in (b"", b"{", b"\xff\xfe", b"[]", b"null", b"[" * 100_00, b'{"n": ' + b"9" * 6000 + b"}"):
        error_of(send(content), 400, None, "invalid_json")
    error_of(client.post("/v1/completions", data={"prompt": "x"}), 415, None, None)
    error_of(send(b" " * 20_001), 413, None, "body_too_large")
    error_of(send(iter([b" " * 15_000] * 2)), 413, None, "body_too_large")  # without a length said beforehand
    half = json.dumps({"model": tiny_server.NAME, "prompt": "\ud800"}).encode()
    assert "surrogate" in error_of(send(half), 400, "prompt", None)


def test_a_body_that_does_not_come_is_not_waited_for(client, monkeypatch):
    monkeypatch.setattr(application, "BODY_SECONDS", 0.0)
    error_of(post(client), 408, None, None)


def test_a_full_queue_is_429_and_a_server_about_to_end_503():
    release = threading.Event()

    def step(*inputs):
        release.wait()
        return tiny_server.model(1).step(*inputs)

    with tiny_server.service(slots=1, queue=1, step=step) as one:
        client = TestClient(create_application(one))
        answers = []
        threads = [threading.Thread(target=lambda: answers.append(post(client, max_tokens=2))) for _ in range(2)]
        for thread in threads:
            thread.start()
        deadline = time.monotonic() + 60
        while one.engine.running + one.engine.waiting < 2 and time.monotonic() < deadline:
            time.sleep(0.01)
        refused = post(client)
        error_of(refused, 429, None, "queue_full")
        assert refused.headers["Retry-After"] == "1"
        one.engine.close()
        error_of(post(client), 503, None, "draining")
        assert client.get("/health").status_code == 503
        release.set()
        for thread in threads:
            thread.join()
        assert [answer.status_code for answer in answers] == [200, 200]


def test_a_request_whose_time_is_up():
    with tiny_server.service(seconds=0.0) as one:
        client = TestClient(create_application(one))
        error_of(post(client), 503, None, "timeout")
        answer = post(client, stream=True)
        assert answer.text.startswith('data: {"error": ') and "[DONE]" not in answer.text


def test_the_time_of_a_request_begins_before_its_body_is_there(monkeypatch):
    now, read = [0.0], application.read_body

    async def slowly(*arguments):
        now[0] += 10.0
        return await read(*arguments)

    monkeypatch.setattr(application, "read_body", slowly)
    with tiny_server.service(seconds=5.0, started=False) as one:
        one.engine.clock = lambda: now[0]
        one.start()
        error_of(post(TestClient(create_application(one))), 503, None, "timeout")


def test_the_queue_of_pieces_is_made_on_the_loop(client, monkeypatch):
    """Python before 3.10 has no queue on a thread without one."""
    queue = asyncio.Queue

    def older():
        asyncio.get_running_loop()
        return queue()

    monkeypatch.setattr(service.asyncio, "Queue", older)
    assert post(client, max_tokens=2).status_code == 200


def test_what_fails_for_one_request_is_its_error_and_the_server_goes_on(monkeypatch, capfd):
    def name(token):
        raise LookupError("no such entry")

    with tiny_server.service() as one:
        client = TestClient(create_application(one))
        with monkeypatch.context() as changed:
            changed.setattr(one.model, "token_text", name)
            error_of(post(client, logprobs=1), 500, None, "server_failed")
            assert '"code": "server_failed"' in post(client, logprobs=1, stream=True).text
        assert "no such entry" in capfd.readouterr().err
        assert client.get("/health").json() == {"status": "ok"} and post(client, logprobs=1).status_code == 200


def test_an_engine_that_fails_tells_everybody_and_the_server_ends(capfd):
    ended = threading.Event()

    def step(*inputs):
        raise RuntimeError("the device is gone")

    with tiny_server.service(step=step, started=False) as one:
        one.failed = ended.set
        one.start()
        client = TestClient(create_application(one))
        message = error_of(post(client), 500, None, "server_failed")
        assert "device" not in message and "the device is gone" in capfd.readouterr().err
        assert ended.wait(60) and client.get("/health").json() == {"status": "failed"}
        error_of(post(client), 503, None, "draining")


def test_a_key_is_asked_for():
    with tiny_server.service() as one:
        client = TestClient(create_application(one, key="secret"))
        for headers in ({}, {"Authorization": "Bearer wrong"}, {"Authorization": "secret"}):
            answer = client.get("/v1/models", headers=headers)
            error_of(answer, 401, None, "invalid_api_key")
            assert answer.headers["WWW-Authenticate"] == "Bearer"
        assert client.post("/v1/completions").status_code == client.get("/metrics").status_code == 401
        assert client.get("/v1/models", headers={"Authorization": "Bearer secret"}).status_code == 200
        assert client.get("/health").status_code == client.get("/").status_code == 200


def samples(text):
    return {name: float(value) for name, value in re.findall(r"^(\w+(?:\{.*\})?) (\S+)$", text, flags=re.MULTILINE)}


def test_metrics_are_prometheus_text():
    with tiny_server.service() as one:
        client = TestClient(create_application(one))
        post(client, max_tokens=3, prompt=[5, 6])
        post(client, n=0)
        client.get("/nowhere/at/all")
        answer = client.get("/metrics")
    assert answer.headers["content-type"] == "text/plain; version=0.0.4; charset=utf-8"
    line = r'# (HELP|TYPE) \w+ .+|[a-z_]+(\{\w+="[^"]*"(,\w+="[^"]*")*\})? \S+'
    assert all(re.fullmatch(line, each) for each in answer.text.splitlines())
    found = samples(answer.text)
    assert found['serving_requests_total{path="/v1/completions",status="200"}'] == 1
    assert found['serving_requests_total{path="/v1/completions",status="400"}'] == 1
    assert found['serving_requests_total{path="other",status="404"}'] == 1
    assert (found["serving_prompt_tokens_total"], found["serving_new_tokens_total"]) == (2, 3)
    assert (found["serving_slots"], found["serving_slots_taken"], found["serving_queue_length"]) == (4, 0, 0)
    assert found["serving_first_token_seconds_count"] == found["serving_text_seconds_count"] == 1
    assert found['serving_text_seconds_bucket{le="+Inf"}'] == 1


# ---- bodies of any kind ------------------------------------------------------------------------------------------

SCALARS = st.one_of(
    st.none(), st.booleans(), st.integers(), st.integers(-2, 40), st.floats(), st.text(max_size=8), st.just("the river")
)
ANYTHING = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=6,
)
TOKENS = st.lists(st.integers(-1, 300), min_size=1, max_size=6)
LIKELY = {
    "model": st.just(tiny_server.NAME),
    "prompt": st.one_of(st.text(max_size=12), st.lists(st.text(max_size=5), max_size=3), TOKENS, st.lists(TOKENS)),
    "best_of": st.integers(0, 3),
    "echo": st.booleans(),
    "frequency_penalty": st.floats(-2, 2),
    "logit_bias": st.dictionaries(st.integers(0, 300).map(str), st.floats(-100, 100), max_size=3),
    "logprobs": st.integers(0, 5),
    "max_tokens": st.integers(0, 6),
    "n": st.integers(1, 3),
    "presence_penalty": st.floats(-2, 2),
    "seed": st.integers(-(2**63), 2**63 - 1),
    "stop": st.one_of(st.text(max_size=3), st.lists(st.text(min_size=1, max_size=3), max_size=4)),
    "stream": st.booleans(),
    "stream_options": st.dictionaries(st.just("include_usage"), st.booleans()),
    "suffix": st.just(""),
    "temperature": st.floats(0, 2),
    "top_p": st.floats(0, 1),
    "user": st.text(max_size=3),
}
BODIES = st.fixed_dictionaries(
    {"model": LIKELY["model"], "max_tokens": LIKELY["max_tokens"]},
    optional={name: value for name, value in LIKELY.items() if name not in ("model", "max_tokens")},
)
DAMAGED = st.tuples(BODIES, st.sampled_from([*LIKELY, "other"]), ANYTHING).map(
    lambda parts: {**parts[0], parts[1]: parts[2]}
)


def is_right(answer):
    """A completion, a stream of them, or an error in OpenAI's form that is the client's."""
    if answer.status_code != 200:
        assert 400 <= answer.status_code < 500, answer.text
        assert set(answer.json()["error"]) == {"message", "type", "param", "code"}
    elif answer.headers["content-type"].startswith("text/event-stream"):
        events(answer)
    else:
        assert all(choice["finish_reason"] in ("stop", "length") for choice in answer.json()["choices"])


@settings(max_examples=150, deadline=None)
@given(body=BODIES | DAMAGED)
@example(body={"model": tiny_server.NAME, "temperature": 5e-324, "top_p": 5e-324, "prompt": "x", "max_tokens": 2})
@example(body={"model": tiny_server.NAME, "logit_bias": {"5": 100}, "temperature": 2, "top_p": 0.1, "max_tokens": 2})
def test_no_body_of_json_is_too_much(client, body):
    text = json.dumps(body)  # NaN and infinities, too, which are no JSON
    is_right(client.post("/v1/completions", content=text, headers={"Content-Type": "application/json"}))


@settings(max_examples=80, deadline=None)
@given(
    method=st.sampled_from(["GET", "POST", "PUT", "HEAD", "DELETE", "OPTIONS", "PATCH"]),
    path=st.sampled_from(["/", "/health", "/metrics", "/v1/models", "/v1/models/x", "/v1/completions", "/%2e%2e/x"]),
    content=st.binary(max_size=40) | ANYTHING.map(lambda value: json.dumps(value).encode()),
    kind=st.sampled_from(["application/json", "application/json; charset=latin-1", "text/plain", ""]),
)
def test_no_request_is_too_much(client, method, path, content, kind):
    answer = client.request(method, path, content=content, headers={"Content-Type": kind})
    assert answer.status_code < 500
    if answer.status_code >= 400 and method != "HEAD":
        assert set(answer.json()["error"]) == {"message", "type", "param", "code"}


def test_the_server_is_whole_after_all_of_that(client):
    found = samples(client.get("/metrics").text)
    assert found["serving_slots_taken"] == found["serving_queue_length"] == 0
    assert not [name for name in found if 'status="5' in name]
    assert client.get("/health").json() == {"status": "ok"}
