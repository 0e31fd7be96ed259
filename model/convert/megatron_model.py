"""A GPT of Megatron-LM: its arguments as a configuration, its names, and how it cuts matrices into pieces.

Two generations of names: those of megatron.core, with the layer norms of Transformer Engine's fused modules or without,
and the older ones. Matrices are (out, in). https://github.com/NVIDIA/Megatron-LM, megatron/core/models/gpt and
megatron/training/arguments.py
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, Mapping, Sequence

import torch
from torch import Tensor

from model.checkpoint import read_config
from model.config import GPT2Config
from model.convert.source import Weight, Wishes, make_config
from model.convert.vocabulary import tokens_in
from model.weights import HEAD, PREFIX, WPE, WTE

KIND = "Megatron-LM"
DESCRIBED = "its args"
# Objects in its files that say nothing of the model: of its own, of its arguments, of random number generators.
PASSED_OVER = (
    r"(?:megatron|transformer_engine)\..*|argparse\.Namespace|types\.SimpleNamespace|signal\.Signals|_?io\.BytesIO"
    r"|numpy(?:\.\w+)*\.(?:ndarray|dtype|scalar|_reconstruct)|_codecs\.encode|pathlib\.(?:Posix)?Path"
    r"|torch\.\w+\.(?:enums|types)\..*"
)
# A model of another kind computes something else: argument -> the values it has for a GPT-2, absent among them.
_ONLY: dict[str, tuple[Any, ...]] = {
    "swiglu": (False,),
    "squared_relu": (False,),
    "apply_layernorm_1p": (False,),
    "group_query_attention": (False,),
    "multi_latent_attention": (False,),
    "num_experts": (None,),
    "position_embedding_type": ("learned_absolute",),
    "normalization": ("LayerNorm",),
}
_NEEDED = ("num_layers", "hidden_size", "num_attention_heads", "max_position_embeddings", "padded_vocab_size")

_OUTER = {
    r"(?:language_model\.)?embedding\.word_embeddings": "wte",
    r"(?:language_model\.)?embedding\.position_embeddings": "wpe",
    r"(?:decoder|language_model\.(?:transformer|encoder))\.final_(?:layernorm|norm)": "ln_f",
}
_INNER = {
    r"input_(?:layernorm|norm)": "ln_1",
    r"self_attention\.linear_qkv\.layer_norm": "ln_1",
    r"self_attention\.linear_qkv|(?:self_)?attention\.query_key_value": "attn.c_attn",
    r"self_attention\.linear_proj|(?:self_)?attention\.dense": "attn.c_proj",
    r"pre_mlp_layernorm|mlp\.linear_fc1\.layer_norm|post_attention_(?:layernorm|norm)": "ln_2",
    r"mlp\.linear_fc1|mlp\.dense_h_to_4h": "mlp.c_fc",
    r"mlp\.linear_fc2|mlp\.dense_4h_to_h": "mlp.c_proj",
}
_LAYER = re.compile(r"(?:decoder|language_model\.(?:transformer|encoder))\.layers\.(\d+)\.(.*)")
_HEADS = re.compile(r"output_layer\.weight|(?:language_model\.)?(?:word_embeddings_for_head|output_layer)\.weight")
# The dimension along which tensor parallelism cuts; what is not here every rank has whole.
_CUT = {
    "wte.weight": 0,
    HEAD: 0,
    "attn.c_attn.weight": 0,
    "attn.c_attn.bias": 0,
    "attn.c_proj.weight": 1,
    "mlp.c_fc.weight": 0,
    "mlp.c_fc.bias": 0,
    "mlp.c_proj.weight": 1,
}


def our_name(theirs: str, first_layer: int = 0) -> str | None:
    """Hugging Face's name of a tensor, HEAD for a copy of the embedding, too; None for what is no weight.

    `first_layer` is that of the pipeline stage. A name that is not known stays, so that it is told.
    """
    if theirs.endswith("_extra_state"):  # Transformer Engine's, for 8-bit numbers
        return None
    if _HEADS.fullmatch(theirs):
        return HEAD
    stem, end = re.sub(r"\.layer_norm_(weight|bias)$", r".layer_norm.\1", theirs).rpartition(".")[::2]
    layer = _LAYER.fullmatch(stem)
    for pattern, ours in (_INNER if layer else _OUTER).items():
        if re.fullmatch(pattern, layer.group(2) if layer else stem):
            place = f"h.{int(layer.group(1)) + first_layer}." if layer else ""
            return f"{PREFIX}{place}{ours}.{end}"
    return theirs


def their_name(ours: str) -> str:
    """The name in megatron.core's model of --transformer-impl local."""
    if ours in (WTE, WPE):
        return f"embedding.{'word' if ours == WTE else 'position'}_embeddings.weight"
    if ours == HEAD:
        return "output_layer.weight"
    stem, _, end = ours[len(PREFIX) :].rpartition(".")
    if stem == "ln_f":
        return f"decoder.final_layernorm.{end}"
    _, layer, part = stem.split(".", 2)
    parts = {
        "ln_1": "input_layernorm",
        "attn.c_attn": "self_attention.linear_qkv",
        "attn.c_proj": "self_attention.linear_proj",
        "ln_2": "pre_mlp_layernorm",
        "mlp.c_fc": "mlp.linear_fc1",
        "mlp.c_proj": "mlp.linear_fc2",
    }
    return f"decoder.layers.{layer}.{parts[part]}.{end}"


def cut_dimension(ours: str) -> int | None:
    """The dimension of Megatron's tensor along which tensor parallelism cuts it; None if every rank has all of it."""
    return next((at for end, at in _CUT.items() if ours.endswith(end)), None)


def joined(pieces: Sequence[Weight], dimension: int) -> Weight:
    """The pieces of all tensor-parallel ranks in one."""
    if len(pieces) == 1:
        return pieces[0]
    shape = list(pieces[0].shape)
    shape[dimension] = sum(piece.shape[dimension] for piece in pieces)
    return Weight(tuple(shape), pieces[0].dtype, lambda: torch.cat([piece.read() for piece in pieces], dimension))


def queries_keys_values(pieces: Sequence[Weight], heads: int, version: float) -> Weight:
    """The pieces of a fused projection, (3C / ranks, C) or (3C / ranks,) each, as (3C, C): all queries, keys, values.

    The rows of H heads of D within a piece, by version: 0: (3, H, D), 1: (H, D, 3), from 2 on: (H, 3, D).
    """
    rows = sum(piece.shape[0] for piece in pieces)
    shape = (rows, *pieces[0].shape[1:])

    def read() -> Tensor:
        parts = []
        for piece in pieces:
            tensor, own = piece.read(), heads // len(pieces)
            rest = tensor.shape[1:]
            size = tensor.shape[0] // (3 * own)
            if version < 1:
                parts.append(tensor.reshape(3, own, size, *rest))
            elif version < 2:
                parts.append(tensor.reshape(own, size, 3, *rest).movedim(2, 0))
            else:
                parts.append(tensor.reshape(own, 3, size, *rest).movedim(1, 0))
        return torch.cat(parts, 1).reshape(shape)

    return Weight(shape, pieces[0].dtype, read)


def fused(tensor: Tensor, heads: int) -> Tensor:
    """(3C, C) or (3C,), all queries, keys, values, as version 3 has it: head after head."""
    size = tensor.shape[0] // (3 * heads)
    return tensor.reshape(3, heads, size, *tensor.shape[1:]).movedim(0, 1).reshape(tensor.shape)


def config_of(path: Path, args: Mapping[str, Any], rows: int, wishes: Wishes) -> GPT2Config:
    """The configuration in Megatron's arguments, or of --config; `rows` of the vocabulary are in the file.

    Raises ValueError naming the file and the arguments that are missing or ask for a model that is no GPT-2.
    """
    if wishes.config is not None:
        config = read_config(wishes.config)
        real = config.real_vocab_size if config.real_vocab_size < rows else None
        values = {**vars(config), "vocab_size": rows, "real_vocab_size": real}
        values["activation_function"] = wishes.activation or config.activation_function
        return make_config(path, str(wishes.config), **values)
    absent = [name for name in _NEEDED if args.get(name) is None]
    if absent:
        raise ValueError(f"{path}: its args have no {', '.join(absent)}; name a config.json of the model with --config")
    others = [f"{name} {args[name]!r}" for name, values in _ONLY.items() if args.get(name, values[0]) not in values]
    channels = args.get("kv_channels")
    if channels is not None and channels * args["num_attention_heads"] != args["hidden_size"]:
        others.append(f"kv_channels {channels}")
    if others:
        raise ValueError(f"{path}: is no GPT-2: {', '.join(others)}")
    # The fused kernel of bias and GELU, which is on by default, computes the approximation with tanh.
    approximated = args.get("bias_gelu_fusion") or args.get("openai_gelu")
    real = args.get("vocab_size")
    return make_config(
        path,
        DESCRIBED,
        vocab_size=args["padded_vocab_size"],
        real_vocab_size=real if isinstance(real, int) else tokens_in(rows),
        n_positions=args["max_position_embeddings"],
        n_embd=args["hidden_size"],
        n_layer=args["num_layers"],
        n_head=args["num_attention_heads"],
        n_inner=args.get("ffn_hidden_size"),
        activation_function=wishes.activation or ("gelu_new" if approximated else "gelu"),
        resid_pdrop=args.get("hidden_dropout", 0.1),
        embd_pdrop=args.get("hidden_dropout", 0.1),
        attn_pdrop=args.get("attention_dropout", 0.1),
        tie_word_embeddings=not args.get("untie_embeddings_and_output_weights", False),
        layer_norm_epsilon=args.get("norm_epsilon", args.get("layernorm_epsilon", 1e-5)),
    )
