#!/usr/bin/env bash
# torch 2.13.0 and safetensors 0.8.0: torch.distributed.checkpoint takes state dicts with numbers in them, such as a
# step, and HuggingFaceStorageWriter takes the same state dicts and returns without an error. What is no tensor is
# written as torch.save has it into the file that is named .safetensors, and safetensors cannot open that file any
# more, not for the weights either, although the index beside it lists them. Keep only tensors in what goes through
# this writer, the step as a tensor too. Source: torch/distributed/checkpoint/hf_storage.py and filesystem.py. Date:
# 2026-11-29.
set -euo pipefail
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
python3 -m venv "$dir/venv"
"$dir/venv/bin/pip" install --quiet safetensors==0.8.0 torch==2.13.0 numpy==2.4.6
cd "$dir"
"$dir/venv/bin/python" - <<'PY'
import importlib.metadata, json, pathlib, warnings
warnings.simplefilter("ignore")
import torch
import torch.distributed.checkpoint as checkpoint
from safetensors import SafetensorError, safe_open

NAME = "model-00001-of-00001.safetensors"

def save(folder, state):
    checkpoint.save(state, storage_writer=checkpoint.HuggingFaceStorageWriter(path=folder), no_dist=True)
    listed = sorted(json.loads(pathlib.Path(folder, "model.safetensors.index.json").read_text())["weight_map"])
    try:
        with safe_open(f"{folder}/{NAME}", "pt") as file:
            return listed, sorted(file.keys())
    except SafetensorError as error:
        return listed, f"{type(error).__name__}: {error}"

tensors = save("tensors", {"weight": torch.ones(3), "step": torch.tensor(5)})
number = save("number", {"weight": torch.ones(3), "step": 5})
print("version: torch", importlib.metadata.version("torch"), "safetensors", importlib.metadata.version("safetensors"))
print("expected: a file that safetensors opens, or an error when a number is saved")
print(f"seen: tensors only: {tensors[1]}; with a number: index lists {number[0]}, opening says {number[1]}")
assert tensors == (["step", "weight"], ["step", "weight"])
assert "weight" in number[0] and number[1].startswith("SafetensorError")
PY
