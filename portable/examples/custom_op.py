"""A perceptron whose activation is a C++ operator of its own, compiled here: scaled_swish.cpp.

Shows: poptorch.custom_op with an attribute, in training. Needs a C++ compiler.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import torch
import torch.nn.functional as F

import poptorch

SOURCE = Path(__file__).with_name("scaled_swish.cpp")
STEPS, SAMPLES, BETA = 20, 16, 1.5


def load_operator() -> None:
    """Compile scaled_swish.cpp beside its source, unless that has been done for this torch; register the operator."""
    library = SOURCE.parent / f"scaled_swish-{torch.__version__}.so"
    if not library.exists() or library.stat().st_mtime < SOURCE.stat().st_mtime:
        compiler = shutil.which(os.environ.get("CXX", "c++"))
        if compiler is None:
            sys.exit("custom_op.py: no C++ compiler found; install g++, or name one: CXX=clang++ python custom_op.py")
        root = Path(torch.__file__).parent
        abi = int(torch.compiled_with_cxx11_abi())
        partial = library.with_suffix(f".{os.getpid()}")
        subprocess.run(
            [compiler, "-std=c++20", "-O1", "-shared", "-fPIC", f"-D_GLIBCXX_USE_CXX11_ABI={abi}"]
            + ["-isystem", str(root / "include"), str(SOURCE), "-o", str(partial)]
            + [f"-L{root / 'lib'}", "-ltorch_cpu", "-lc10"],
            check=True,
        )
        partial.replace(library)
    torch.ops.load_library(library)


class Network(torch.nn.Module):
    """Points (B, 2) and targets (B, 1) -> predictions (B, 1), loss."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = torch.nn.Linear(2, 32), torch.nn.Linear(32, 1)

    def activation(self, x: torch.Tensor) -> torch.Tensor:
        return poptorch.custom_op([x], "ScaledSwish", "com.example", 1, example_outputs=[x], attributes={"beta": BETA})[
            0
        ]

    def forward(self, points: torch.Tensor, targets: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        predictions = self.second(self.activation(self.first(points)))
        return predictions, F.mse_loss(predictions, targets)


def make_model() -> Network:
    torch.manual_seed(0)
    return Network()


def points(step: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Inputs of a call: points in a square, and a wave over it."""
    where = torch.rand(SAMPLES, 2, generator=torch.Generator().manual_seed(step)) * 4 - 2
    return where, (where[:, :1] * 2).sin() * where[:, 1:]


def make_optimizer(model: torch.nn.Module) -> torch.optim.Optimizer:
    return poptorch.optim.Adam(model.parameters(), lr=0.02)


def train(model: Network) -> list[float]:
    """The losses of 20 steps."""
    executor = poptorch.trainingModel(model, poptorch.Options(), make_optimizer(model))
    return [executor(*points(step))[1].item() for step in range(STEPS)]


def main() -> None:
    load_operator()
    losses = train(make_model())
    print(f"loss {losses[0]:.3f} -> {losses[-1]:.3f}")


if __name__ == "__main__":
    main()
