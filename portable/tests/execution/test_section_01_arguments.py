"""Arguments of classes of the user's, taken apart by a parser (spec sections 1 and 3)."""

from __future__ import annotations

import sys
import types

import pytest
import torch
from programs import Body, make_options

import poptorch


class Batch:
    """Two tensors and a number, as a class that nobody else knows."""

    def __init__(self, x, mask, scale):
        self.x, self.mask, self.scale = x, mask, scale


class BatchParser(poptorch.ICustomArgParser):
    """One that looks at what it is given, as user code does."""

    def yieldTensors(self, struct):
        for name in ("x", "mask"):
            if isinstance(getattr(struct, name), torch.Tensor):
                yield getattr(struct, name)

    def reconstruct(self, original_structure, tensor_iterator):
        return Batch(next(tensor_iterator), next(tensor_iterator), original_structure.scale)


poptorch.registerCustomArgParser(Batch, BatchParser())


def forward(m, batch, extra):
    return Batch(batch.x * batch.scale + extra["bias"], batch.mask, "done"), [batch.x + 1]


def executor():
    return poptorch.inferenceModel(Body(forward), make_options(2))


X, MASK, BIAS = torch.arange(4.0), torch.ones(4, dtype=torch.int32), torch.ones(4)


def test_objects_go_in_and_come_out():
    run = executor()
    for factor in (1, 2):
        out, (other,) = run(Batch(X * factor, MASK, 3), {"bias": BIAS})
        assert isinstance(out, Batch) and out.scale == "done"
        assert torch.equal(out.x, X * factor * 3 + 1) and torch.equal(out.mask, MASK)
        assert torch.equal(other, X * factor + 1)


@pytest.mark.parametrize(
    "changed, text",
    [
        (Batch(X.half(), MASK, 3), "Data type mismatch: expected torch.float32 but got torch.float16"),
        (Batch(X[:2], MASK, 3), "Shape mismatch"),
        ("text", "Type mismatch"),
    ],
)
def test_objects_are_compared_with_those_of_the_first_call(changed, text):
    run = executor()
    run(Batch(X, MASK, 3), {"bias": BIAS})
    with pytest.raises(poptorch.Error, match=f"{text}.*inputs passed at runtime don't match"):
        run(changed, {"bias": BIAS})


def test_what_is_no_parser_is_refused():
    with pytest.raises(poptorch.Error, match="ICustomArgParser"):
        poptorch.registerCustomArgParser(Batch, object())
    with pytest.raises(NotImplementedError, match="yieldTensors"):
        poptorch.ICustomArgParser().yieldTensors(None)


class Data(dict):
    """What torch_geometric's Data looks like from here: keys as a method, values by key."""

    def keys(self):
        return list(super().keys())


def test_graphs_of_torch_geometric(monkeypatch):
    with monkeypatch.context() as without:
        without.setitem(sys.modules, "torch_geometric", None)
        with pytest.raises(ImportError):
            poptorch.registerGeometricCustomArgParsers()
    library = types.ModuleType("torch_geometric.data")
    library.Data, library.Batch = Data, type("Batch", (Data,), {})
    monkeypatch.setitem(sys.modules, "torch_geometric", types.ModuleType("torch_geometric"))
    monkeypatch.setitem(sys.modules, "torch_geometric.data", library)
    poptorch.registerGeometricCustomArgParsers()
    graph = Data(x=torch.randn(4, 3), edge_index=torch.tensor([[0, 1], [1, 2]]), name="g")

    def gather(m, graph):
        return torch.zeros(4, 3).index_add(0, graph["edge_index"][1], graph["x"][graph["edge_index"][0]])

    found = poptorch.inferenceModel(Body(gather))(graph)
    assert torch.equal(found, torch.zeros(4, 3).index_add(0, torch.tensor([1, 2]), graph["x"][:2]))
