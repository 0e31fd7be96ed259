"""/openapi.json: it says which requests are taken and what is answered, and every endpoint does as it says."""

import json
import urllib.parse

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from json_schema import conforms, values

pytest.importorskip("starlette", reason="requirements-serving.txt is not installed")

import tiny_server  # noqa: E402
from starlette.routing import Route  # noqa: E402
from starlette.testclient import TestClient  # noqa: E402

from serving import application, openapi  # noqa: E402
from serving.application import create_application  # noqa: E402
from serving.completion_request import read_request  # noqa: E402
from serving.errors import ApiError  # noqa: E402

DOCUMENT = openapi.document(key=False)
BODY = DOCUMENT["paths"]["/v1/completions"]["post"]["requestBody"]["content"]["application/json"]["schema"]
OPERATIONS = [(path, method) for path, operations in DOCUMENT["paths"].items() for method in operations]


@pytest.fixture(scope="module")
def client():
    with tiny_server.service() as one:
        yield TestClient(create_application(one), raise_server_exceptions=False)


def answered_as_documented(answer, path, method, document=DOCUMENT):
    """The status and the type are among those of the document, and the body conforms; returns what it says."""
    responses = document["paths"][path][method]["responses"]
    assert str(answer.status_code) in responses, (answer.status_code, answer.text)
    content = responses[str(answer.status_code)]["content"]
    kind = answer.headers["content-type"].partition(";")[0]
    assert kind in content, (kind, answer.text)
    value = answer.json() if kind == "application/json" else answer.text
    assert conforms(value, content[kind]["schema"], document), value
    if kind == "text/event-stream":
        *parts, end = [part[len("data: ") :] for part in answer.text.split("\n\n")[:-1]]
        assert end == "[DONE]"
        chunk = {"$ref": "#/components/schemas/CompletionChunk"}
        assert all(conforms(json.loads(part), chunk, document) for part in parts), parts
    return value


def test_it_is_served_and_linked(client):
    answer = client.get("/openapi.json")
    assert answer.json() == DOCUMENT and answer.headers["content-type"] == "application/json"
    assert 'href="openapi.json"' in client.get("/").text
    assert DOCUMENT["openapi"] == "3.1.0" and {"title", "version"} <= set(DOCUMENT["info"])


def test_every_path_is_in_it(client, monkeypatch):
    seen = []
    monkeypatch.setattr(application, "Starlette", lambda routes, **rest: seen.extend(routes) or _Routed(routes))
    with tiny_server.service(started=False) as one:
        create_application(one)
    routes = {route.path.replace(":path}", "}"): route.methods - {"HEAD"} for route in seen if isinstance(route, Route)}
    assert routes == {path: {method.upper() for method in found} for path, found in DOCUMENT["paths"].items()}


class _Routed:
    def __init__(self, routes):
        self.routes = routes


def test_with_a_key_it_says_what_asks_for_it():
    document = openapi.document(key=True)
    assert document["components"]["securitySchemes"] == {"key": {"type": "http", "scheme": "bearer"}}
    with tiny_server.service() as one:
        client = TestClient(create_application(one, "secret"))
        assert client.get("/openapi.json").json() == document
        for path, method in OPERATIONS:
            answer = client.request(method, path.replace("{name}", tiny_server.NAME))
            asked = "security" in document["paths"][path][method]
            assert (answer.status_code == 401) == asked == ("401" in document["paths"][path][method]["responses"])
            if asked:
                answered_as_documented(answer, path, method, document)


ANYTHING = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-3, 200)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=4),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=5,
)
NAMES = [*DOCUMENT["components"]["schemas"]["CompletionRequest"]["properties"], "another"]
CONFORMING = values(BODY, DOCUMENT)
DAMAGED = st.tuples(CONFORMING, st.sampled_from(NAMES), ANYTHING).map(lambda drawn: {**drawn[0], drawn[1]: drawn[2]})
TOGETHER = "best_of must be n"  # what no schema can say


@settings(max_examples=400, deadline=None)
@given(body=CONFORMING | DAMAGED)
@example(body={"model": "m", "stop": []})
@example(body={"model": "m", "stop": ["a"] * 5})
@example(body={"model": "m", "stop": [""]})
@example(body={"model": "m", "prompt": []})
@example(body={"model": "m", "prompt": [""]})
@example(body={"model": "m", "prompt": [[]]})
@example(body={"model": "m", "prompt": [[1], [2.0]], "n": 2.0, "max_tokens": 0})
@example(body={"model": "m", "prompt": [1, "a"]})
@example(body={"model": "m", "logprobs": 5.5})
@example(body={"model": "m", "logit_bias": {"1\n": 1}})
@example(body={"model": "m", "logit_bias": {"١": 1}})
@example(body={"model": "m", "logit_bias": {str(key): 1 for key in range(1025)}})
@example(body={"model": "m", "seed": 2**63 - 1, "suffix": "", "stream_options": None, "best_of": 1})
@example(body={"model": "m", "stream": True, "stream_options": {"include_usage": None}})
@example(body={"model": "m", "stream": True, "stream_options": {"other": True}})
@example(body={"model": "m", "stream": False, "stream_options": {}})
@example(body={"model": None})
@example(body={})
def test_what_is_read_is_what_the_document_allows(body):
    try:
        read_request(json.dumps(body).encode())
    except ApiError as error:
        assert error.status == 400
        told = error.message
    else:
        told = None
    if conforms(body, BODY, DOCUMENT):
        assert told is None or told.startswith(TOGETHER), told
    else:
        assert told is not None


def test_defaults_are_those_of_the_document_and_null_is_not_given():
    properties = DOCUMENT["components"]["schemas"]["CompletionRequest"]["properties"]
    written = {name: field["default"] for name, field in properties.items() if "default" in field}
    nulls = {name: None for name in properties if name != "model"}
    plain, *others = (read_request(json.dumps({"model": "m", **more}).encode()) for more in ({}, written, nulls))
    assert others == [plain, plain]
    assert written["max_tokens"] == 16 and written["temperature"] == written["top_p"] == written["n"] == 1


def tame(body):
    """With the right model and few tokens, so that most of them are answered."""
    small = {"model": tiny_server.NAME, "max_tokens": body.get("max_tokens")}
    for name, most in (("max_tokens", 5), ("n", 2)):
        if body.get(name) is not None:
            small[name] = body[name] % (most + 1) or 1
    return {**body, **small, "best_of": None}


@settings(max_examples=150, deadline=None)
@given(body=CONFORMING.map(tame) | CONFORMING | DAMAGED)
@example(body={"model": tiny_server.NAME, "stream": True, "logprobs": 5, "echo": True, "max_tokens": 3, "n": 2})
@example(body={"model": tiny_server.NAME, "stream": True, "stream_options": {"include_usage": True}, "max_tokens": 2})
@example(body={"model": tiny_server.NAME, "prompt": [[5], [6, 7]], "logprobs": 0, "max_tokens": 0, "echo": True})
@example(body={"model": tiny_server.NAME, "max_tokens": 33})
@example(body={"model": "another"})
def test_completions_are_as_documented(client, body):
    answer = client.post("/v1/completions", json=body)
    assert answer.status_code < 500
    answered_as_documented(answer, "/v1/completions", "post")


@pytest.mark.parametrize(("path", "method"), [each for each in OPERATIONS if each[1] == "get"])
def test_every_other_endpoint_is_as_documented(client, path, method):
    operation = DOCUMENT["paths"][path][method]
    names = {each["name"]: values(each["schema"], DOCUMENT) for each in operation.get("parameters", [])}

    @settings(max_examples=40 if names else 5, deadline=None)
    @given(
        drawn=st.fixed_dictionaries(names),
        query=st.dictionaries(st.text(max_size=4), st.text(max_size=4), max_size=2),
        content=st.binary(max_size=8),
    )
    def ask(drawn, query, content):
        filled = {name: urllib.parse.quote(text, safe="") for name, text in drawn.items()}
        answer = client.request(method, path.format(**filled), params=query, content=content)
        assert answer.status_code < 500
        answered_as_documented(answer, path, method)

    ask()
    if names:
        assert client.request(method, path.format(name=tiny_server.NAME)).status_code == 200


def test_errors_of_the_whole_server_are_as_documented(client):
    """Those that no body of JSON brings about."""
    post, headers = client.post, {"Content-Type": "application/json"}
    too_long = post("/v1/completions", content=b" " * 20_001, headers=headers)
    no_type, no_json = post("/v1/completions", content=b"{}"), post("/v1/completions", content=b"{", headers=headers)
    with tiny_server.service(seconds=0.0) as one:
        late = TestClient(create_application(one)).post("/v1/completions", json={"model": tiny_server.NAME})
        one.engine.close()
        closed = TestClient(create_application(one)).get("/health")
    answers = {413: too_long, 415: no_type, 400: no_json, 503: late}
    for status, answer in answers.items():
        assert answer.status_code == status
        answered_as_documented(answer, "/v1/completions", "post")
    assert closed.status_code == 503
    answered_as_documented(closed, "/health", "get")
