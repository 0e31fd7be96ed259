"""Training programs of float32 whose large products are the kernels': which are replaced, and what is computed."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from programs import Body, assert_trains_like, make_options, parameter

import poptorch
from poptorch.device import float32_products
from poptorch.device.linear_cross_entropy import linear_cross_entropy
from poptorch.engine.as_one.number import VARIABLE
from poptorch.engine.numerics import RECORD

pytestmark = pytest.mark.skipif(not float32_products.available(), reason="this CPU has no AVX-512, or no kernels")

FUNCTIONS = (float32_products.linear, float32_products.matmul)
K, N, ROWS = 24, 52, 14


@pytest.fixture(autouse=True)
def kernels(monkeypatch):
    """The machine chooses the kernels, and small products are large."""
    monkeypatch.setattr(float32_products, "choice", lambda: float32_products.KERNELS)
    monkeypatch.setattr(float32_products, "_FEWEST", 1)


def nodes(executor) -> list[torch.fx.Node]:
    return [node for stage in executor.program.stages for s in stage.segments for node in s.module.graph.nodes]


def taken(executor) -> int:
    return sum(node.target in FUNCTIONS for node in nodes(executor))


def sample(rows: int = ROWS) -> torch.Tensor:
    return torch.randn(2, rows // 2, K, generator=torch.Generator().manual_seed(0))


def executor_of(model, accumulation: int = 1, lr: float = 1.0, momentum: float = 0.0) -> poptorch.PoplarExecutor:
    options = make_options(accumulation=accumulation, mode=poptorch.OutputMode.All)
    optimizer = torch.optim.SGD(model.parameters(), lr=lr, momentum=momentum)
    return poptorch.trainingModel(model, options, optimizer)


CASES = {
    "linear": lambda m, x: F.linear(x, m.w, m.b),
    "no bias": lambda m, x: F.linear(x, m.w),
    "two rows": lambda m, x: F.linear(x[:, 0], m.w, m.b),
    "addmm": lambda m, x: torch.addmm(m.b, x.view(-1, K), m.w.t()),
    "mm": lambda m, x: x.view(-1, K) @ m.w.t(),
    "matmul": lambda m, x: x @ m.w.t(),
    "a weight that is computed": lambda m, x: F.linear(x, m.w * 2.0, m.b),
    "gelu": lambda m, x: F.gelu(F.linear(x, m.w, m.b)),
}
LEFT = {
    "scaled addmm": lambda m, x: torch.addmm(m.b, x.view(-1, K), m.w.t(), alpha=2.0),
    "a bias of two dimensions": lambda m, x: torch.addmm(F.linear(x.view(-1, K), m.w[:1]), x.view(-1, K), m.w.t()),
    "batches": lambda m, x: x @ x.transpose(1, 2),
    "a vector": lambda m, x: x @ m.w[0],
}


def loss_of(case):
    return lambda m, x: case(m, x).sin().mean() + 0.0 * (m.w.sum() + m.b.sum())


def through(case):
    return lambda m, x: poptorch.identity_loss(loss_of(case)(m, x), "none")


@pytest.mark.parametrize("case", CASES)
def test_products_and_gradients_are_those_of_float64(case):
    weights = {"w": parameter(N, K), "b": parameter(N, seed=1)}
    assert_trains_like(through(CASES[case]), loss_of(CASES[case]), sample(), **weights)
    executor = executor_of(Body(through(CASES[case]), **weights))
    executor(sample())
    assert taken(executor) == 1


@pytest.mark.parametrize("case", LEFT)
def test_other_products_stay(case):
    weights = {"w": parameter(N, K), "b": parameter(N, seed=1)}
    assert_trains_like(through(LEFT[case]), loss_of(LEFT[case]), sample(), **weights)
    executor = executor_of(Body(through(LEFT[case]), **weights))
    executor(sample())
    assert taken(executor) == (case == "a bias of two dimensions")  # the product inside


def test_small_products_and_forward_only_programs_stay(monkeypatch):
    model = Body(through(CASES["linear"]), w=parameter(N, K), b=parameter(N))
    inference = poptorch.inferenceModel(model)
    inference(sample())
    assert taken(inference) == 0
    monkeypatch.setattr(float32_products, "_FEWEST", ROWS * K * N + 1)
    monkeypatch.setattr(float32_products, "choice", lambda: pytest.fail("asked"))
    executor = executor_of(model)
    executor(sample())
    assert taken(executor) == 0


class Network(torch.nn.Module):
    """Two layers, GELU between them, and a head with its cross-entropy."""

    def __init__(self, recompute: bool = False):
        super().__init__()
        torch.manual_seed(0)
        self.up, self.down = torch.nn.Linear(K, 4 * K), torch.nn.Linear(4 * K, K)
        self.head, self.recompute = torch.nn.Linear(K, 2048, bias=False), recompute

    def forward(self, x, target):
        x = x + self.down(F.gelu(self.up(F.layer_norm(x, (K,)))))
        if self.recompute:
            x = poptorch.recomputationCheckpoint(x)
        return poptorch.identity_loss(F.cross_entropy(self.head(x).view(-1, 2048), target.view(-1)), "mean")


def curve(network, accumulation: int = 1, dtype: torch.dtype | None = None) -> torch.Tensor:
    """The losses of each micro-batch of six steps, of a program, or of plain torch in `dtype`."""
    generator = torch.Generator().manual_seed(1)
    x, target = torch.randn(8, 9, K, generator=generator), torch.randint(2048, (8, 9), generator=generator)
    losses = []
    if dtype is None:
        executor = executor_of(network, accumulation, 0.5, 0.9)
        losses = [executor(x, target).detach().reshape(-1) for _ in range(6)]
        assert taken(executor) == 2
        assert [n.kwargs["products"] for n in nodes(executor) if n.target is linear_cross_entropy] == [torch.float32]
        return torch.stack(losses)
    optimizer = torch.optim.SGD(network.to(dtype).parameters(), lr=0.5, momentum=0.9)
    for _ in range(6):
        batches = zip(x.to(dtype).chunk(accumulation), target.chunk(accumulation), strict=True)
        parts = [network(*batch) for batch in batches]
        optimizer.zero_grad()
        torch.stack(parts).mean().backward()
        optimizer.step()
        losses.append(torch.stack(parts).detach())
    return torch.stack(losses)


@pytest.mark.parametrize(("accumulation", "as_one"), [(1, ""), (4, "1"), (4, "4")])
@pytest.mark.parametrize("recompute", [False, True])
def test_a_loss_curve_is_that_of_float64(accumulation, as_one, recompute, monkeypatch):
    monkeypatch.setenv(VARIABLE, as_one)
    found = curve(Network(recompute), accumulation)
    monkeypatch.setattr(poptorch, "identity_loss", lambda loss, reduction: loss)
    monkeypatch.setattr(poptorch, "recomputationCheckpoint", lambda x: x)
    expected = curve(Network(), accumulation, torch.float64)
    torch.testing.assert_close(found.double(), expected, rtol=3e-6, atol=3e-6)
    assert float(expected[-1].mean()) < float(expected[0].mean()) - 0.5


@pytest.mark.parametrize("choice", [float32_products.KERNELS, float32_products.TORCH])
def test_a_run_keeps_its_choice(choice, monkeypatch):
    monkeypatch.setattr(float32_products, "choice", lambda: choice)
    other = {"kernels": "torch", "torch": "kernels"}[choice]
    model = Body(through(CASES["linear"]), w=parameter(N, K), b=parameter(N))
    optimizer = poptorch.optim.SGD(model.parameters(), lr=0.1)
    executor = poptorch.trainingModel(model, None, optimizer)
    executor(sample())
    assert taken(executor) == (choice == "kernels")
    state = optimizer.state_dict()
    assert state[RECORD]["products of float32"] == choice
    executor.destroy()
    monkeypatch.setattr(float32_products, "choice", lambda: other)
    resumed = poptorch.optim.SGD(model.parameters(), lr=0.1)
    resumed.load_state_dict(state)
    executor = poptorch.trainingModel(model, None, resumed)
    executor(sample())
    assert taken(executor) == (choice == "kernels")


def test_products_of_half_in_float32_are_taken_too():
    """POPTORCH_PORTABLE_HALF=float32, which all tests have."""
    model = Body(through(CASES["linear"]), w=parameter(N, K), b=parameter(N)).half()
    executor = executor_of(model)
    executor(sample().half())
    assert taken(executor) == 1
