#!/usr/bin/env bash
# gguf 0.19.0: a Q8_0 block is a half-precision scale and 32 int8 values, so the natural encoder rounds the scale to
# half and divides by what it stored. The reference divides by the scale in float32 and stores its rounding: bytes of
# the natural encoder differ, now and then by one step. Halves are rounded away from zero, where numpy.rint takes the
# even neighbour. A second surprise for readers: GGUFReader gives shape in ggml's order, the reverse of data.shape,
# and data.shape counts bytes for quantized tensors. Source: class Q8_0 and np_roundf in gguf/quants.py, ReaderTensor
# in gguf/gguf_reader.py. Date: 2026-11-29.
set -euo pipefail
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
python3 -m venv "$dir/venv"
"$dir/venv/bin/pip" install --quiet gguf==0.19.0 numpy==2.4.6
cd "$dir"
"$dir/venv/bin/python" - <<'PY'
import importlib.metadata
import numpy as np
from gguf import GGMLQuantizationType, GGUFReader, GGUFWriter, quants

Q8 = GGMLQuantizationType.Q8_0
def away(values):
    return np.copysign(np.floor(np.abs(values) + np.float32(0.5)), values)

weights = np.random.RandomState(0).standard_normal((100, 320)).astype(np.float32)
packed = quants.quantize(weights, Q8)
blocks, rows = packed.reshape(-1, 34), weights.reshape(-1, 32)
stored, values = blocks[:, :2].copy().view(np.float16).astype(np.float32), blocks[:, 2:].view(np.int8)
scale = np.abs(rows).max(axis=1, keepdims=True) / np.float32(127)
natural = int((away(rows / stored) != values).sum())
reference = int((away(rows * (1 / scale)) != values).sum())
halves = np.zeros((1, 32), np.float32)
halves[0, :4] = 127, 0.5, 1.5, -2.5
rounded = quants.quantize(halves, Q8)[0, 2:6].view(np.int8).tolist()

writer = GGUFWriter("model.gguf", "gpt2")
writer.add_tensor("weights", packed, raw_dtype=Q8)
writer.write_header_to_file()
writer.write_kv_data_to_file()
writer.write_tensors_to_file()
writer.close()
[tensor] = GGUFReader("model.gguf").tensors
print("version: gguf", importlib.metadata.version("gguf"))
print("expected: values are weights divided by the stored scale, rounded as numpy does; shape (100, 320)")
print(f"seen: {natural} of {values.size} values differ from that, {reference} with the scale in float32;",
      f"{halves[0, :4]} -> {rounded}; shape {tensor.shape.tolist()}, data.shape {tensor.data.shape}")
assert (stored == scale.astype(np.float16)).all() and natural > 100 and reference == 0
assert rounded == [127, 1, 2, -3] and tensor.shape.tolist() == [320, 100] and tensor.data.shape == (100, 340)
PY
