#!/usr/bin/env bash
# transformers 5.23.0: GPT2Tokenizer(vocab_file=..., merges_file=...) is how version 4 built the tokenizer from two
# files, and the class documentation of version 5 still lists both arguments. Its constructor takes vocab and merges;
# the old names fall into the keyword arguments that are merely stored. The result has one entry, the special token,
# and encodes every text to nothing, without an error or a warning. The same two paths given by position work. Source:
# tokenization_gpt2.py of the package. Date: 2026-11-29.
set -euo pipefail
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
python3 -m venv "$dir/venv"
"$dir/venv/bin/pip" install --quiet transformers==5.23.0 tokenizers==0.23.3 huggingface_hub==2.4.0
cd "$dir"
"$dir/venv/bin/python" - <<'PY'
import importlib.metadata, json, os, pathlib
os.environ["HF_HUB_OFFLINE"] = "1"
from transformers import GPT2Tokenizer

entries = ["l", "o", "w", "e", "r", "lo", "low", "er", "lower", "<|endoftext|>"]
pathlib.Path("vocab.json").write_text(json.dumps({entry: number for number, entry in enumerate(entries)}))
pathlib.Path("merges.txt").write_text("#version: 0.2\nl o\nlo w\ne r\nlow er\n")
by_position = GPT2Tokenizer("vocab.json", "merges.txt")
by_name = GPT2Tokenizer(vocab_file="vocab.json", merges_file="merges.txt")
position, name = (tokenizer("lower")["input_ids"] for tokenizer in (by_position, by_name))
print("version: transformers", importlib.metadata.version("transformers"))
print("expected: 10 entries and 'lower' -> [8], or an error for an argument that does not exist")
print(f"seen: by position {len(by_position)} entries, {position}; by name {len(by_name)} entries, {name}")
assert (len(by_position), position) == (10, [8])
assert (len(by_name), name) == (1, [])
PY
