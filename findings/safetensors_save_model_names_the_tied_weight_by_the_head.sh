#!/usr/bin/env bash
# safetensors 0.8.0 and transformers 5.23.0: save_file refuses tied weights and points to save_model, which stores one
# of the names. GPT-2's files hold transformer.wte.weight and no head, and so does save_pretrained; a program that
# looks for the embedding in a file of save_model finds none. Of names that share one memory it keeps the first in
# alphabetical order, lm_head.weight, and puts the other in the metadata. transformers reads both kinds. Source:
# _remove_duplicate_names in safetensors/torch.py; documentation of safetensors on shared tensors. Date: 2026-11-29.
set -euo pipefail
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
python3 -m venv "$dir/venv"
"$dir/venv/bin/pip" install --quiet safetensors==0.8.0 transformers==5.23.0 huggingface_hub==2.4.0 \
    torch==2.13.0 numpy==2.4.6
cd "$dir"
"$dir/venv/bin/python" - <<'PY'
import importlib.metadata, os
os.environ["HF_HUB_OFFLINE"] = "1"
import torch
from safetensors import safe_open
from safetensors.torch import save_model
from transformers import GPT2Config, GPT2LMHeadModel

TIED = {"lm_head.weight", "transformer.wte.weight"}

def names(path):
    with safe_open(path, "pt") as file:
        return sorted(TIED & set(file.keys())), file.metadata()

config = GPT2Config(vocab_size=64, n_positions=8, n_embd=16, n_layer=1, n_head=2, bos_token_id=0, eos_token_id=0)
model = GPT2LMHeadModel(config).eval()
model.save_pretrained("by_transformers")
os.mkdir("by_safetensors")
config.save_pretrained("by_safetensors")
save_model(model, "by_safetensors/model.safetensors")
theirs, plain = names("by_transformers/model.safetensors"), names("by_safetensors/model.safetensors")
ids = torch.arange(8)[None]
again = GPT2LMHeadModel.from_pretrained("by_safetensors").eval()
same = torch.equal(again(ids).logits, model(ids).logits)
print("version: safetensors", importlib.metadata.version("safetensors"), "transformers",
      importlib.metadata.version("transformers"))
print("expected: both files hold the tied weight as transformer.wte.weight")
print(f"seen: save_pretrained {theirs[0]}; save_model {plain[0]}, metadata {plain[1]}; transformers reads it: {same}")
assert theirs[0] == ["transformer.wte.weight"] and plain[0] == ["lm_head.weight"] and same
assert plain[1] == {"transformer.wte.weight": "lm_head.weight"}
PY
