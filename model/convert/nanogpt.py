"""nanoGPT's ckpt.pt: a dict with the state dict under "model" and the model's dimensions under "model_args".

Its names are Hugging Face's, but matrices are those of nn.Linear, (out, in); a compiled model has "_orig_mod." before
them. Without `bias` neither matrices nor layer norms have one. https://github.com/karpathy/nanoGPT, model.py, train.py
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, Mapping

import torch

from corpora.atomic import atomic_file, folder_made
from model.convert.scratch import mapped_copies
from model.convert.sink import DTYPES, Target, check_computes, kept_bytes
from model.convert.source import Source, Weight, Wishes, make_config, make_source, weight_of, zeros
from model.convert.vocabulary import tokens_in
from model.weights import HEAD, WTE, tensor_mapping, with_our_names

KIND = "nanoGPT"
ALLOWED = ("float32", "float16", "bfloat16")
DESCRIBED = "its model_args"
# What both have: the weight of Hugging Face's Conv1D is (in, out), that of nn.Linear (out, in).
CONV1D = re.compile(r"\.(c_attn|c_proj|c_fc)\.weight$")


def is_nanogpt(content: Any) -> bool:
    """Whether this is what nanoGPT's train.py saves."""
    return isinstance(content, dict) and "model_args" in content and "model" in content


def read(path: Path, content: Mapping[str, Any], wishes: Wishes) -> Source:
    """`content` is what the file holds, its tensors mapped. Raises ValueError naming the file."""
    args = content["model_args"]
    names = ("block_size", "vocab_size", "n_layer", "n_head", "n_embd")
    absent = [name for name in names if not isinstance(args, dict) or name not in args]
    if absent:
        raise ValueError(f"{path}: its model_args have no {', '.join(absent)}; is it one of nanoGPT's?")
    model = content["model"]
    rows, dropout = args["vocab_size"], args.get("dropout", 0.0)
    config = make_config(
        path,
        DESCRIBED,
        **{name: args[name] for name in ("vocab_size", "n_layer", "n_head", "n_embd")},
        n_positions=args["block_size"],
        **dict.fromkeys(("resid_pdrop", "embd_pdrop", "attn_pdrop"), dropout),
        real_vocab_size=tokens_in(rows) if isinstance(rows, int) else None,
        activation_function=wishes.activation or "gelu",  # gelu_new until June 2023; the file does not say
    )
    ours = with_our_names(tensor_mapping(model, path), path, tied=False)
    head = ours.pop(HEAD, None)
    if head is not None and not head.equal(ours.setdefault(WTE, head)):
        raise ValueError(f"{path}: {HEAD} differs from {WTE}; nanoGPT's head is tied, is the file damaged?")
    weights = {name: weight_of(tensor) for name, tensor in ours.items()}
    weights = {name: w.transposed() if CONV1D.search(name) else w for name, w in weights.items()}
    if not args.get("bias", True):
        weights.update(without_biases(weights))
    return make_source(path, KIND, config, weights, DESCRIBED, None, wishes)


def without_biases(weights: Mapping[str, Weight]) -> dict[str, Weight]:
    """A bias of zeros for each matrix (in, out) of a block and each layer norm that has none."""
    added = {}
    for name, weight in weights.items():
        stem, _, end = name.rpartition(".")
        if end == "weight" and not stem.endswith(("wte", "wpe")) and f"{stem}.bias" not in weights:
            added[f"{stem}.bias"] = zeros(weight.shape[-1:], weight.dtype)
    return added


def check(source: Source, target: Target) -> str:
    """What to tell; raises ValueError for a model that nanoGPT does not have."""
    return check_computes(source.config, KIND, "gelu")


def size(source: Source, target: Target) -> int:
    """Bytes of the file and, for as long as it is written, of the tensors beside it."""
    return 2 * kept_bytes(source.config, target.dtype)


def write(source: Source, target: Target) -> None:
    """A checkpoint that nanoGPT's sample.py loads. Its vocabulary has no padding, like that of nanoGPT's own
    from_pretrained: rows of zeros would win over tokens, whose logits are mostly negative.
    """
    config = source.config
    with folder_made(target.path.parent), atomic_file(target.path) as file:
        weights = {n: w.transposed() if CONV1D.search(n) else w for n, w in source.weights.items()}
        model = mapped_copies(weights, DTYPES[target.dtype], target.path.parent)
        model[HEAD] = model[WTE]
        content = {
            "model": model,
            "model_args": {
                "n_layer": config.n_layer,
                "n_head": config.n_head,
                "n_embd": config.n_embd,
                "block_size": config.n_positions,
                "bias": True,
                "vocab_size": config.vocab_size,
                "dropout": config.resid_pdrop,
            },
            "iter_num": 0,
            "best_val_loss": 1e9,  # what nanoGPT starts with
            "config": {},
        }
        torch.save(content, file)
