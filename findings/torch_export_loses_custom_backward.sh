#!/usr/bin/env bash
# torch 2.13.0: torch.export promises a graph that computes what the module does, and an exported module can be
# trained. A torch.autograd.Function in it is replaced by the operations of its forward, so its own backward is gone:
# the gradient is that of the forward, silently. A hook set with Tensor.register_hook is lost in the same way.
# Straight-through estimators and gradient scaling, common uses of both, then train as if they were not there. Source:
# seen by running non-strict export, its default; pytorch issue 193279 tells of the like in torch.compile under
# torch.func.grad. Date: 2026-11-29.
set -euo pipefail
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
python3 -m venv "$dir/venv"
"$dir/venv/bin/pip" install --quiet torch==2.13.0 numpy==2.4.6
cd "$dir"
"$dir/venv/bin/python" - <<'PY'
import importlib.metadata
import torch

class Doubled(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return 2 * x
    @staticmethod
    def backward(ctx, grad):
        return 7 * grad

class WithFunction(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.ones(1))
    def forward(self, x):
        return Doubled.apply(self.weight * x)

class WithHook(WithFunction):
    def forward(self, x):
        hidden = self.weight * x
        if hidden.requires_grad:
            hidden.register_hook(lambda grad: 7 * grad)
        return 2 * hidden

def gradient(module, x=torch.ones(1)):
    module(x).sum().backward()
    return next(module.parameters()).grad.item()

print("version: torch", importlib.metadata.version("torch"))
print("expected: the same gradients before and after export")
for kind, eager in ((WithFunction, 7), (WithHook, 14)):
    found = gradient(kind()), gradient(torch.export.export(kind(), (torch.ones(1),)).module())
    print(f"seen: {kind.__name__} eager {found[0]}, exported {found[1]}")
    assert found == (eager, 2)
PY
