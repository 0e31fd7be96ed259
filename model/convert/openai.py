"""OpenAI's original GPT-2: the folder that its download_model.py makes, with a TensorFlow checkpoint.

hparams.json has the dimensions, encoder.json and vocab.bpe the tokenizer. Names are model/h0/attn/c_attn/w; the
matrices, (1, in, out) there, are Hugging Face's. https://github.com/openai/gpt-2, src/model.py
"""

from __future__ import annotations

import re
from pathlib import Path

from model.config import read_json_object
from model.convert.source import Source, Weight, Wishes, make_config, make_source
from model.convert.tensor_bundle import read_bundle
from model.convert.vocabulary import Vocabulary
from model.weights import PREFIX

KIND = "OpenAI"
DESCRIBED = "hparams.json beside it"
SIZES = "hparams.json"
_DIMENSIONS = {"n_vocab": "vocab_size", "n_ctx": "n_positions", "n_embd": "n_embd", "n_head": "n_head"}
_DIMENSIONS["n_layer"] = "n_layer"
_OPTIMIZER = re.compile(r".*/Adam(_\d+)?|beta\d_power|global_step")  # what is stored beside the weights
_ENDS = {"g": "weight", "b": "bias", "w": "weight"}


def indexes_in(path: Path) -> list[Path]:
    """The indexes of TensorFlow checkpoints in a folder."""
    return sorted(path.glob("*.index"))


def is_checkpoint(path: Path) -> bool:
    """Whether a folder is one of OpenAI's."""
    return bool(indexes_in(path)) or (path / SIZES).is_file()


def our_name(theirs: str) -> str:
    """model/h0/attn/c_attn/w -> transformer.h.0.attn.c_attn.weight; a name that is none of them stays."""
    parts = theirs.split("/")
    if parts[0] != "model" or len(parts) < 2:
        return theirs
    parts = parts[1:]
    block = re.fullmatch(r"h(\d+)", parts[0])
    if block:
        parts[:1] = ["h", block.group(1)]
    if parts in (["wte"], ["wpe"]):
        parts.append("weight")
    else:
        parts[-1] = _ENDS.get(parts[-1], parts[-1])
    return PREFIX + ".".join(parts)


def read(path: Path, wishes: Wishes) -> Source:
    """A folder. Raises ValueError naming the file, and the tensor where one is at fault."""
    indexes = indexes_in(path)
    if len(indexes) != 1:
        found = ", ".join(index.name for index in indexes) or "none"
        raise ValueError(f"{path}: {SIZES} is OpenAI's, and one model.ckpt.index belongs to it; there is {found}")
    sizes = read_json_object(path / SIZES)
    absent = [name for name in _DIMENSIONS if name not in sizes]
    if absent:
        raise ValueError(f"{path / SIZES}: has no {', '.join(absent)}")
    config = make_config(path / SIZES, "its values", **{ours: sizes[name] for name, ours in _DIMENSIONS.items()})
    weights = {}
    for name, weight in read_bundle(indexes[0]).items():
        if not _OPTIMIZER.fullmatch(name):
            weights[our_name(name)] = _without_first(weight)
    return make_source(indexes[0], KIND, config, weights, DESCRIBED, Vocabulary.beside(path), wishes)


def _without_first(weight: Weight) -> Weight:
    """(1, in, out) -> (in, out): the matrices were convolutions of width 1."""
    if len(weight.shape) != 3 or weight.shape[0] != 1:
        return weight
    return weight.changed(weight.shape[1:], lambda tensor: tensor[0])
