"""What each field of POST /v1/completions does to an answer, by OpenAI's description of it.

https://platform.openai.com/docs/api-reference/completions/create
"""

import json
import math

import pytest

pytest.importorskip("starlette", reason="requirements-serving.txt is not installed")

import tiny_server  # noqa: E402
from starlette.testclient import TestClient  # noqa: E402

from serving.application import create_application  # noqa: E402

PROMPT, OTHER = "the river flows", "it rains"


@pytest.fixture(scope="module")
def client():
    with tiny_server.service() as one:
        yield TestClient(create_application(one), raise_server_exceptions=False)


def answered(client, **fields):
    answer = client.post(
        "/v1/completions", json={"model": tiny_server.NAME, "prompt": PROMPT, "max_tokens": 6, **fields}
    )
    assert answer.status_code == 200, answer.text
    return answer


def choices(client, **fields):
    return answered(client, **fields).json()["choices"]


def chunks(client, **fields):
    parts = answered(client, stream=True, **fields).text.split("\n\n")
    assert parts[-2:] == ["data: [DONE]", ""]
    return [json.loads(part[len("data: ") :]) for part in parts[:-2]]


def refused(client, **fields):
    answer = client.post("/v1/completions", json={"model": tiny_server.NAME, "prompt": PROMPT, **fields})
    assert answer.status_code == 400, answer.text
    return answer.json()["error"]


def test_several_prompts_are_answered_in_order_n_times_each(client):
    alone = [choices(client, prompt=prompt, temperature=0)[0]["text"] for prompt in (PROMPT, OTHER)]
    found = choices(client, prompt=[PROMPT, OTHER], n=2, temperature=0)
    assert [choice["index"] for choice in found] == [0, 1, 2, 3]
    assert [choice["text"] for choice in found] == [alone[0], alone[0], alone[1], alone[1]]


def test_token_ids_are_the_same_as_their_text(client):
    ids, other = map(tiny_server.model().encode, (PROMPT, OTHER))
    expected = choices(client, prompt=[PROMPT, OTHER], temperature=0, echo=True)
    assert choices(client, prompt=[ids, other], temperature=0, echo=True) == expected
    assert choices(client, prompt=ids, temperature=0, echo=True) == expected[:1]


@pytest.mark.parametrize("count", range(6))
def test_so_many_likeliest_tokens_are_told_and_the_chosen_one(client, count):
    (choice,) = choices(client, logprobs=count, seed=3, temperature=2)
    found = choice["logprobs"]
    assert len(found["tokens"]) == len(found["token_logprobs"]) == len(found["top_logprobs"]) == 6
    for token, value, best in zip(found["tokens"], found["token_logprobs"], found["top_logprobs"]):
        assert best[token] == value <= 0 and len(best) in (count, count + 1) and len(best) >= 1
        others = sorted((each for name, each in best.items() if name != token), reverse=True)
        assert len(best) == count or all(value <= each for each in others)  # beyond the likeliest: it is none of them
        assert sum(map(math.exp, best.values())) <= 1 + 1e-6


def test_without_logprobs_there_are_none(client):
    assert choices(client)[0]["logprobs"] is None
    assert choices(client, logprobs=None)[0]["logprobs"] is None


def test_log_probabilities_are_of_the_models_distribution_whatever_draws(client):
    """The first token's, for temperature, top_p and bias; the chosen token may be another."""
    (plain,) = choices(client, logprobs=5, max_tokens=1, temperature=0)
    (drawn,) = choices(client, logprobs=5, max_tokens=1, temperature=2, top_p=0.9, seed=8, logit_bias={"7": 3})
    common = set(plain["logprobs"]["top_logprobs"][0]) & set(drawn["logprobs"]["top_logprobs"][0])
    assert len(common) >= 5
    for token in common:
        value = plain["logprobs"]["top_logprobs"][0][token]
        assert drawn["logprobs"]["top_logprobs"][0][token] == pytest.approx(value, abs=1e-5)


def test_echo_with_log_probabilities_scores_the_prompt(client):
    ids = tiny_server.model().encode(PROMPT)
    (whole,) = choices(client, logprobs=1, echo=True, temperature=0)
    (scored,) = choices(client, logprobs=1, echo=True, max_tokens=0)
    assert (scored["text"], scored["finish_reason"]) == (PROMPT, "length")
    for name, values in scored["logprobs"].items():
        assert len(values) == len(ids) and whole["logprobs"][name][: len(ids)] == values
    assert scored["logprobs"]["token_logprobs"][0] is None and None not in scored["logprobs"]["token_logprobs"][1:]


def test_no_token_is_a_text_of_no_length(client):
    answer = answered(client, max_tokens=0).json()
    assert answer["choices"] == [{"text": "", "index": 0, "logprobs": None, "finish_reason": "length"}]
    assert answer["usage"]["completion_tokens"] == 0 < answer["usage"]["prompt_tokens"]
    (chunk,) = chunks(client, max_tokens=0)
    assert chunk["choices"] == answer["choices"]


@pytest.mark.parametrize("count", range(1, 5))
@pytest.mark.parametrize("stream", [False, True])
def test_the_first_of_one_to_four_stops_ends_a_text(client, count, stream):
    (free,) = choices(client, seed=5, max_tokens=12)
    text = free["text"]
    places = [len(text) // 2 + place for place in range(count)]
    stops = [text[place : place + 2] for place in reversed(places)]
    expected = text[: min(text.index(stop) for stop in stops)]
    if stream:
        parts = [chunk["choices"][0] for chunk in chunks(client, seed=5, max_tokens=12, stop=stops)]
        found, finish = "".join(part["text"] for part in parts), parts[-1]["finish_reason"]
    else:
        (choice,) = choices(client, seed=5, max_tokens=12, stop=stops)
        found, finish = choice["text"], choice["finish_reason"]
    assert (found, finish) == (expected, "stop")


def test_a_stop_may_be_a_string_and_an_empty_list_is_none(client):
    (free,) = choices(client, seed=5, max_tokens=12)
    stop = free["text"][3:5]
    one, listed, none = (choices(client, seed=5, max_tokens=12, stop=each)[0] for each in (stop, [stop], []))
    assert one == listed != free and none == free
    (echoed,) = choices(client, seed=5, max_tokens=12, echo=True, stop=[PROMPT[:3]])
    assert echoed["text"].startswith(PROMPT)  # what ends a text is not looked for in its prompt


def test_a_stream_of_several_texts_tells_each_by_its_index(client):
    whole = choices(client, n=2, seed=4, prompt=[PROMPT, OTHER])
    texts = {choice["index"]: "" for choice in whole}
    found = chunks(client, n=2, seed=4, prompt=[PROMPT, OTHER])
    for chunk in found:
        (choice,) = chunk["choices"]
        texts[choice["index"]] += choice["text"]
    assert texts == {choice["index"]: choice["text"] for choice in whole}
    assert len({chunk["id"] for chunk in found}) == len({chunk["created"] for chunk in found}) == 1


@pytest.mark.parametrize("options", [None, {}, {"include_usage": False}, {"include_usage": None}])
def test_without_include_usage_a_stream_tells_none(client, options):
    assert all("usage" not in chunk and chunk["choices"] for chunk in chunks(client, stream_options=options))


def test_with_include_usage_the_last_event_has_it_alone(client):
    *parts, last = chunks(client, n=2, stream_options={"include_usage": True}, logprobs=0, seed=1)
    whole = answered(client, n=2, logprobs=0, seed=1).json()
    assert all(part["usage"] is None for part in parts)
    assert (last["choices"], last["usage"]) == ([], whole["usage"]) and last["id"] == parts[0]["id"]


def test_a_seed_gives_the_texts_again_and_each_of_n_is_another(client):
    first, second = (choices(client, n=3, seed=-7, temperature=2) for _ in range(2))
    assert first == second and len({choice["text"] for choice in first}) == 3


def test_the_coldest_texts_are_the_likeliest(client):
    greedy = choices(client, temperature=0, n=2)
    assert greedy[0]["text"] == greedy[1]["text"] == choices(client, top_p=0, seed=1)[0]["text"]
    assert choices(client, temperature=1e-9, seed=1)[0]["text"] == greedy[0]["text"]


def test_bias_and_penalties_change_what_comes(client):
    only = tiny_server.model().token_text(7)
    assert choices(client, logit_bias={"7": 100})[0]["text"] == only * 6
    (kept,) = choices(client, temperature=0, logit_bias={"7": 20}, logprobs=0)
    assert kept["logprobs"]["tokens"] == [only] * 6
    for name in ("frequency_penalty", "presence_penalty"):
        (found,) = choices(client, temperature=0, logit_bias={"7": 20, "8": 19}, logprobs=0, **{name: 2})
        (liked,) = choices(client, temperature=0, logit_bias={"7": 20, "8": 19}, logprobs=0, **{name: -2})
        assert len(set(found["logprobs"]["tokens"])) > len(set(liked["logprobs"]["tokens"])) == 1


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"best_of": 3, "n": 2}, "best_of"),
        ({"best_of": 2}, "best_of"),
        ({"suffix": "the end"}, "suffix"),
        ({"user": 5}, "user"),
        ({"echo": "true"}, "echo"),
        ({"messages": []}, "messages"),
        ({"top_k": 5}, "top_k"),
        ({"stream": True, "stream_options": {"include_usage": "yes"}}, "stream_options"),
    ],
)
def test_what_is_not_supported_is_named(client, fields, param):
    error = refused(client, **fields)
    assert error["param"] == param and param in error["message"] and error["type"] == "invalid_request_error"


def test_what_has_no_effect_has_none(client):
    plain = choices(client, seed=2)
    same = choices(client, seed=2, user="somebody", best_of=1, suffix="", frequency_penalty=0, presence_penalty=0)
    assert same == plain == choices(client, seed=2, logit_bias={}, suffix=None, user=None, n=1, top_p=1)
