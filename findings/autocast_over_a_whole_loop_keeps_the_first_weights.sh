#!/usr/bin/env bash
# torch 2.13.0: torch.autocast keeps the casts of float32 weights until its outermost region is left, whatever happens
# to the weights. A training loop that lies inside one region computes each forward pass with the weights of the first:
# the optimizer moves the real ones, always by the gradient at the old place, and the loss does not change at all until
# the region ends. No warning. So does an evaluation after load_state_dict() in the region. A good guess is that the
# cache looks at the tensor's version, which autograd keeps for just this, or that update steps under no_grad empty it.
# It does neither; the documentation's advice to wrap only the forward pass reads as one about precision and speed.
# A region a step, or cache_enabled=False, learns. Source: seen by running; Flow-Factory pull request 186 tells of
# training that stood still for it. Date: 2026-11-30.
set -euo pipefail
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
python3 -m venv "$dir/venv"
"$dir/venv/bin/pip" install --quiet torch==2.13.0 numpy==2.4.6
cd "$dir"
"$dir/venv/bin/python" - <<'PY'
import contextlib

import torch

inputs = torch.randn(64, 8, generator=torch.Generator().manual_seed(0))
targets = inputs @ torch.randn(8, 4, generator=torch.Generator().manual_seed(1))


def region(**settings):
    return torch.autocast("cpu", dtype=torch.bfloat16, **settings)


def train(around_all, around_a_step):
    """Losses of ten steps inside the regions, the model's loss behind them, and how far its weight has moved."""
    torch.manual_seed(2)
    model = torch.nn.Linear(8, 4)
    first, optimizer = model.weight.detach().clone(), torch.optim.SGD(model.parameters(), 0.1)
    losses = []
    with around_all():
        for _ in range(10):
            with around_a_step():
                loss = (model(inputs).float() - targets).square().mean()
            losses.append(loss.item())
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
    with around_a_step():
        behind = (model(inputs).float() - targets).square().mean().item()
    return losses, behind, (model.weight - first).norm().item()


none = contextlib.nullcontext
one, each, uncached = train(region, none), train(none, region), train(lambda: region(cache_enabled=False), none)
for name, (losses, behind, moved) in {"one region": one, "one a step": each, "no cache": uncached}.items():
    print(f"{name:11} losses {losses[0]:.4f} {losses[1]:.4f} ... {losses[9]:.4f}, behind it {behind:.4f}, weight moved {moved:.3f}")

with region():
    model = torch.nn.Linear(8, 4)
    before = model(inputs)
    model.load_state_dict({"weight": torch.zeros(4, 8), "bias": torch.zeros(4)})
    loaded = model(inputs)
print("zeros loaded, outputs up to", loaded.abs().max().item())

still = len(set(one[0])) == 1 and one[2] > 0.5 and one[1] != one[0][0]
learns = each[0][9] < 0.5 * each[0][0] and uncached[0][9] < 0.5 * uncached[0][0]
raise SystemExit(0 if still and learns and torch.equal(before, loaded) and loaded.any() else "torch behaves otherwise")
PY
echo "torch 2.13.0: inside one region of autocast every step has the first one's weights"
