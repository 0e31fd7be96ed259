"""Parameters and the expansion of commands: one value is one word, whatever is in it."""

from __future__ import annotations

import shlex

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from examples_utils.benchmark.variants import combinations, expand, split, variant_name


@pytest.mark.parametrize(
    "parameters, expected",
    [
        (None, [{}]),
        ({"a": [1, 2], "b": ["x", "y"]}, [{"a": i, "b": j} for i in (1, 2) for j in "xy"]),
        ({"a": 3}, [{"a": 3}]),
        ([["a", "b"], [1, "x"], [2, "y"]], [{"a": 1, "b": "x"}, {"a": 2, "b": "y"}]),
        ([{"a": [1, 2]}, {"b": ["x", "y"]}], [{"a": 1, "b": "x"}, {"a": 2, "b": "y"}]),
        ([["layers"], [[0, 4]], [[1, 3]]], [{"layers": [0, 4]}, {"layers": [1, 3]}]),
    ],
)
def test_a_mapping_is_a_product_and_a_list_is_zipped(parameters, expected):
    assert combinations(parameters) == expected


def test_names():
    assert variant_name("b", {}) == "b"
    assert variant_name("b", {"n": 2, "path": "../x y"}) == "b_n_2_path_..-x-y"


def test_expansion():
    words = split("run --n {n} --all {list} --joined={list} $HOME/x ${HOME}y '$$HOME' {{n}} \"two words\" \\\n end")
    assert expand(words, {"n": 1, "list": [0, 4]}, {"HOME": "/h"}) == [
        *("run", "--n", "1", "--all", "0", "4", "--joined=0 4", "/h/x", "/hy", "$HOME", "{n}", "two words", "end"),
    ]


def test_quoted_operators_are_characters():
    assert split("""grep 'a|b' "c;d" e\\&f --x='(>)'""") == ["grep", "a|b", "c;d", "e&f", "--x=(>)"]


def test_lines_are_joined_outside_of_single_quotes():
    assert split("p a \\\n b 'c\\\nd' \"e\\\nf\\\\\ng\"") == ["p", "a", "b", "c\\\nd", "ef\\\ng"]


VALUES = st.text(st.characters(blacklist_characters="\0", blacklist_categories=["Cs"]))


@given(VALUES, VALUES)
def test_no_value_becomes_anything_but_one_word(parameter, variable):
    words = expand(split("program --flag {p} $V x{p}y"), {"p": parameter}, {"V": variable})
    assert words == ["program", "--flag", parameter, variable, f"x{parameter}y"]


@given(st.lists(VALUES, min_size=1))
@example(["\\\n"])
@example(["\\", "\n", "'", '"\\\n"'])
def test_split_is_the_shells(words):
    first = "p"
    assert split(shlex.join([first, *words])) == [first, *words]
