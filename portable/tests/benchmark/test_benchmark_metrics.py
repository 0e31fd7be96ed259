"""Figures from logs: reductions, what is not found, and derived metrics."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from examples_utils.benchmark.expressions import Expression
from examples_utils.benchmark.metrics import Metric, collect

LOG = "".join(f"step {i}, loss: {value}, throughput: {rate} samples/sec\n" for i, value, rate in [
    (1, 9.0, "1.0"), (2, 4.0, "1,000.5"), (3, 6.5, "2e3")
])  # fmt: skip
LOSS, RATE = re.compile("loss: *(.*?),"), re.compile(r"throughput: *(.*?) samples\/sec")


@pytest.mark.parametrize(
    "skip, reduction, expected",
    [(0, "mean", 6.5), (1, "mean", 7.75), (0, "final", 6.5), (0, "min", 4.0), (2, "value", 6.5), (2, "mean", 9.0)],
)
def test_reductions(skip, reduction, expected):
    assert Metric("loss", LOSS, skip, reduction).read([LOG]) == expected


def test_both_logs_are_read_stdout_first():
    assert Metric("loss", LOSS, 0, "final").read([LOG, "loss: 2,"]) == 2.0
    assert Metric("loss", LOSS, 3, "value").read([LOG, "loss: 2,"]) == 2.0


def test_commas_between_thousands():
    assert Metric("rate", RATE, 1).read([LOG]) == (1000.5 + 2000) / 2


@pytest.mark.parametrize(
    "metric, message",
    [
        (Metric("m", re.compile("speed (.*)")), "metric m: 'speed (.*)' was not found"),
        (Metric("m", LOSS, 3), "metric m: 'loss: *(.*?),' was not found after the first 3 of 3"),
        (Metric("m", LOSS, 0, "value"), "metric m: reduction_type value is for one figure, but there are 3: 9, 4, …"),
        (Metric("m", re.compile("(step) 1")), "metric m: 'step' is no number"),
        (Metric("m", re.compile("(nope)|step 1")), "metric m: None is no number"),
    ],
)
def test_no_figure(metric, message):
    with pytest.raises(ValueError) as caught:
        metric.read([LOG])
    assert str(caught.value).startswith(message) or message in str(caught.value)


def test_a_figure_that_is_not_finite():
    with pytest.raises(ValueError, match="metric m: nan is not finite"):
        Metric("m", LOSS).read(["loss: nan,"])


def test_derived():
    data = [Metric("rate", RATE, 2), Metric("lost", re.compile("gone (.*)"))]
    derived = {
        name: Expression(text) for name, text in [("tokens", "rate * 1024"), ("k", "tokens / 1000"), ("x", "lost")]
    }
    values, problems = collect(data, derived, [LOG])
    assert values == {"rate": 2000.0, "tokens": 2048000.0, "k": 2048.0}
    assert problems == ["metric lost: 'gone (.*)' was not found", "metric x: lost missing"]


@given(st.floats(-1e6, 1e6), st.floats(1e-3, 1e6), st.integers(-3, 3))
def test_arithmetic_is_pythons(a, b, n):
    text = f"-(a + 2.5) * b - a / b // 1 + +a % b + b ** {n}"
    assert Expression(text).value({"a": a, "b": b}) == eval(text, {"a": a, "b": b, "__builtins__": {}})


@pytest.mark.parametrize(
    "text",
    [
        *("__import__('os')", "a.real", "a[0]", "(a, b)", "a if b else c", "lambda: 1", "'text'", "a < b", "a and b"),
        *("True", "1j", "[1]", "a := 1", "f'{a}'", "a; b", "a @ b", "~a", "", "(" * 500),
    ],
)
def test_nothing_else_is_an_expression(text):
    with pytest.raises(ValueError):
        Expression(text)


@pytest.mark.parametrize("text", ["1 / (a - a)", "9 ** 9 ** 9", "(0 - 8) ** 0.5", "1e308 * 10"])
def test_no_result(text):
    with pytest.raises(ValueError):
        Expression(text).value({"a": 1.0})
