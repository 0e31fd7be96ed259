#!/usr/bin/env bash
# megatron-core 0.16.1: the .idx header has a count of sequences and a count of documents. The second is not the
# number of documents but the length of the list of their limits, which begins with 0: two documents say 3. And GPT
# training does not look at documents at all: GPTDataset shuffles and splits sequences, while BERT's data set takes
# documents, so a corpus that was written with a sequence for each sentence falls to sentences for GPT. Who wants
# whole documents must write each as one sequence. Source: _IndexWriter.write in datasets/indexed_dataset.py,
# numel_low_level_dataset in datasets/gpt_dataset.py and masked_dataset.py of the package. Date: 2026-11-29.
set -euo pipefail
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
python3 -m venv "$dir/venv"
"$dir/venv/bin/pip" install --quiet megatron-core==0.16.1 torch==2.13.0 numpy==2.4.6
cd "$dir"
"$dir/venv/bin/python" - <<'PY'
import importlib.metadata, pathlib, struct, warnings
warnings.simplefilter("ignore")
import numpy, torch
from megatron.core.datasets.bert_dataset import BERTMaskedWordPieceDataset
from megatron.core.datasets.gpt_dataset import GPTDataset
from megatron.core.datasets.indexed_dataset import IndexedDataset, IndexedDatasetBuilder

builder = IndexedDatasetBuilder("corpus.bin", dtype=numpy.uint16)
builder.add_document(torch.arange(9), [2, 3, 4])  # a document of three sentences
builder.add_document(torch.arange(5), [5])  # and one of one
builder.finalize("corpus.idx")
magic, version, code, sequences, documents = struct.unpack_from("<9sQBQQ", pathlib.Path("corpus.idx").read_bytes())
corpus = IndexedDataset("corpus")
gpt, bert = (kind.numel_low_level_dataset(corpus) for kind in (GPTDataset, BERTMaskedWordPieceDataset))
print("version: megatron-core", importlib.metadata.version("megatron-core"))
print("expected: of two documents with four sentences the header says 4 and 2, and GPT's samples come from 2 documents")
print(f"seen: the header says {sequences} and {documents}; elements that are shuffled: GPT {gpt}, BERT {bert}")
assert magic == b"MMIDIDX\0\0" and (version, code) == (1, 8)
assert (sequences, documents) == (4, 3) and (gpt, bert) == (4, 2)
PY
