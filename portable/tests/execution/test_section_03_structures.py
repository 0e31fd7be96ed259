"""What a model may take and return besides tensors (spec sections 1 and 3)."""

from __future__ import annotations

import collections
import dataclasses

import pytest
import torch
from programs import Body, infer, make_options

import poptorch

X = torch.arange(4.0)


@dataclasses.dataclass
class Batch:
    x: torch.Tensor
    scale: int
    extra: list = dataclasses.field(default_factory=list)


@dataclasses.dataclass(frozen=True)
class Result:
    total: torch.Tensor
    name: str


def test_dataclasses_go_in_and_come_out():
    executor = poptorch.inferenceModel(
        Body(lambda m, batch: Result(batch.x * batch.scale + batch.extra[0], "sum")), make_options(2)
    )
    for factor in (1, 2):
        found = executor(Batch(factor * X, 3, [X]))
        assert isinstance(found, Result) and found.name == "sum"
        assert torch.equal(found.total, 3 * factor * X + X)
    with pytest.raises(poptorch.Error, match="Value mismatch: expected 3 but got 4 for inputs.0..scale"):
        executor(Batch(X, 4, [X]))
    with pytest.raises(poptorch.Error, match="Shape mismatch: expected .* but got .* for inputs.0..extra.0."):
        executor(Batch(X, 3, [X[:2]]))


class Cache:
    """An object nobody knows, with tensors in it and a reference to itself."""

    def __init__(self, keys):
        self.layers = [keys, {"last": keys * 2}]
        self.owner = self
        self.size = 7


def test_tensors_in_the_attributes_of_a_returned_object():
    """As in the cache of keys and values that transformers' models return."""
    first, again = infer(lambda m, x: (lambda cache: (cache, [cache]))(Cache(x + 1)), X, options=make_options(2))
    for cache in (first, *again):
        assert isinstance(cache, Cache) and cache.size == 7
        assert torch.equal(cache.layers[0], X + 1) and torch.equal(cache.layers[1]["last"], 2 * X + 2)


def test_section3_ordered_dicts_and_default_dicts_keep_their_class():
    def forward(m, x):
        return collections.OrderedDict(b=x, a=None), collections.defaultdict(list, {"k": [x + 1]})

    ordered, default = infer(forward, X)
    assert type(ordered) is collections.OrderedDict and list(ordered) == ["b", "a"]
    assert default["k"][0].tolist() == [1, 2, 3, 4] and default["other"] == []


@pytest.mark.parametrize(
    "given, inside, returned",
    [
        (torch.bool, torch.bool, torch.bool),
        (torch.int8, torch.int8, torch.int8),
        (torch.uint8, torch.uint8, torch.uint8),
        (torch.int16, torch.int16, torch.int16),
        (torch.int32, torch.int32, torch.int32),
        (torch.int64, torch.int64, torch.int32),  # 64 bits only as long as nobody looks
        (torch.float16, torch.float16, torch.float16),
        (torch.float32, torch.float32, torch.float32),
        (torch.float64, torch.float32, torch.float32),
        (torch.bfloat16, torch.bfloat16, torch.bfloat16),
    ],
)
def test_section3_types_of_inputs_and_outputs(given, inside, returned):
    seen = []

    def forward(m, x):
        seen.append(x.dtype)
        return x.clone(), x[:1].double().sum()

    same, total = infer(forward, torch.ones(3, dtype=given))
    assert (seen, same.dtype, total.dtype) == ([inside], returned, torch.float32)


def test_section3_outputs_are_host_tensors_without_gradient():
    out = infer(lambda m, x: m.layer(x[:, None]), X, layer=torch.nn.Linear(1, 2))
    assert out.device.type == "cpu" and not out.requires_grad and out.grad_fn is None and type(out) is torch.Tensor


def test_section3_non_tensor_outputs_are_those_of_the_trace():
    runs = []

    def forward(m, x):
        runs.append(len(x))
        return x + len(runs), len(runs), "text", 2.5

    executor = poptorch.inferenceModel(Body(forward), make_options(2))
    for _ in range(2):
        out, *constants = executor(X)
        assert out.tolist() == [1, 2, 3, 4] and constants == [1, "text", 2.5]
    assert runs == [2]


def test_section3_inputs_shared_by_replicas_are_changed_for_each_on_its_own():
    options = make_options(2, 1, 2).inputReplicaGrouping(2, poptorch.CommGroupType.Consecutive)
    x = torch.zeros(4)
    out = infer(lambda m, x: x.add_(1) * 2, x, options=options)
    assert out.tolist() == [2.0] * 8 and x.tolist() == [1.0] * 4


def test_section3_nested_inputs_are_written_back():
    x, y = torch.zeros(4), torch.zeros(4, dtype=torch.float64)

    def forward(m, given):
        given["a"][0][1:] = 5
        given["b"].mul_(2).add_(1)
        return given["b"].sum()

    infer(forward, {"a": [x], "b": y}, options=make_options(2))
    assert x.tolist() == [0, 5, 0, 5] and y.tolist() == [1] * 4


def test_section3_gradients_of_inputs_can_be_anchored():
    def forward(m, x, labels):
        x.mul_(2)
        return poptorch.identity_loss((x * m.w * labels).sum(), "none")

    class Model(Body):
        def forward(self, x, labels):
            return self._function(self, x, labels)

    options = make_options(1, 2)
    options.anchorTensor("slope", "Gradient___x", poptorch.OutputMode.All)
    model = Model(forward, w=torch.nn.Parameter(torch.tensor(3.0)))
    executor = poptorch.trainingModel(model, options)
    x = torch.ones(4)
    executor(x, torch.tensor([1, 2, 3, 4]))
    assert executor.getAnchoredTensor("slope").tolist() == [6, 12, 18, 24]
    assert x.tolist() == [2] * 4
    refused = make_options(1, 2)
    refused.anchorTensor("slope", "Gradient___labels")
    other = Model(forward, w=torch.nn.Parameter(torch.tensor(3.0)))
    with pytest.raises(poptorch.Error, match="input labels is of integers"):
        poptorch.trainingModel(other, refused)(x, torch.tensor([1, 2, 3, 4]))
