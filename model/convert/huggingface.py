"""Hugging Face folders, and with them this project's own checkpoints: config.json and model.safetensors.

https://huggingface.co/docs/safetensors: the length of the header (uint64), the header (JSON: dtype, shape and place of
each tensor), the tensors. Written one after the other; safetensors' own writer wants all of them at once.
"""

from __future__ import annotations

import json
import math
import struct
from pathlib import Path
from typing import BinaryIO

from model.checkpoint import CONFIG_FILE, config_text, read_config, write_atomically
from model.convert.sink import DTYPES, Target, kept_bytes, write_tensor
from model.convert.source import Source, Wishes, make_source, weight_of
from model.convert.vocabulary import Vocabulary
from model.weights import WEIGHTS_FILE, file_metadata, read_weights, with_our_names

KIND = "Hugging Face"
ALLOWED = ("float32", "float16", "bfloat16")
_NAMES = {"float32": ("F32", 4), "float16": ("F16", 2), "bfloat16": ("BF16", 2)}


def read(directory: Path, wishes: Wishes) -> Source:
    """A folder with config.json and the weights in any of the files that transformers writes. Raises ValueError."""
    config = read_config(wishes.config or directory / CONFIG_FILE)
    path, tensors = read_weights(directory)
    named = with_our_names(tensors, path, config.tie_word_embeddings)
    weights = {name: weight_of(tensor) for name, tensor in named.items()}
    described = str(wishes.config) if wishes.config else "config.json beside it"
    return make_source(path, KIND, config, weights, described, Vocabulary.beside(directory), wishes)


def check(source: Source, target: Target) -> str:
    """Nothing: what this project knows of a GPT-2 are the names of Hugging Face's configuration."""
    return ""


def size(source: Source, target: Target) -> int:
    """Bytes of the weights."""
    return kept_bytes(source.config, target.dtype)


def write(source: Source, target: Target) -> None:
    """config.json, model.safetensors and the tokenizer's files, all of them or none."""
    with write_atomically(target.path) as folder:
        text = config_text(source.config, DTYPES[target.dtype])
        (folder / CONFIG_FILE).write_text(text, encoding="utf-8")
        with (folder / WEIGHTS_FILE).open("wb") as file:
            _write_safetensors(file, source, target.dtype)
        if source.vocabulary is not None:
            source.vocabulary.write(folder)


def _write_safetensors(file: BinaryIO, source: Source, dtype: str) -> None:
    name, width = _NAMES[dtype]
    header: dict[str, object] = {"__metadata__": file_metadata(source.config)}
    place = 0
    for key, weight in source.weights.items():
        end = place + width * math.prod(weight.shape)
        header[key] = {"dtype": name, "shape": list(weight.shape), "data_offsets": [place, end]}
        place = end
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    file.write(struct.pack("<Q", len(text)) + text)
    for key, weight in source.weights.items():
        write_tensor(file, weight.read(), DTYPES[dtype], key)
