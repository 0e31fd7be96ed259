"""Scopes and hints, which change no number but check what they are given (section 11)."""

from __future__ import annotations

import pytest
import torch
from programs import infer

import poptorch


def test_scopes_change_nothing():
    outline = poptorch.Attribute(__outline={"layer": "a"})

    def forward(m, x):
        with poptorch.NameScope("one"), outline, poptorch.MultiConv().planType(poptorch.MultiConvPlanType.Serial):
            x = torch.nn.functional.conv1d(x, x)
        with outline:
            return x * 2

    assert infer(forward, torch.full((1, 1, 1), 3.0)).item() == 18
    assert poptorch.attributes_lists == []


def test_nested_multi_conv():
    def forward(m, x):
        with poptorch.MultiConv(), poptorch.MultiConv():
            return x + 1

    with pytest.raises(poptorch.Error, match="Nested poptorch.MultiConv is not supported"):
        infer(forward, torch.ones(1))
    infer(lambda m, x: x + 1, torch.ones(1))  # and it is over


@pytest.mark.parametrize("layer", [torch.nn.Linear(2, 2), torch.nn.Conv2d(1, 2, 1), torch.nn.ConvTranspose1d(1, 2, 1)])
def test_multi_conv_without_a_convolution(layer):
    x = torch.ones(1, 1, 2, 2) if isinstance(layer, torch.nn.Conv2d) else torch.ones(1, 1, 2)

    def forward(m, x):
        y = layer(x)
        with poptorch.MultiConv():
            y = m.layer(x)
        return y

    if not isinstance(layer, torch.nn.Linear):
        assert torch.equal(infer(forward, x, layer=layer), layer(x).detach())
        return
    with pytest.raises(poptorch.Error, match="no convolution inside poptorch.MultiConv"):
        infer(forward, x, layer=layer)
    infer(lambda m, x: x + 1, torch.ones(1))  # and it is over


def test_an_error_inside_a_multi_conv_is_that_error():
    def forward(m, x):
        with poptorch.MultiConv():
            raise ValueError("mine")

    with pytest.raises(ValueError, match="mine"):
        infer(forward, torch.ones(1))


def test_multi_conv_that_ends_without_a_start():
    def forward(m, x):
        poptorch.MultiConv().__exit__(None, None, None)
        return x + 1

    with pytest.raises(poptorch.Error, match="never started"):
        infer(forward, torch.ones(1))


@pytest.mark.parametrize(
    "setter, good, bad",
    [
        ("availableMemoryProportions", (0.1, 0.2), ["a"]),
        ("availableMemoryProportions", 0.1, 1.5),
        ("planType", poptorch.MultiConvPlanType.Parallel, 0),
        ("perConvReservedTiles", 50, 50.0),
        ("cycleBackOff", 0.1, 1),
        ("enableConvDithering", True, 1),
    ],
)
def test_multi_conv_setters(setter, good, bad):
    multi_conv = poptorch.MultiConv()
    assert getattr(multi_conv, setter)(good) is multi_conv
    with pytest.raises(AssertionError):
        getattr(multi_conv, setter)(bad)


@pytest.mark.parametrize("dtype", [torch.int32, "half", [torch.float16, "half"], None])
def test_multi_conv_partials_of_another_type(dtype):
    multi_conv = poptorch.MultiConv()
    assert multi_conv.partialsTypes([torch.float16, torch.float32]) is multi_conv
    with pytest.raises(ValueError, match="partialsTypes must be torch.float16 or torch.float32, got"):
        multi_conv.partialsTypes(dtype)


def with_io_tiles():
    options = poptorch.Options()
    options.TensorLocations.numIOTiles(32)
    return options


MODE = poptorch.OverlapMode.OverlapAccumulationLoop


def test_overlap_keeps_the_structure():
    def forward(m, x, y):
        inputs = poptorch.set_overlap_for_input({"a": x, "b": (y,)}, MODE)
        return poptorch.set_overlap_for_output([inputs["a"] + inputs["b"][0]], MODE)

    (out,) = infer(forward, torch.ones(1), torch.ones(1), options=with_io_tiles())
    assert out.item() == 2
    x = torch.ones(1)
    assert poptorch.set_overlap_for_input(x, MODE) is x


def test_overlap_is_checked():
    x = torch.ones(1)
    with pytest.raises(ValueError, match="OverlapMode"):
        poptorch.set_overlap_for_input(x, "overlap")
    with pytest.raises(ValueError, match="expects a tensor"):
        poptorch.set_overlap_for_output(["a"], MODE)
    with pytest.raises(poptorch.Error, match="numIOTiles"):
        infer(lambda m, x: poptorch.set_overlap_for_input(x, MODE) + 1, x)
    with pytest.raises(poptorch.Error, match="not a host input"):
        infer(lambda m, x: poptorch.set_overlap_for_input(x + 1, MODE) + 1, x, options=with_io_tiles())
    with pytest.raises(poptorch.Error, match="already set"):
        infer(lambda m, x: poptorch.set_overlap_for_input([x, x], MODE)[0] + 1, x, options=with_io_tiles())


def test_the_output_that_is_overlapped_must_be_one():
    def forward(m, x):
        return poptorch.set_overlap_for_output(x + 1, MODE) * 2

    with pytest.raises(poptorch.Error, match="set_overlap_for_output applied on a node which is not a host output"):
        infer(forward, torch.ones(1), options=with_io_tiles())
    with pytest.raises(poptorch.Error, match="No IO tiles"):
        infer(forward, torch.ones(1))


def test_nop_and_available_memory():
    assert infer(lambda m, x: poptorch.set_available_memory(poptorch.nop(x) + 1, 0.3), torch.ones(1)).item() == 2
    with pytest.raises(AssertionError):
        poptorch.nop([1])
