#!/usr/bin/env bash
# tensorboard 2.21.0 and torch 2.13.0: SummaryWriter.add_scalar has new_style=True, said to load faster. Who reads the
# run back with EventAccumulator finds no scalars any more: the tag has moved to the tensors, of which 10 per tag are
# kept (a sample, the last one included), where 10,000 scalars were. Nothing warns. size_guidance={"tensors": 0} keeps
# all. Source: the docstring of add_scalar in torch/utils/tensorboard/writer.py, DEFAULT_SIZE_GUIDANCE in
# tensorboard/backend/event_processing/event_accumulator.py. Date: 2026-11-29.
set -euo pipefail
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
python3 -m venv "$dir/venv"
"$dir/venv/bin/pip" install --quiet tensorboard==2.21.0 setuptools==80.9.0 torch==2.13.0 numpy==2.4.6
cd "$dir"
"$dir/venv/bin/python" - <<'PY'
import importlib.metadata
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch.utils.tensorboard import SummaryWriter

def write(folder, new_style):
    writer = SummaryWriter(folder)
    for step in range(300):
        writer.add_scalar("loss", 300 - step, step, new_style=new_style)
    writer.close()

def load(folder, guidance=None):
    events = EventAccumulator(folder, size_guidance=guidance)
    events.Reload()
    tags = events.Tags()
    return {kind: len(read("loss")) for kind, read in (("scalars", events.Scalars), ("tensors", events.Tensors))
            if "loss" in tags[kind]}

write("old", False)
write("new", True)
old, new, everything = load("old"), load("new"), load("new", {"tensors": 0})
print("version: tensorboard", importlib.metadata.version("tensorboard"), "torch", importlib.metadata.version("torch"))
print("expected: 300 points of the tag loss among the scalars, in either style")
print(f"seen: old style {old}; new style {new}; new style with all tensors kept {everything}")
assert old == {"scalars": 300} and new == {"tensors": 10} and everything == {"tensors": 300}
PY
