"""How inputs are split into micro-batches: order [S][A][R/g][mb] (spec section 2)."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from programs import Body, infer, make_options, train

import poptorch
from poptorch.execution.signature import split_sizes

COUNTS = st.integers(1, 3)


@settings(max_examples=12, deadline=None)
@given(COUNTS, COUNTS, COUNTS, COUNTS)
def test_inference_sees_each_micro_batch_in_order(iterations, replicas, size, width):
    x = torch.arange(iterations * replicas * size * width, dtype=torch.float32).view(-1, width)
    out = infer(lambda m, x: (x.sum(), x * 2), x, options=make_options(iterations, 1, replicas))
    assert torch.equal(out[1], x * 2)
    assert torch.equal(out[0].reshape(-1), x.view(iterations * replicas, -1).sum(1))


@settings(max_examples=12, deadline=None)
@given(COUNTS, COUNTS, COUNTS, st.integers(1, 2))
def test_training_splits_by_iteration_then_accumulation_then_replica(iterations, accumulation, replicas, size):
    x = torch.arange(iterations * accumulation * replicas * size, dtype=torch.float32)
    options = make_options(iterations, accumulation, replicas, poptorch.OutputMode.Final)
    last = x.view(iterations, accumulation, replicas, size)[-1, -1]
    seen, _ = train(lambda m, x: (x + 0, poptorch.identity_loss(x.sum() * m.w, "sum")), x, options=options)
    assert torch.equal(seen, last.reshape(-1))


@pytest.mark.parametrize(
    "group, kind, order",
    [
        (2, poptorch.CommGroupType.Consecutive, [0, 0, 1, 1]),
        (2, poptorch.CommGroupType.Orthogonal, [0, 1, 0, 1]),
        (4, poptorch.CommGroupType.Consecutive, [0, 0, 0, 0]),
        (1, poptorch.CommGroupType.Consecutive, [0, 1, 2, 3]),
    ],
)
def test_groups_of_replicas_share_their_inputs(group, kind, order):
    options = make_options(2, 1, 4).inputReplicaGrouping(group, kind)
    slices = 4 // group
    x = torch.arange(2 * slices, dtype=torch.float32)
    expected = [float(s * slices + index) for s in range(2) for index in order]
    assert infer(lambda m, x: x + 0, x, options=options).tolist() == expected


def test_every_tensor_of_a_nested_argument_is_split():
    def forward(m, pair, named):
        return pair[0] + 0, {"sum": pair[1][0] + named["b"]}

    a, b = torch.arange(4.0), torch.arange(8.0)
    out = infer(forward, (a, [b]), {"b": b}, options=make_options(2))
    assert torch.equal(out[0], a) and torch.equal(out[1]["sum"], 2 * b)


def test_a_batch_that_does_not_come_out_even_is_refused():
    model = poptorch.trainingModel(Body(lambda m, x: x, w=torch.nn.Parameter(torch.ones(()))), make_options(2, 3, 2))
    with pytest.raises(AssertionError) as error:
        model(torch.zeros(8, 3))
    assert str(error.value) == (
        "Invalid batch dimension: In the input torch.Size([8, 3]), the batch dimension (8) must be a multiple of "
        "Options.deviceIterations(2) * (Options.replicationFactor(2) / "
        "Options.inputReplicaGrouping.input_group_size(1)) * Options.Training.gradientAccumulation(3) = 12"
    )


@given(st.integers(1, 40), st.integers(1, 5), st.integers(1, 8))
def test_sizes_come_out_even_or_are_refused(size, width, multiplier):
    leaf = torch.zeros(size, width)
    if size % multiplier == 0:
        assert split_sizes([leaf], multiplier, "product") == [(size // multiplier, width)]
    else:
        with pytest.raises(AssertionError, match=f"batch dimension \\({size}\\) must be a multiple of product ="):
            split_sizes([leaf], multiplier, "product")


def test_a_scalar_counts_as_one():
    assert infer(lambda m, x: x * 2, torch.tensor(3.0)).item() == 6
    with pytest.raises(AssertionError, match="Invalid batch dimension"):
        infer(lambda m, x: x * 2, torch.tensor(3.0), options=make_options(2))


def test_accumulation_is_for_training_only():
    text = (
        r"You must set poptorch.Options\(\).Training.gradientAccumulation to 1 or leave it as its default value "
        r"\(1\) when running a poptorch.inferenceModel\(\).$"
    )
    with pytest.raises(poptorch.Error, match=text):
        poptorch.inferenceModel(Body(lambda m, x: x), make_options(accumulation=2))


def test_an_empty_tensor_is_refused():
    with pytest.raises(poptorch.Error, match="Zero-sized tensors are unsupported \\(Got shape \\[2, 0\\]\\)"):
        infer(lambda m, x: x + 1, torch.zeros(2, 0))
