"""GELU of a program as the kernel that takes the bias before it along: what is replaced, and what stays."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from programs import Body, make_options

import poptorch
from poptorch.device import native
from poptorch.device.gelu import bias_gelu
from poptorch.engine.as_one.number import VARIABLE

pytestmark = pytest.mark.skipif(not native.available(), reason="the kernels are not built (run `make`)")

GELU = torch.ops.aten.gelu.default
WIDTH, INNER, LENGTH = 16, 64, 160  # two samples have 20,480 elements between the products


forms = pytest.mark.parametrize("form", ["none", "tanh"])  # by erf, which is GELU itself, and by tanh


class MLP(torch.nn.Module):
    """(B, T, WIDTH) -> the same, and a loss: a feed-forward layer as in GPT-2."""

    def __init__(self, approximate: str = "none", bias: bool = True, recompute: bool = False):
        super().__init__()
        torch.manual_seed(0)
        self.up, self.down = torch.nn.Linear(WIDTH, INNER, bias), torch.nn.Linear(INNER, WIDTH)
        self.gelu, self.recompute = torch.nn.GELU(approximate), recompute

    def forward(self, x):
        x = self.down(self.gelu(self.up(x)))
        if self.recompute:
            x = poptorch.recomputationCheckpoint(x)
        return x, poptorch.identity_loss(x.sin().sum((1, 2)).mean(), "mean")


def data(samples: int = 2) -> torch.Tensor:
    return torch.randn(samples, LENGTH, WIDTH, generator=torch.Generator().manual_seed(1))


def executor_of(model, accumulation: int = 1) -> poptorch.PoplarExecutor:
    options = make_options(accumulation=accumulation, mode=poptorch.OutputMode.All)
    return poptorch.trainingModel(model, options, torch.optim.SGD(model.parameters(), lr=1.0))


def nodes(executor) -> list[torch.fx.Node]:
    return [node for stage in executor.program.stages for s in stage.segments for node in s.module.graph.nodes]


def fused(executor) -> list[tuple[bool, int]]:
    """Of each fused GELU, whether it has a bias, and how many operands the product before it has left."""
    found = [node for node in nodes(executor) if node.target is bias_gelu]
    return [(node.args[1] is not None, len(node.args[0].args)) for node in found]


def forms_of(executor) -> list[str]:
    return [node.args[2] for node in nodes(executor) if node.target is bias_gelu]


@forms
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("recompute", [False, True])
def test_a_step_is_that_of_float64(form, bias, recompute):
    model, wide = MLP(form, bias, recompute), MLP(form, bias).double()
    executor = executor_of(model)
    found, _ = executor(data())
    executor.copyWeightsToHost()
    assert [has for has, _ in fused(executor)] == [bias] and forms_of(executor) == [form]
    expected, loss = wide(data().double())
    loss.backward()
    torch.testing.assert_close(found.double(), expected.detach(), rtol=1e-5, atol=1e-6)
    for name, parameter in wide.named_parameters():
        gradient = parameter.detach() - model.get_parameter(name).detach().double()
        assert float((gradient - parameter.grad).norm() / parameter.grad.norm()) < 3e-6, name
    assert GELU not in [node.target for node in nodes(executor)]


@forms
@pytest.mark.parametrize("recompute", [False, True])
def test_micro_batches_as_one_have_it_too(form, recompute, monkeypatch):
    found = []
    for asked in ("1", "4"):
        monkeypatch.setenv(VARIABLE, asked)
        model = MLP(form, recompute=recompute)
        executor = executor_of(model, accumulation=4)
        out, _ = executor(data(8))
        assert executor._session.runner.as_one.number == int(asked) and fused(executor) == [(True, 2)]
        found.append((out, [parameter.detach().clone() for parameter in model.parameters()]))
    torch.testing.assert_close(*found, rtol=1e-5, atol=1e-5)


@forms
def test_inference_has_it_where_the_product_is_not_packed(form):
    model = MLP(form)
    executor = poptorch.inferenceModel(model)
    out, _ = executor(data())
    assert fused(executor) == [(True, 2)]
    torch.testing.assert_close(out, model(data())[0].detach(), rtol=1e-5, atol=1e-6)


@forms
def test_half_that_is_computed_in_float32_has_it(form):
    model = MLP(form).half()
    executor = executor_of(model)
    out, _ = executor(data().half())
    assert fused(executor) == [(True, 2)] and out.dtype == torch.float16


@forms
@pytest.mark.parametrize("word", ["bfloat16", "float16"])
def test_products_of_16_bits_have_one_without_a_bias(form, word, monkeypatch):
    """The bias belongs to the product, which rounds to 16 bits behind it. Of float16 there is no kernel."""
    monkeypatch.setenv("POPTORCH_PORTABLE_HALF", word)
    executor = executor_of(MLP(form).half())
    executor(data().half())
    assert [has for has, _ in fused(executor)] == [False] * (word == "bfloat16")
    assert any(node.target is GELU for node in nodes(executor)) == (word == "float16")


@forms
def test_without_the_kernels_there_is_none(form, monkeypatch):
    monkeypatch.setattr(native, "available", lambda: False)
    executor = executor_of(MLP(form))
    executor(data())
    assert fused(executor) == []


def both_forms(m, x):
    return F.gelu(F.linear(x, m.weight, m.bias)) - F.gelu(F.linear(x, m.weight, m.bias), approximate="tanh") * 0.5


def read_twice(m, x):
    product = F.linear(x, m.weight, m.bias)
    return F.gelu(product, approximate="tanh") + product


def changed_between(m, x):
    bias = m.bias * 1.0
    product = F.linear(x, m.weight, bias)
    bias.mul_(0.0)
    return F.gelu(product, approximate="tanh")


def of_a_sum(m, x):
    return F.gelu(x @ m.weight.t() + m.bias, approximate="tanh")


def of_few(m, x):
    return F.gelu(F.linear(x[:, :1], m.weight, m.bias), approximate="tanh")


@pytest.mark.parametrize(
    "forward, bias, kernels",
    [(both_forms, 2, 2), (read_twice, 0, 1), (changed_between, 0, 1), (of_a_sum, 0, 1), (of_few, 0, 0)],
)
def test_other_patterns_have_the_values_of_the_program(forward, bias, kernels):
    generator = torch.Generator().manual_seed(2)
    weights = {
        "weight": torch.randn(INNER, WIDTH, generator=generator),
        "bias": torch.randn(INNER, generator=generator),
    }

    def program(m, x):
        out = forward(m, x)
        return out, poptorch.identity_loss(out.sin().sum(), "sum")

    def body(dtype):
        return Body(program, **{name: torch.nn.Parameter(w.to(dtype, copy=True)) for name, w in weights.items()})

    executor, wide = executor_of(body(torch.float32)), body(torch.float64)
    out, _ = executor(data())
    executor.copyWeightsToHost()
    found = fused(executor)
    assert (sum(has for has, _ in found), len(found)) == (bias, kernels)
    expected, loss = wide(data().double())
    loss.backward()
    torch.testing.assert_close(out.double(), expected.detach(), rtol=1e-5, atol=1e-5)
    for name, parameter in wide.named_parameters():
        gradient = weights[name].double() - executor.model.get_parameter(name).detach().double()
        assert float((gradient - parameter.grad).norm() / parameter.grad.norm()) < 1e-5, name
