"""Calls of any form: the second and third are what the first was, with arguments of every kind (spec section 1)."""

from __future__ import annotations

import collections
import dataclasses
import enum

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import poptorch
from poptorch.structure import map_leaves


class Colour(enum.Enum):
    RED = 1
    BLUE = 2


Pair = collections.namedtuple("Pair", "left right")


@dataclasses.dataclass
class Record:
    left: object
    right: object = 3


TYPES = [torch.float32, torch.float16, torch.bfloat16, torch.int32, torch.int64, torch.int8, torch.uint8, torch.bool]
CONSTANTS = [
    None, True, False, 0, 3, -1, 2.5, float("inf"), float("nan"), "", "mean", b"bytes", 1 + 2j, Colour.RED, Colour.BLUE,
    torch.float16, torch.int64, torch.Size((2, 3)), torch.device("cpu"), slice(1, 3), range(4), frozenset((1, 2)),
    np.float32(2.5), np.float32(3.5), np.int64(7), np.bool_(True), np.arange(3.0), np.array([1.0, np.nan]), len,
    max, torch.relu, torch.tanh, torch.nn.ReLU, torch.nn.GELU, torch.strided, torch.sparse_coo,
    lambda x: x, lambda x: -x, torch.contiguous_format, torch.channels_last, torch.device("meta"), slice(None),
    range(2), "sum", b"", frozenset(),
]  # fmt: skip


class Wanted:
    """A tensor of `shape` and `dtype` whose elements are the number of the call. A dataclass is taken apart."""

    def __init__(self, shape: tuple[int, ...], dtype: torch.dtype, contiguous: bool):
        self.shape, self.dtype, self.contiguous = shape, dtype, contiguous

    def __repr__(self) -> str:
        return f"Wanted({self.shape}, {self.dtype}, {self.contiguous})"

    def tensor(self, call: int) -> torch.Tensor:
        tensor = torch.full(self.shape, call).to(self.dtype)
        return tensor if self.contiguous or tensor.dim() < 2 else tensor.transpose(0, 1).contiguous().transpose(0, 1)


class Constant:
    """Number `index` of CONSTANTS: not a leaf that hypothesis or a comparison looks into."""

    def __init__(self, index: int):
        self.index = index

    def __repr__(self) -> str:
        return f"Constant({CONSTANTS[self.index]!r})"


tensors = st.builds(Wanted, st.sampled_from([(), (2,), (4, 3), (2, 1, 3)]), st.sampled_from(TYPES), st.booleans())
leaves = tensors | st.builds(Constant, st.integers(0, len(CONSTANTS) - 1))
names = st.sampled_from(["x", "scale", "mask", "self_", "k"])
values = st.recursive(
    leaves,
    lambda inner: st.one_of(
        st.lists(inner, max_size=3),
        st.lists(inner, max_size=3).map(tuple),
        st.dictionaries(names, inner, max_size=3),
        st.dictionaries(names, inner, max_size=3).map(collections.OrderedDict),
        st.builds(Pair, inner, inner),
        st.builds(Record, inner, inner),
    ),
    max_leaves=5,
)


class Returned(torch.nn.Module):
    """What it is given, its tensors changed."""

    def forward(self, first, /, second=None, *rest, third=2, fourth="sum", **more):
        given = (first, second, rest, third, fourth, more)
        return map_leaves(given, lambda leaf: leaf + leaf if isinstance(leaf, torch.Tensor) else leaf)


def other_than(index: int) -> object:
    """A constant of the same type, or else of another one."""
    alike = (c for i, c in enumerate(CONSTANTS) if i != index and type(c) is type(CONSTANTS[index]))
    return next(alike, "another")


def made(value: object, call: int, changed: Constant | None = None) -> object:
    """The argument that `value` stands for; that of the constant `changed` is another one."""

    def leaf(one: object) -> object:
        if isinstance(one, Wanted):
            return one.tensor(call)
        if one is changed:
            return other_than(one.index)
        return CONSTANTS[one.index] if isinstance(one, Constant) else one

    return map_leaves(value, leaf)


def assert_same(found: object, expected: object) -> None:
    if isinstance(expected, torch.Tensor):
        dtype = torch.int32 if expected.dtype == torch.int64 else expected.dtype
        assert found.dtype == dtype and torch.equal(found, expected.to(dtype))
        return
    assert type(found) is type(expected)
    if isinstance(expected, (list, tuple)):
        assert len(found) == len(expected)
        for left, right in zip(found, expected, strict=True):
            assert_same(left, right)
    elif isinstance(expected, dict):
        assert set(found) == set(expected)
        for key, value in expected.items():
            assert_same(found[key], value)
    elif isinstance(expected, Record):
        assert_same(vars(found), vars(expected))
    else:
        np.testing.assert_equal(found, expected)


@st.composite
def calls(draw):
    """Values by name, and of three calls with them whether `second` comes by name and in what order names come."""
    first = draw(tensors | st.tuples(values, tensors))
    optional = {name: draw(values) for name in ("second", "third", "fourth", "more_a", "more_b") if draw(st.booleans())}
    rest = draw(st.lists(values, max_size=2)) if "second" in optional else []
    forms = [(draw(st.booleans()), draw(st.permutations(sorted(optional)))) for _ in range(3)]
    return first, optional, rest, forms


@settings(max_examples=150, deadline=None)
@given(calls())
def test_a_call_in_another_form_is_the_same_call(drawn):
    first, optional, rest, forms = drawn
    constants: list[Constant] = []
    everything = (first, list(optional.values()), rest)
    map_leaves(everything, lambda leaf: constants.append(leaf) if isinstance(leaf, Constant) else None)
    model = Returned()
    executor = poptorch.inferenceModel(model)

    def call(number: int, by_name: bool, order: list[str], changed: Constant | None = None):
        args = [made(first, number, changed)]
        kwargs = {name: made(optional[name], number, changed) for name in order}
        if rest or (kwargs.get("second") is not None and not by_name):
            args += [kwargs.pop("second"), *(made(value, number, changed) for value in rest)]
        return args, kwargs

    for number, form in enumerate(forms, 1):
        args, kwargs = call(number, *form)
        assert_same(executor(*args, **kwargs), model(*args, **kwargs))
    for constant in constants[:2]:
        args, kwargs = call(1, *forms[0], changed=constant)
        with pytest.raises(poptorch.Error, match="mismatch"):
            executor(*args, **kwargs)
    args, kwargs = call(4, *forms[1])
    assert_same(executor(*args, **kwargs), model(*args, **kwargs))
