"""What is said of a line that is not what a reader of JSON lines expects."""

from __future__ import annotations

import json

import pytest

from corpora.json_lines import text_in

ROW = {"id": 1, "text": "a text", "none": None, "yes": True, "seven": 7, "list": [], "row": {}}


def said(line, key="text"):
    with pytest.raises(ValueError) as error:
        text_in(line, key, f"no text under {key!r}", "name it with --json-key")
    return str(error.value)


def test_the_text():
    assert text_in(json.dumps(ROW) + " \r", "text", "", "") == "a text"


@pytest.mark.parametrize(
    ("key", "shown"),
    [("none", "null"), ("yes", "true"), ("seven", "a number"), ("list", "an array"), ("row", "an object")],
)
def test_a_value_that_is_no_text_is_named(key, shown):
    assert f"no text under {key!r}: the value is {shown}; " in said(json.dumps(ROW), key)


def test_a_key_that_is_missing_is_told_beside_those_that_are_there():
    assert said('{"body": "x", "id": 1}') == "no text under 'text' (found 'body', 'id'); name it with --json-key"
    assert "(found nothing)" in said("{}")


@pytest.mark.parametrize("line", ['[{"text": "one"},', "[", '[{"text": "one"}]', "  [1]"])
def test_an_array_is_called_one(line):
    assert "a JSON array begins here, where a JSON object a line is expected; jq -c '.[]' FILE" in said(line)


def test_other_lines():
    assert said("plain text").startswith("not JSON: ")
    assert said('{"text": "cut') == "not JSON: Unterminated string starting at: line 1 column 10 (char 9)"
    assert said('"text"') == "a string, where a JSON object a line is expected"
    assert said("7") == "a number, where a JSON object a line is expected"
