#!/usr/bin/env bash
# torch 2.13.0 and safetensors 0.8.0: HuggingFaceStorageWriter(enable_consolidation=True) is documented to put shards
# in path/sharded and full tensors in path. Without save_distributed=True it does only the first half: the complete
# model is in path/sharded, path itself holds no file, nothing is said, and from_pretrained(path) finds no model
# there. With both options path is filled. Source: finish() and the constructor's documentation in
# torch/distributed/checkpoint/hf_storage.py. Date: 2026-11-29.
set -euo pipefail
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
python3 -m venv "$dir/venv"
"$dir/venv/bin/pip" install --quiet safetensors==0.8.0 torch==2.13.0 numpy==2.4.6
cd "$dir"
"$dir/venv/bin/python" - <<'PY'
import importlib.metadata, pathlib, warnings
warnings.simplefilter("ignore")
import torch
import torch.distributed.checkpoint as checkpoint

def save(folder, **options):
    writer = checkpoint.HuggingFaceStorageWriter(path=folder, enable_consolidation=True, **options)
    checkpoint.save({"weight": torch.ones(3)}, storage_writer=writer, no_dist=True)
    return sorted(str(file.relative_to(folder)) for file in pathlib.Path(folder).rglob("*") if file.is_file())

alone, both = save("alone"), save("both", save_distributed=True)
print("version: torch", importlib.metadata.version("torch"), "safetensors", importlib.metadata.version("safetensors"))
print("expected: model-00001-of-00001.safetensors in the folder itself")
print(f"seen: {alone}; with save_distributed=True: {both}")
assert alone == ["sharded/model-00001-of-00001.safetensors", "sharded/model.safetensors.index.json"]
assert "model-00001-of-00001.safetensors" in both and "model.safetensors.index.json" in both
PY
