"""Modes and settings of torch that a call is made in: a program computes what it computes without them."""

from __future__ import annotations

import ast
import contextlib
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

import poptorch
from poptorch import notices


class Model(torch.nn.Module):
    """Products, dropout, and the projection and loss that run as one operation."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.inner, self.dropout, self.head = torch.nn.Linear(64, 64), torch.nn.Dropout(0.1), torch.nn.Linear(64, 48)

    def forward(self, x, target):
        logits = self.head(self.dropout(torch.nn.functional.gelu(self.inner(x))))
        return logits, poptorch.identity_loss(torch.nn.functional.cross_entropy(logits.float(), target), "none")


@contextlib.contextmanager
def default_type(dtype: torch.dtype) -> Iterator[None]:
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


SURROUNDINGS = {
    "autocast": lambda: torch.autocast("cpu", dtype=torch.bfloat16),
    "no_grad": torch.no_grad,
    "inference_mode": torch.inference_mode,
    "default device": lambda: torch.device("meta"),
    "default float64": lambda: default_type(torch.float64),
    "default bfloat16": lambda: default_type(torch.bfloat16),
}


def trained(surroundings: contextlib.AbstractContextManager, half: bool) -> list[torch.Tensor]:
    """Outputs and losses of three calls, and the weights after them."""
    model = Model().half() if half else Model()
    settings = dict(lr=0.1, accum_type=torch.float16, loss_scaling=8.0) if half else dict(lr=0.1)
    optimizer = poptorch.optim.AdamW(model.parameters(), **settings)
    options = poptorch.Options()
    options.randomSeed(3)
    options.Training.gradientAccumulation(2)
    executor = poptorch.trainingModel(model, options=options, optimizer=optimizer)
    x, target = torch.linspace(-1, 1, 8 * 64).view(8, 64).to(torch.half if half else torch.float), torch.arange(8)
    with surroundings:
        found = [tensor for _ in range(3) for tensor in executor(x, target)]
    return found + [parameter.detach() for parameter in model.parameters()]


@pytest.mark.parametrize("half", [False, True], ids=["float32", "half"])
@pytest.mark.parametrize("name", SURROUNDINGS)
def test_a_call_does_not_depend_on_them(name, half):
    """In torch alone autocast would compute every step with the weights of the first; default types reached kernels."""
    found, expected = trained(SURROUNDINGS[name](), half), trained(contextlib.nullcontext(), half)
    for ours, theirs in zip(found, expected, strict=True):
        assert (ours.dtype, ours.device) == (theirs.dtype, theirs.device) and torch.equal(ours, theirs)


def test_they_are_as_before_afterwards_and_autocast_is_told(capsys):
    notices._said.clear()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        trained(contextlib.nullcontext(), half=False)
        assert torch.is_autocast_enabled("cpu")
    assert capsys.readouterr().err.count("torch.autocast has no effect") == 1
    with torch.device("meta"):
        poptorch.inferenceModel(torch.nn.ReLU())(torch.ones(2, device="cpu"))
        assert torch.ones(2).is_meta


def test_what_the_runtime_makes_does_not_have_the_users_default_type():
    """In all of it, for not every path runs above."""
    makers = {"empty", "zeros", "ones", "full", "rand", "randn", "linspace", "eye"}
    found, calls = [], 0
    for path in Path(poptorch.__file__).parent.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and ast.unparse(node.func) in {f"torch.{maker}" for maker in makers}:
                calls += 1
                if not any(keyword.arg in ("dtype", None) for keyword in node.keywords):
                    found.append(f"{path.name}:{node.lineno}")
    assert calls > 20 and not found
