#!/usr/bin/env bash
# torch 2.13.0: with scale_grads=True, a pipeline schedule divides the summed gradients by the number of
# micro-batches, which gives the gradient of the mean loss. Each stage divides its own parameters when its last
# backward is done. A weight that two stages of one rank share (a tied embedding in a looped or V-shaped placement) is
# divided by both: its gradient is wrong, all others are right, and no message says so. scale_grads=False and one
# division by hand is exact. Source: scale_grads and perform_reduce_grad in torch/distributed/pipelining/stage.py and
# schedules.py. Date: 2026-11-29.
set -euo pipefail
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
python3 -m venv "$dir/venv"
"$dir/venv/bin/pip" install --quiet torch==2.13.0 numpy==2.4.6
cd "$dir"
"$dir/venv/bin/python" - <<'PY'
import importlib.metadata, warnings
warnings.simplefilter("ignore")
import torch
import torch.distributed as dist
from torch.distributed.pipelining import PipelineStage, ScheduleInterleaved1F1B

MICRO_BATCHES = 4
dist.init_process_group("gloo", rank=0, world_size=1, store=dist.HashStore())
torch.manual_seed(0)
shared, own = torch.nn.Linear(8, 8), torch.nn.Linear(8, 8)
parts = [torch.nn.Sequential(torch.nn.Linear(8, 8), shared), torch.nn.Sequential(own, torch.nn.Tanh(), shared)]
whole = torch.nn.Sequential(*parts)
inputs, targets = torch.randn(8, 8), torch.randn(8, 8)
weights = {"shared": shared.weight, "own": own.weight}
torch.nn.functional.mse_loss(whole(inputs), targets).backward()
exact = {name: weight.grad.clone() for name, weight in weights.items()}

def errors(scale_grads):
    whole.zero_grad()
    stages = [PipelineStage(part, number, 2, torch.device("cpu")) for number, part in enumerate(parts)]
    schedule = ScheduleInterleaved1F1B(
        stages, MICRO_BATCHES, loss_fn=torch.nn.functional.mse_loss, scale_grads=scale_grads)
    schedule.step(inputs, target=targets)
    by_hand = 1 if scale_grads else MICRO_BATCHES
    return {name: ((weight.grad / by_hand - exact[name]).norm() / exact[name].norm()).item()
            for name, weight in weights.items()}

scaled, by_hand = errors(True), errors(False)
dist.destroy_process_group()
print("version: torch", importlib.metadata.version("torch"))
print("expected: both weights have the gradient of the mean loss")
for title, found in (("scale_grads=True", scaled), ("scale_grads=False, divided once", by_hand)):
    print(f"seen: {title}: relative errors", {name: round(error, 4) for name, error in found.items()})
assert scaled["own"] < 1e-5 and scaled["shared"] > 0.1 and max(by_hand.values()) < 1e-5
PY
