#!/usr/bin/env bash
# megatron-core 0.16.1: ids of a vocabulary up to 65,536 entries fit uint16, and one would expect writer and reader to
# agree on that. DType.optimal_dtype, which the writers ask, turns to int32 from 65,500 entries on; GPTDatasetConfig,
# which tells the type when the counts of sequences are given beforehand and the index file is not opened, says uint16
# up to 65,536. For the 37 vocabulary sizes between, a file is read as twice as many ids of which every other is 0,
# without an error. Source: datasets/indexed_dataset.py (optimal_dtype) and datasets/gpt_dataset.py (token_dtype_code)
# of the package. Date: 2026-11-29.
set -euo pipefail
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
python3 -m venv "$dir/venv"
"$dir/venv/bin/pip" install --quiet megatron-core==0.16.1 torch==2.13.0 numpy==2.4.6
cd "$dir"
"$dir/venv/bin/python" - <<'PY'
import importlib.metadata, types, warnings
warnings.simplefilter("ignore")
import torch
from megatron.core.datasets.gpt_dataset import GPTDatasetConfig
from megatron.core.datasets.indexed_dataset import DType, IndexedDataset, IndexedDatasetBuilder

VOCABULARY = 65_520
builder = IndexedDatasetBuilder("corpus.bin", dtype=DType.optimal_dtype(VOCABULARY))
builder.add_document(torch.tensor([10, 20, 65_510, 30]), [4])
builder.add_document(torch.tensor([40, 50, 60, 70]), [4])
builder.finalize("corpus.idx")

tokenizer = types.SimpleNamespace(vocab_size=VOCABULARY, eod=0, pad=0, unique_identifiers={})
code = GPTDatasetConfig(
    random_seed=1, sequence_length=4, blend=None, tokenizer=tokenizer,
    reset_position_ids=False, reset_attention_mask=False, eod_mask_loss=False,
).token_dtype_code
by_index = IndexedDataset("corpus")
by_counts = IndexedDataset("corpus", fast_cache_load=True, sequences_per_dataset=(2, 3), dtype_code=code)
written, read = DType.optimal_dtype(VOCABULARY).__name__, DType.dtype_from_code(code).__name__
first, second = by_index[0].tolist(), by_counts[0].tolist()
print("version: megatron-core", importlib.metadata.version("megatron-core"))
print("expected: the type that is written is the type that is read, and both ways of opening give the same ids")
print(f"seen: {VOCABULARY:,} entries are written as {written} and read as {read}; {first} becomes {second}")
assert (written, read) == ("int32", "uint16")
assert first == [10, 20, 65_510, 30] and second == [10, 0, 20, 0]
PY
