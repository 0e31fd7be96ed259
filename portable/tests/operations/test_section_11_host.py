"""Operations that reach the host while a program runs: callbacks and printing (section 11)."""

from __future__ import annotations

import pytest
import torch
from programs import Body, gradient_of, infer, make_options, train

import poptorch

# -- CPU


def test_a_host_callback_runs_once_for_each_micro_batch():
    calls = []

    def host(x):
        calls.append(x.tolist())
        return {"twice": torch.tensor((x.numpy() * 2).tolist()), "name": "host"}

    executor = poptorch.inferenceModel(
        Body(lambda m, x: poptorch.CPU(host, "double")(x + 1)["twice"] * 10), make_options(2)
    )
    assert executor(torch.tensor([1.0, 2.0])).tolist() == [40, 60]
    assert calls[1:] == [[2.0], [3.0]]  # the first one, at compilation, found the shapes
    assert executor(torch.tensor([5.0, 6.0])).tolist() == [120, 140]


def test_no_gradient_passes_through_a_host_callback():
    def forward(m, x):
        return poptorch.identity_loss(poptorch.CPU(lambda y: y * 3, "triple")(x * m.w) + m.w, "sum")

    assert gradient_of(forward, torch.ones(1), w=torch.nn.Parameter(torch.ones(1)))["w"].item() == 1


def test_a_host_callback_is_a_plain_call_outside():
    assert poptorch.CPU(lambda a, b: a - b, "minus")(torch.tensor(3), b=torch.tensor(1)).item() == 2


def test_execute_calls_a_host_callback_once_more():
    calls = []
    host = poptorch.CPU(lambda y: calls.append(y.item()) or y * 2, "double")
    infer(lambda m, x: host(x) + 1, torch.tensor([4.0]))
    host.execute()
    assert calls[1:] == [4.0, 4.0] and host.outputs[0].item() == 8.0
    host.registerPersistentData()


def test_a_module_can_be_a_host_callback():
    layer = torch.nn.Linear(2, 3)
    model = Body(lambda m, x: m.host[0](x))
    model.host = [poptorch.CPU(layer, "linear")]
    x = torch.randn(4, 2)
    torch.testing.assert_close(poptorch.inferenceModel(model)(x), layer(x).detach())


# -- ipu_print_tensor


def test_printing_shows_values_and_gradients(capsys):
    def forward(m, x):
        return poptorch.identity_loss(poptorch.ipu_print_tensor(x * m.w, "product") * 2, "sum")

    train(forward, torch.tensor([1.0, 2.5]), options=None)
    lines = capsys.readouterr().err.splitlines()
    assert lines == ["product: (1.000, 2.500)", "product_gradient: (2.000, 2.000)"]


def test_printing_without_the_gradient_and_nothing_at_compilation(capsys):
    def forward(m, x):
        return poptorch.identity_loss(poptorch.ipu_print_tensor(x * m.w, "p", False), "sum")

    model = Body(forward, w=torch.nn.Parameter(torch.ones(1)))
    executor = poptorch.trainingModel(model)
    executor.compile(torch.ones(1))
    assert capsys.readouterr().err == ""
    executor(torch.ones(1))
    assert capsys.readouterr().err == "p: (1.000)\n"


def test_what_is_printed_must_be_used(capsys):
    def forward(m, x):
        poptorch.ipu_print_tensor(x, "unused")
        poptorch.CPU(lambda y: print("called") or y, "unused")(x)
        return poptorch.ipu_print_tensor(x, "used") + 1

    executor = poptorch.inferenceModel(Body(forward))
    executor.compile(torch.ones(1))
    capsys.readouterr()
    executor(torch.ones(1))
    assert capsys.readouterr() == ("", "used: (1.000)\n")


def test_printing_outside_an_executor_is_the_identity(capsys):
    x = torch.ones(1)
    assert poptorch.ipu_print_tensor(x) is x and capsys.readouterr().err == ""


FIRST, SECOND = [1.4962566, 1.7682219], [1.0884774, 1.1320305]
CURLY = dict(separator=" ", open_bracket="{", close_bracket="}")


@pytest.mark.parametrize(
    "tensor, arguments, text",
    [
        (torch.tensor([[1, 22], [3, 4]]), {}, "(\n ( 1, 22)\n ( 3,  4)\n)"),
        (torch.tensor([[[1], [2]], [[3], [4]]]), {}, "(\n (\n  (1)\n  (2)\n )\n (\n  (3)\n  (4)\n )\n)"),
        (torch.tensor(2.0), {}, "2.000"),
        (torch.tensor([FIRST[:1]]), dict(digits=8, **CURLY), "{\n {1.4962566}\n}"),
        (
            torch.tensor([FIRST, SECOND]),
            dict(digits=8, **CURLY),
            "{\n {1.4962566 1.7682219}\n {1.0884774 1.1320305}\n}",
        ),
        (
            torch.tensor([FIRST]),
            dict(digits=8, float_format="scientific", separator=",", max_line_width=15),
            "(\n (1.4962566e+00,\n   1.7682219e+00)\n)",
        ),
        (torch.tensor([100.25, -0.5]), dict(float_format="fixed"), "(100.2,  -0.5)"),
        (torch.arange(12).view(6, 2), dict(summarise_threshold=4, edge_items=1), "(\n ( 0,  1)\n ...\n (10, 11)\n)"),
        (torch.arange(10), dict(summarise_threshold=4, edge_items=2), "(0, 1, ..., 8, 9)"),
        (torch.tensor([1e-9, 1.0]), dict(digits=2), "(1.0e-09, 1.0e+00)"),
        (torch.tensor([1.5]), dict(float_format="none", open_bracket="[", close_bracket="]"), "[1.5]"),
        (torch.arange(6), dict(max_line_width=6, separator="; "), "(0; 1;\n  2; 3;\n  4; 5)"),
    ],
)
def test_print_format(tensor, arguments, text, capsys):
    infer(lambda m, x: poptorch.ipu_print_tensor(x, "t", **arguments) + 0, tensor)
    assert capsys.readouterr().err == f"t: {text}\n"


@pytest.mark.parametrize("arguments", [dict(float_format="hex"), dict(digits=-1), dict(title=3)])
def test_print_arguments_are_checked(arguments):
    with pytest.raises(ValueError, match="ipu_print_tensor"):
        poptorch.ipu_print_tensor(torch.ones(1), **arguments)
