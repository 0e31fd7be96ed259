"""How new weights are drawn: the rule of each system. Biases are 0 and layer norms 1 where they are made."""

from __future__ import annotations

import math
from typing import Callable

import torch
from torch import Tensor, nn

from model.config import GPT2Config

# A normal distribution cut off at two of its standard deviations has this one.
_CUT_OFF = 0.87962566103423978


@torch.no_grad()
def initialize(model: nn.Module, config: GPT2Config) -> None:
    """Draws the matrices among the parameters of `model` from torch's global generator, by config.initialization.

    Rows of the vocabulary that are padding become 0.
    """
    rule = RULES[config.initialization]
    vocabulary = (config.vocab_size, config.embedding_width)
    for name, parameter in model.named_parameters():
        if parameter.dim() > 1:
            rule(f".{name}", parameter, config)
            if name in ("wte.weight", "weight") and parameter.shape == vocabulary:  # "weight": the head by itself
                parameter[config.real_vocab_size :] = 0.0


def _gpt2(name: str, weight: Tensor, config: GPT2Config) -> None:
    """N(0, initializer_range); projections into the residual stream are narrower.

    By 1 / sqrt(2 n_layer), one for each of the 2 n_layer sums into it (GPT-2 paper, section 2.3).
    """
    into_residual = name.endswith(".c_proj.weight")
    weight.normal_(0.0, config.initializer_range / math.sqrt(2 * config.n_layer if into_residual else 1))


def _normal(name: str, weight: Tensor, config: GPT2Config) -> None:
    """N(0, initializer_range), whatever it is: transformers before the paper's rule, and ALGPT2."""
    weight.normal_(0.0, config.initializer_range)


def _gpt_star(name: str, weight: Tensor, config: GPT2Config) -> None:
    """As _gpt2, narrower by 1 / sqrt(n_layer): with a parallel residual there is one sum a block."""
    into_residual = name.endswith(".c_proj.weight")
    weight.normal_(0.0, config.initializer_range / math.sqrt(config.n_layer if into_residual else 1))


def _tfchat(name: str, weight: Tensor, config: GPT2Config) -> None:
    """Keras's defaults: U(-0.05, 0.05) for embeddings, he_normal before the activation, glorot_uniform elsewhere."""
    if name.endswith((".wte.weight", ".wpe.weight")):
        weight.uniform_(-0.05, 0.05)
    elif name.endswith(".mlp.c_fc.weight"):
        std = math.sqrt(2.0 / config.n_embd) / _CUT_OFF
        nn.init.trunc_normal_(weight, 0.0, std, -2 * std, 2 * std)
    else:
        _glorot(name, weight, config)


def _mingpt_tf(name: str, weight: Tensor, config: GPT2Config) -> None:
    """N(0, initializer_range), positions 0; the projections into the residual stream keep Keras's glorot_uniform."""
    if name.endswith(".wpe.weight"):
        weight.zero_()
    elif name.endswith(".c_proj.weight"):
        _glorot(name, weight, config)
    else:
        weight.normal_(0.0, config.initializer_range)


def _glorot(name: str, weight: Tensor, config: GPT2Config) -> None:
    """U(-b, b) with b = sqrt(6 / (in + out)); queries, keys and values are a matrix each."""
    n_in, n_out = weight.shape
    outputs = n_out // 3 if name.endswith(".c_attn.weight") else n_out
    bound = math.sqrt(6.0 / (n_in + outputs))
    weight.uniform_(-bound, bound)


RULES: dict[str, Callable[[str, Tensor, GPT2Config], None]] = {
    "gpt2": _gpt2,
    "normal": _normal,
    "tfchat": _tfchat,
    "mingpt-tf": _mingpt_tf,
    "gpt-star": _gpt_star,
}
