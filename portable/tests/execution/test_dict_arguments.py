"""Dicts among the arguments are matched by key, in whatever order a later call has them (spec section 1)."""

from __future__ import annotations

import collections

import pytest
import torch

import poptorch

ONE, TWO = torch.tensor([1.0]), torch.tensor([2.0])


class Divide(torch.nn.Module):
    def forward(self, values):
        return values["num"] / values["den"]


class Nested(torch.nn.Module):
    def forward(self, pairs, **more):
        return pairs[0]["num"] / pairs[0]["den"] + more["a"] - 10 * more["b"]


@pytest.mark.parametrize("kind", [dict, collections.OrderedDict])
def test_keys_in_another_order(kind):
    executor = poptorch.inferenceModel(Divide())
    assert executor(kind([("num", ONE), ("den", TWO)])).item() == 0.5
    assert executor(kind([("den", TWO), ("num", ONE)])).item() == 0.5
    assert executor(kind([("den", ONE), ("num", TWO)])).item() == 2.0


def test_nested_dicts_and_keywords_in_another_order():
    executor = poptorch.inferenceModel(Nested())
    assert executor([{"num": ONE, "den": TWO}], a=ONE, b=TWO).item() == -18.5
    assert executor([{"den": TWO, "num": ONE}], b=TWO, a=ONE).item() == -18.5


def test_a_dict_whose_shapes_differ_by_key():
    class Model(torch.nn.Module):
        def forward(self, values):
            return values["x"] @ values["w"].reshape(2, 3)

    executor = poptorch.inferenceModel(Model())
    x, w = torch.arange(2.0).reshape(1, 2), torch.arange(6.0).reshape(1, 6)
    expected = x @ w.reshape(2, 3)
    torch.testing.assert_close(executor({"x": x, "w": w}), expected)
    torch.testing.assert_close(executor({"w": w, "x": x}), expected)


@pytest.mark.parametrize(
    ("values", "told"),
    [
        ({"num": ONE}, "Missing arguments: den."),
        ({"num": ONE, "den": TWO, "z": ONE}, "Unexpected arguments: z."),
    ],
)
def test_keys_that_are_missing_or_new(values, told):
    executor = poptorch.inferenceModel(Divide())
    executor({"num": ONE, "den": TWO})
    with pytest.raises(poptorch.Error, match=told):
        executor(values)
