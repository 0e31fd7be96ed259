"""torch._dynamo and what else takes long to import stays out of programs that have no use for it."""

from __future__ import annotations

import pytest
import torch
from forks import forks
from torch._subclasses.fake_tensor import FakeTensorMode

from poptorch.engine.tracing.fakes import FakeMode

MODEL = """
import os
import sys

import poptorch
import torch


class Model(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.layer, self.norm = torch.nn.Linear(6, 6), torch.nn.LayerNorm(6)

    def forward(self, x, target):
        before()
        x = self.norm(self.layer(x).view(-1, 2, 3).transpose(1, 2).reshape(-1, 6))[:, 1:].float()
        x = torch.nn.functional.dropout(x, 0.1) + x[0]
        return x, torch.nn.functional.cross_entropy(x, target)


def before():
    pass


torch.manual_seed(0)  # dropout and weights are as lucky in every run
model = Model()
inputs = torch.ones(4, 6), torch.zeros(4, dtype=torch.long)
"""
HEAVY = {"torch._dynamo", "torch._inductor", "torch.onnx", "torch.distributed.tensor", "torch._functorch.aot_autograd"}
TRAIN = """
optimizer = poptorch.optim.AdamW(model.parameters(), lr=0.1)
optimizer.zero_grad()
training = poptorch.trainingModel(model, optimizer=optimizer)
assert training(*inputs)[1] > training(*inputs)[1]
optimizer.load_state_dict(optimizer.state_dict())
"""
INFER = "poptorch.inferenceModel(model.eval())(*inputs)\n"


LATER = """
import torch._dynamo.testing

assert torch._dynamo is sys.modules["torch._dynamo"] and torch._dynamo.config is sys.modules["torch._dynamo.config"]
assert torch._dynamo.config.patch and torch._dynamo.eval_frame

def clear(x):
    optimizer.zero_grad()
    return x + 1

counter = torch._dynamo.testing.CompileCounter()
compiled = torch.compile(clear, backend=counter)
print(*compiled(torch.zeros(2)).tolist(), counter.frame_count)
"""
ASKED = ("import torch._dynamo.eval_frame", "from torch import _dynamo as d; d.reset")
OTHER = """
model = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.BatchNorm1d(2), torch.nn.Dropout())
poptorch.inferenceModel(model)(torch.ones(4, 2))
print('torch.export._trace' in sys.modules)
"""
PROGRAMS = {
    "without export": OTHER,
    "without": TRAIN + INFER + "print(*sys.modules)",
    **{
        asks: f"def before():\n    try:\n        {asks}\n    except Exception:\n        os._exit(3)\n\n{TRAIN}"
        "print('torch._dynamo.eval_frame' in sys.modules)"
        for asks in ASKED
    },
    "loaded afterwards": TRAIN + LATER,
    "loaded before": "import torch._dynamo\n" + TRAIN + LATER,
}


@pytest.fixture(scope="module")
def output_of() -> dict[str, str]:
    """What each of the programs prints, in a process that has imported poptorch and made the model."""
    said = forks(MODEL, *(({}, program) for program in PROGRAMS.values()))
    return {name: output for name, (output, _) in zip(PROGRAMS, said, strict=True)}


def test_training_and_inference_run_without_it(output_of):
    loaded = output_of["without"].split()
    assert "torch.fx" in loaded and not HEAVY & set(loaded)


def test_export_is_loaded_only_where_it_is_needed(output_of):
    """Its import takes longer than tracing a small model."""
    assert output_of["without export"] == "False\n"


@pytest.mark.parametrize("asks", ASKED)
def test_a_forward_that_asks_for_it_gets_it(output_of, asks):
    assert output_of[asks] == "True\n"


def test_it_can_be_loaded_and_guards_afterwards(output_of):
    """What is kept of optimizers' methods is not compiled into a function that calls them."""
    assert output_of["loaded afterwards"] == output_of["loaded before"]


def matrix(*shape):
    return torch.arange(float(torch.Size(shape).numel())).reshape(shape)


OPERATIONS = {
    "view": (lambda x: x.view(4, 3), lambda: matrix(2, 6)),
    "view of a transposed one": (lambda x: x.view(6, 2, 1), lambda: matrix(2, 6).t()),
    "flattening": (lambda x: x.flatten(1), lambda: matrix(2, 3, 4)),
    "reshape that copies": (lambda x: x.t().reshape(-1), lambda: matrix(2, 6)),
    "element from the end": (lambda x: x.select(1, -2), lambda: matrix(2, 6)),
    "slice with a step": (lambda x: x[:, 1:-1:2], lambda: matrix(2, 6)),
    "slice beyond the end": (lambda x: x[1:9], lambda: matrix(3, 2)),
    "slice of a view": (lambda x: x[1:], lambda: matrix(4, 6)[1:, ::2]),
    "layer norm": (lambda x: torch.native_layer_norm(x, (6,), None, None, 1e-5), lambda: matrix(2, 6)),
    "layer norm of halves": (
        lambda x: torch.native_layer_norm(x, (6,), x[0], x[1], 1e-5),
        lambda: matrix(2, 6).half(),
    ),
    "layer norm of a transposed one": (
        lambda x: torch.native_layer_norm(x, (2, 3), None, None, 1e-5),
        lambda: matrix(3, 2, 4).transpose(0, 2),
    ),
    "sum": (lambda x: x + x[0], lambda: matrix(2, 6)),
    "write to a parameter": (lambda x: x.detach().add_(1), lambda: torch.nn.Parameter(matrix(2, 6))),
}


@pytest.mark.parametrize("name", OPERATIONS)
def test_shapes_are_those_of_torchs_own_mode(name):
    operation, make = OPERATIONS[name]

    def traced(mode: FakeTensorMode) -> list[tuple]:
        x = mode.from_tensor(make())
        with mode:
            results = operation(x)
        found = [x, *(results if isinstance(results, tuple) else (results,))]
        storages = [tensor.untyped_storage()._cdata for tensor in found]
        return [
            (
                tensor.shape,
                tensor.stride(),
                tensor.storage_offset(),
                tensor.dtype,
                tensor.device,
                tensor.requires_grad,
                tensor.is_leaf,
                tensor.untyped_storage().nbytes(),
                storages.index(storage),
            )
            for tensor, storage in zip(found, storages, strict=True)
        ]

    assert traced(FakeMode()) == traced(FakeTensorMode(allow_non_fake_inputs=True))


def test_an_index_out_of_range_is_an_error_there_too():
    mode = FakeMode()
    x = mode.from_tensor(matrix(2, 6))
    with pytest.raises(IndexError), mode:
        x.select(1, 6)
