"""custom_op: kernels registered with torch, found by domain, name and version (spec section 11)."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from programs import Body, assert_trains_like, gradient_of, infer, make_options, parameter

import poptorch

RUNS = []


@torch.library.custom_op("com_example_test::ScaleTwice", mutates_args=())
def scale_twice(
    x: torch.Tensor, y: torch.Tensor, factor: float, shifts: list[int]
) -> tuple[torch.Tensor, torch.Tensor]:
    RUNS.append(1)
    return x * factor, y + sum(shifts)


@scale_twice.register_fake
def _(x, y, factor, shifts):
    return torch.empty_like(x), torch.empty_like(y)


def _backward(ctx, grad_x, grad_y):
    return 100 * grad_x, grad_y, None, None  # not the derivative, so that one sees whose it is


scale_twice.register_autograd(_backward)


@torch.library.custom_op("com_example_test::ScaleTwice_v2", mutates_args=())
def scale_twice_v2(x: torch.Tensor) -> torch.Tensor:
    return x * -1


scale_twice_v2.register_fake(torch.empty_like)


@torch.library.custom_op("com_example_test::NoShape", mutates_args=())
def no_shape(x: torch.Tensor) -> torch.Tensor:
    return x + 0


def call(x, y, factor=3.0, shifts=(1, 2), version=1, name="ScaleTwice", domain="com.example.test", examples=None):
    attributes = {"factor": factor, "shifts": list(shifts)} if version == 1 else None
    inputs = [x, y] if version == 1 else [x]
    return poptorch.custom_op(inputs, name, domain, version, inputs if examples is None else examples, attributes)


def test_forward_with_attributes():
    RUNS.clear()
    x, y = torch.arange(4.0), torch.arange(8.0)
    out = infer(lambda m, x, y: call(x, y), x, y, options=make_options(4))
    assert isinstance(out, list) and torch.equal(out[0], 3 * x) and torch.equal(out[1], y + 3)
    assert len(RUNS) == 4  # once a micro-batch


def test_gradients_come_from_the_kernel():
    def forward(m, x, y):
        left, right = call(x * m.w, m.w + 0)
        return F.mse_loss(left + right, y)

    def reference(m, x, y):
        h, w = x * m.w, m.w + 0
        left = 3 * h.detach() + 100 * (h - h.detach())
        return F.mse_loss(left + w + 3, y)

    assert_trains_like(forward, reference, torch.randn(4), torch.randn(4), w=parameter(4))


def test_versions_have_names_of_their_own():
    assert infer(lambda m, x: call(x, None, version=2), torch.ones(2))[0].tolist() == [-1, -1]


def test_in_a_plain_call_it_gives_zeros_like_the_examples():
    out = call(torch.ones(2), torch.ones(3), examples=[torch.ones(5), torch.ones(1, dtype=torch.int32)])
    assert [tensor.tolist() for tensor in out] == [[0.0] * 5, [0]] and out[1].dtype == torch.int32


def test_example_outputs_are_the_shapes_of_an_op_without_a_shape_function():
    def forward(m, x):
        return poptorch.custom_op([x], "NoShape", "com.example.test", 1, [x])[0] * 2

    assert infer(forward, torch.ones(4), options=make_options(2)).tolist() == [2.0] * 4


@pytest.mark.parametrize("call_it", [lambda x: torch.ops.com_example_test.NoShape(x), lambda x: no_shape(x)])
def test_an_op_without_a_shape_function_may_be_called_directly(call_it):
    RUNS.clear()
    out = infer(lambda m, x: call_it(x).sum() + call_it(x[:1]), torch.ones(4), options=make_options(2))
    assert out.tolist() == [3.0, 3.0]


def test_no_gradient_passes_through_an_op_that_has_none(capsys):
    library = torch.library.Library("com_example_test", "FRAGMENT")
    library.define("Twice(Tensor x) -> Tensor")
    library.impl("Twice", lambda x: x * 2, "CPU")
    torch.library.register_fake("com_example_test::Twice", torch.empty_like, lib=library)

    def forward(m, x):
        return poptorch.identity_loss(
            poptorch.custom_op([x * m.w], "Twice", "com.example.test", 1, [x])[0] + m.w * 3, "sum"
        )

    assert gradient_of(forward, torch.ones(2), w=torch.nn.Parameter(torch.ones(2)))["w"].tolist() == [3, 3]
    assert "com.example.test.Twice has no gradient" in capsys.readouterr().err


def test_the_operators_own_shapes_count():
    x = torch.tensor([1.0, 2.0])
    expected = infer(lambda m, x: call(x, 2 * x), x)
    found = infer(lambda m, x: [y * 1 for y in call(x, 2 * x, examples=[torch.ones(3), torch.ones(1, 5)])], x)
    assert [y.tolist() for y in found] == [y.tolist() for y in expected] and found[0].shape == (2,)
    # Without a shape function it is known when the program runs.
    bare = infer(lambda m, x: poptorch.custom_op([x], "NoShape", "com.example.test", 1, [torch.ones(3)])[0], x)
    assert bare.shape == (2,)


def test_what_is_refused_while_tracing():
    x = torch.ones(2)
    text = "No kernel for the custom op com.example.test.Missing version 1: no torch operator com_example_test::Missing"
    with pytest.raises(poptorch.Error, match=text):
        infer(lambda m, x: call(x, x, name="Missing"), x)
    with pytest.raises(poptorch.Error, match="returned torch.float32, but its example output is of torch.float16"):
        infer(lambda m, x: call(x, x, examples=[x.half(), x]), x)
    with pytest.raises(poptorch.Error, match="could not be traced: .*missing value for argument 'y'"):
        infer(lambda m, x: poptorch.custom_op([x], "ScaleTwice", "com.example.test", 1, [x]), x)
    with pytest.raises(poptorch.Error, match="has 2 outputs, but 1 example outputs were given"):
        infer(lambda m, x: call(x, x, examples=[x]), x)


@pytest.mark.parametrize(
    "attributes, error, text",
    [
        ({1: 2}, ValueError, "is not a string"),
        ({"ä": 2}, ValueError, "contains non-ASCII characters"),
        ({"a": "ä"}, ValueError, "Attribute a of custom_op contains non-ASCII characters"),
        ({"a": ["b", "ä"]}, ValueError, "contains non-ASCII characters"),
        ({"a": [1, 2.0]}, ValueError, "must be a float, an int"),
        ({"a": []}, ValueError, "must be a float, an int"),
        ({"a": None}, ValueError, "must be a float, an int"),
        ({"a": True}, ValueError, "must be a float, an int"),
        ({"a": 1e39}, poptorch.Error, "is too high for a Popart float attribute"),
        ({"a": [1.0, -1e39]}, poptorch.Error, "is too low for a Popart float attribute"),
    ],
)
def test_attributes_are_checked(attributes, error, text):
    with pytest.raises(error, match=text):
        poptorch.custom_op([torch.ones(1)], "Any", "any", 1, [torch.ones(1)], attributes)


@pytest.mark.parametrize("name", ["ScaleTwice_v2", "NoShape"])
def test_it_is_checked_like_every_operation(name):
    """Compiled kernels, with and without a shape function, outside of every block and with a tensor of the host's."""
    version = 2 if name.endswith("_v2") else 1
    elsewhere = torch.ones(2)

    def op(x):
        return poptorch.custom_op([x], name.removesuffix("_v2"), "com.example.test", version, [x])[0]

    def after_a_block(m, x):
        with poptorch.Block("a", ipu_id=0):
            x = x + 1
        return op(x)

    with pytest.raises(poptorch.Error, match="No active Block"):
        infer(after_a_block, torch.ones(2))
    with pytest.raises(poptorch.Error, match=r"Expected an IPU tensor but got tensor\(device=cpu\)"):
        infer(lambda m, x: x + op(elsewhere), torch.ones(2))


def test_it_keeps_its_place_between_blocks():
    def forward(m, x):
        poptorch.Block.start("a", ipu_id=0)
        x = x + 1
        poptorch.Block.start("b", ipu_id=1)
        return call(x, x)[0]

    executor = poptorch.inferenceModel(Body(forward), make_options(2))
    assert executor(torch.zeros(2)).tolist() == [3, 3]
    assert [stage.blocks for stage in executor.program.stages] == [("a",), ("b",)]


# -- kernels in Python


def test_a_kernel_in_python_with_attributes_of_every_type():
    seen = {}

    @poptorch.ops.register_custom_op("Mix", "com.example.python", 3)
    def mix(x, y, **attributes):
        seen.update(attributes)
        return x * attributes["factor"] + y, x - y

    attributes = dict(factor=2.0, count=3, word="a", factors=[1.0, 2.0], counts=(1, 2), words=["b", "c"])

    def forward(m, x, y):
        return poptorch.custom_op([x, y], "Mix", "com.example.python", 3, [x, y], attributes)

    out = infer(forward, torch.ones(1), torch.ones(1) * 5)
    assert [t.item() for t in out] == [7, -4] and seen == attributes
    with pytest.raises(poptorch.Error, match="No kernel"):
        infer(lambda m, x: poptorch.custom_op([x], "Mix", "com.example.python", 2, [x])[0], torch.ones(1))


def test_a_kernel_in_python_says_how_it_is_differentiated():
    class Cube(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            return x**3

        @staticmethod
        def backward(ctx, gradient):
            return gradient * 100

    poptorch.ops.register_custom_op("Cube", "com.example.python")(Cube.apply)

    def forward(m, x):
        return poptorch.identity_loss(poptorch.custom_op([x * m.w], "Cube", "com.example.python", 1, [x])[0], "sum")

    assert gradient_of(forward, torch.ones(1), w=torch.nn.Parameter(torch.full((1,), 2.0)))["w"].item() == 100
