"""What a call returns: output modes, shapes, structures and types (spec section 3)."""

from __future__ import annotations

import collections
import copy
import io
import weakref

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from programs import Body, infer, make_options, train

import poptorch
from poptorch.engine.running.outputs import OutputCollector
from poptorch.structure import Structure

S, A, R = 4, 2, 2
X = torch.arange(float(S * A * R * 3)).view(-1, 3)  # micro-batches of one row
ROWS = X.view(S, A, R, 3)
Mode = poptorch.OutputMode


def run(mode: Mode | None, period: int | None = None):
    options = make_options(S, A, R, mode, period)
    return train(lambda m, x: (x + 0, poptorch.identity_loss(x.sum() * m.w, "sum")), X, options=options)


@pytest.mark.parametrize(
    "mode, period, rows",
    [
        (None, None, ROWS[-1, -1]),  # Default is Final in training
        (Mode.Final, None, ROWS[-1, -1]),
        (Mode.All, None, ROWS),
        (Mode.Sum, None, ROWS.sum((0, 1))),
        (Mode.EveryN, 2, ROWS[1::2]),
        (Mode.EveryN, 4, ROWS[3::4]),
        (Mode.EveryN, 1, ROWS),
    ],
)
def test_modes_in_training(mode, period, rows):
    vector, loss = run(mode, period)
    assert torch.equal(vector, rows.reshape(-1, 3))
    assert loss.shape == (rows.numel() // 3,)  # a scalar for each micro-batch returned
    assert not vector.requires_grad and not loss.requires_grad


def test_default_is_all_in_inference():
    total, rows = infer(lambda m, x: (x.sum(), x * 2), X, options=make_options(4, 1, 2))
    assert torch.equal(rows, X * 2) and torch.equal(total, X.view(8, -1).sum(1))


def test_a_single_scalar_stays_a_scalar_and_is_not_averaged():
    x = torch.arange(6.0)
    loss = train(lambda m, x: poptorch.identity_loss(x.sum() * m.w, "sum"), x, options=make_options(2, 3, 1, Mode.Sum))
    final = train(lambda m, x: poptorch.identity_loss(x.sum() * m.w, "sum"), x, options=make_options(2, 3, 1))
    assert loss.shape == final.shape == ()
    # SGD with lr 0 in `train`: w stays 1
    assert loss.item() == 15 and final.item() == 5


def test_every_n_must_divide_the_iterations_and_is_not_for_pipelines():
    with pytest.raises(poptorch.Error, match="deviceIterations \\(4\\) must be a multiple"):
        run(Mode.EveryN, 3)
    with pytest.raises(AssertionError):
        poptorch.Options().outputMode(Mode.EveryN)

    def two_stages(m, x):
        with poptorch.Block("a", ipu_id=0):
            x = x + 1
        poptorch.Block.start("b", ipu_id=1)
        return x * 2

    with pytest.raises(poptorch.Error, match="EveryN is not supported with poptorch.PipelinedExecution"):
        infer(two_stages, X, options=make_options(4, mode=Mode.EveryN, period=2))


@pytest.mark.parametrize("mode, kept", [(Mode.Final, 2), (Mode.Sum, 2), (Mode.EveryN, 12), (Mode.All, 24)])
def test_only_what_is_returned_is_held(mode, kept):
    collector = OutputCollector(mode, 2, [torch.float32], 4, 3, 2)
    gone = []
    for index in range(4 * 3 * 2):
        output = torch.full((5,), float(index))
        gone.append(weakref.ref(output))
        collector.add(index // 6, index // 2 % 3, index % 2, [output])
    del output
    assert all(reference() is None for reference in gone)
    assert collector.result()[0].shape == (5 * kept,)


Pair = collections.namedtuple("Pair", ["left", "right"])


def test_structure_comes_back_as_it_was_with_none_and_constants():
    def forward(m, x):
        return {"a": [x + 1, None], "b": Pair(x + 2, ("text", 3)), "c": (x + 3,)}

    x = torch.arange(4.0)
    out = infer(forward, x, options=make_options(2))
    assert list(out) == ["a", "b", "c"]
    assert torch.equal(out["a"][0], x + 1) and out["a"][1] is None
    assert isinstance(out["b"], Pair) and torch.equal(out["b"].left, x + 2) and out["b"].right == ("text", 3)
    assert isinstance(out["c"], tuple) and torch.equal(out["c"][0], x + 3)


LEAVES = st.one_of(st.none(), st.booleans(), st.text(max_size=2), st.integers(0, 5).map(lambda n: torch.full((2,), n)))
NESTED = st.recursive(
    LEAVES,
    lambda inner: st.one_of(
        st.lists(inner, max_size=3),
        st.lists(inner, max_size=3).map(tuple),
        st.dictionaries(st.text(max_size=2), inner, max_size=3),
        st.tuples(inner, inner).map(lambda both: Pair(*both)),
    ),
    max_leaves=8,
)


@given(NESTED)
def test_any_structure_is_taken_apart_and_put_together(value):
    leaves, structure = Structure.of(value)
    assert all(isinstance(leaf, torch.Tensor) for leaf in leaves)
    doubled = structure.fill([leaf * 2 for leaf in leaves])
    assert torch.utils._pytree.tree_structure(doubled) == torch.utils._pytree.tree_structure(value)
    for before, after in zip(*map(torch.utils._pytree.tree_leaves, (value, doubled)), strict=True):
        assert torch.equal(after, before * 2) if isinstance(before, torch.Tensor) else after == before


def test_a_registered_class_is_taken_apart_and_put_together():
    class Box:
        def __init__(self, tensor, label):
            self.tensor, self.label = tensor, label

    class BoxParser(poptorch.ICustomArgParser):
        def yieldTensors(self, struct):
            yield struct.tensor

        def reconstruct(self, original_structure, tensor_iterator):
            return Box(next(tensor_iterator), original_structure.label)

    poptorch.registerCustomArgParser(Box, BoxParser())
    x = torch.arange(4.0)
    executor = poptorch.inferenceModel(Body(lambda m, box: Box(box.tensor * 2, box.label + "!")), make_options(2))
    for _ in range(2):
        out = executor(Box(x, "hi"))
        assert torch.equal(out.tensor, x * 2) and out.label == "hi!"


def test_types_have_at_most_32_bits():
    def forward(m, x):
        return x.double(), x.long(), x > 1, x.half(), x.to(torch.int16), x.argmax()

    out = infer(forward, torch.arange(3, dtype=torch.float64))
    expected = [torch.float32, torch.int32, torch.bool, torch.float16, torch.int16, torch.int32]
    assert [tensor.dtype for tensor in out] == expected
    assert infer(lambda m, x: x + 1, torch.arange(3)).dtype == torch.int32


def test_half_sums_are_formed_in_half():
    x = torch.full((8, 1), 20000.0)

    def forward(m, x):
        return x.half(), x.half() / 10000 + 2048, poptorch.identity_loss(x.sum() * m.w, "sum")

    total, rounded, _ = train(forward, x, options=make_options(1, 8, 1, Mode.Sum))
    assert total.dtype == torch.float16 and torch.isinf(total).all()  # 160,000 does not fit
    step = torch.tensor(2050.0).half()
    expected = step.clone()
    for _ in range(7):
        expected = expected + step
    assert torch.equal(rounded, expected.reshape(1, 1))


def test_an_output_that_is_an_input_or_a_buffer_is_a_copy():
    x = torch.arange(4.0)

    def forward(m, x):
        m.seen.add_(1)
        return x, m.seen

    x_out, seen = infer(forward, x, options=make_options(2), seen=torch.zeros(2))
    assert seen.tolist() == [1, 1, 2, 2]
    x_out.zero_()
    assert x.tolist() == [0, 1, 2, 3]


def test_a_host_tensor_is_returned_unbatched_with_a_warning(capsys):
    constant = torch.tensor([5.0, 6.0])
    out = infer(lambda m, x: (x + 1, constant), torch.arange(4.0), options=make_options(2))
    assert out[1].tolist() == [5, 6]
    assert "Output expected to be on the IPU but is on cpu" in capsys.readouterr().err


def test_backward_on_an_output_is_refused():
    out = infer(lambda m, x: x.sum(), torch.arange(4.0))
    assert copy.deepcopy(out).item() == 6
    file = io.BytesIO()
    torch.save(out, file)
    file.seek(0)
    assert torch.load(file, weights_only=True).item() == 6
    with pytest.raises(poptorch.Error, match="backward\\(\\) cannot be called explicitly on outputs of a PopTorch"):
        out.backward()


@pytest.mark.parametrize("dtype", [torch.float32, torch.int32, torch.float64, torch.float16])
def test_changes_of_an_input_in_place_reach_the_caller(dtype):
    x = torch.arange(6).to(dtype)
    given = x.clone()

    def forward(m, x):
        x.add_(1)
        return x * 2

    out = infer(forward, x, options=make_options(3))
    assert torch.equal(x, given + 1)
    assert torch.equal(out.to(dtype), (given + 1) * 2)


def test_a_changed_input_that_is_not_contiguous_is_copied():
    base = torch.arange(12.0).view(4, 3)
    given = base.clone()

    def forward(m, x):
        x.mul_(2)
        return x + 0

    out = infer(forward, base[:, :2], options=make_options(2))
    assert torch.equal(out, given[:, :2] * 2) and torch.equal(base, given)


def test_an_input_changed_by_a_parameter_trains_over_several_micro_batches():
    def forward(m, x):
        x.add_(m.w)
        return poptorch.identity_loss(x, "sum")

    x = torch.arange(6.0)
    train(forward, x, options=make_options(1, 3))
    assert x.tolist() == [1, 2, 3, 4, 5, 6]
