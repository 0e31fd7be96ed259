"""Subclasses of torch.Tensor in forward()."""

from __future__ import annotations

import pytest
import torch
from programs import infer

import poptorch

X = torch.ones(4)


class Named(torch.Tensor):
    """Nothing but another name."""


class Made(torch.Tensor):
    @staticmethod
    def __new__(cls, data):
        return torch.Tensor._make_subclass(cls, data)


class Wrapper(torch.Tensor):
    @staticmethod
    def __new__(cls, data):
        return torch.Tensor._make_wrapper_subclass(cls, data.shape, dtype=data.dtype)

    def __init__(self, data):
        self.data_inside = data

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        inside = torch.utils._pytree.tree_map(lambda a: a.data_inside if isinstance(a, Wrapper) else a, args)
        return cls(func(*inside, **(kwargs or {})))


MAKERS = {
    "as_subclass": lambda x: x.as_subclass(Named),
    "constructor": Named,
    "constructor of numbers": lambda x: Named([1.0, 2.0, 3.0, 4.0]) + x,
    "_make_subclass": Made,
    "wrapper": Wrapper,
}


@pytest.mark.parametrize("name", MAKERS)
def test_a_subclass_made_of_the_programs_tensors_is_refused(name):
    with pytest.raises(poptorch.Error, match="forward\\(\\) makes a tensor of the class (Named|Made|Wrapper)"):
        infer(lambda m, x: MAKERS[name](x) * 2, X)
    assert type(Made(X)) is Made and type(X.as_subclass(Named)) is Named  # outside nothing has changed


def test_of_a_host_tensor_it_is_ordinary_python():
    scale = torch.tensor(3.0)
    assert infer(lambda m, x: x * Made(scale).item() * scale.as_subclass(Named).item(), X).tolist() == [9.0] * 4


def test_parameters_and_inputs_are_none_of_it():
    assert infer(lambda m, x: torch.nn.Parameter(x) + torch.nn.Buffer(x), X.as_subclass(Named)).tolist() == [2.0] * 4
