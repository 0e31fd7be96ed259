"""Steps of generation by the native operators of custom_ops/decode_blocks.py: which models they compute, and the steps.

They are what ModuleSteps of decoding.py does by the model's own modules. Shapes as in gpt2.py, with S slots of cache.
"""

from __future__ import annotations

from typing import Sequence

import poptorch
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from custom_ops import decode_blocks as native
from custom_ops.top_scores import unlooked_at
from model.config import GPT2Config
from model.gpt2 import GPT2LMHeadModel
from model.positions import alibi_slopes


def not_native(config: GPT2Config) -> str | None:
    """The first setting of the model that the native operators do not compute; None: they compute all of it.

    They know blocks whose layer norms come first, with heads as wide as the model together, one sum or two, and ALiBi.
    What is added up before the blocks, what follows them and how often a block is used are free.
    """
    covered = {
        "norm_position": config.norm_position == "pre",
        "head_dim": config.attention_size == config.n_embd,
        "padding_id": config.padding_id is None,
    }
    return next((f"{name} {getattr(config, name)}" for name, known in covered.items() if not known), None)


def is_variant(config: GPT2Config) -> bool:
    """Whether the native operators compute it by what older ones lack: decode_blocks.available(variants=True)."""
    projects = config.embedding_size is not None or not config.final_norm
    return config.parallel_residual or config.position_embedding == "alibi" or projects


def _with_biases(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The weights of a block whose attention has no biases, with zeros for the native operator, which knows of none."""
    if "attn.c_attn.bias" in state:
        return state
    zeros = {
        name.replace("weight", "bias"): state[name].new_zeros(state[name].shape[1])
        for name in ("attn.c_attn.weight", "attn.c_proj.weight")  # (in, out)
    }
    return {**state, **zeros}


def _divided_queries(state: dict[str, Tensor], divisor: int) -> dict[str, Tensor]:
    """The weights of a block whose scores are divided by `divisor` for the native operator, which knows of none.

    It computes scores and their softmax in float32 in any precision: all that reorder_and_upcast_attn asks for.
    """
    if divisor == 1:
        return state
    divided = {}
    for name in ("attn.c_attn.weight", "attn.c_attn.bias"):  # (C, 3C), (3C,): queries, keys, values
        queries, keys, values = state[name].float().chunk(3, -1)
        divided[name] = torch.cat([queries / divisor, keys, values], -1)
    return {**state, **divided}


class _NativeBlocks(nn.Module):
    """Consecutive blocks as one native operator."""

    def __init__(self, gpt2: GPT2LMHeadModel, first: int, last: int, precision: str) -> None:
        super().__init__()
        config = gpt2.config
        self.layers, self.n_head, self.head_size = last - first, config.n_head, config.head_size
        self.attributes = {
            "n_head": config.n_head,
            "inner": config.inner_size,
            "precision": native.PRECISIONS.index(precision),
            "activation": config.activation_function,
            "epsilon": config.layer_norm_epsilon,
        }
        if config.parallel_residual:
            self.attributes["parallel"] = 1
        if config.position_embedding == "alibi":
            self.attributes["slopes"] = alibi_slopes(config.n_head)
        states = (
            _divided_queries(_with_biases(gpt2.transformer.h[layer].state_dict()), config.score_divisor(layer))
            for layer in range(first, last)
        )
        weights, vectors = native.pack_blocks(states, precision)
        self.register_buffer("weights", weights)
        self.register_buffer("vectors", vectors)

    def forward(self, hidden: Tensor, start: Tensor, count: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        """(B, T, C) -> (B, T, C)"""
        inputs = [hidden, start, count, self.weights, self.vectors, keys, values]
        return poptorch.custom_op(
            inputs, "DecodeBlocks", native.DOMAIN, 1, example_outputs=[hidden], attributes=self.attributes
        )[0]


class _NativeEmbedding(nn.Module):
    """Tables of what the first block is given for each token and place: norm, scale and projection are in them.

    Of a factorised embedding a product for each token would be less memory, but its last bits would depend on how many
    tokens there are.
    """

    @torch.no_grad()
    def __init__(self, gpt2: GPT2LMHeadModel) -> None:
        super().__init__()
        transformer, real = gpt2.transformer, gpt2.config.real_vocab_size
        wte = transformer.wte.weight[:real].float()
        if gpt2.config.embedding_norm:
            norm = transformer.ln_e
            wte = F.layer_norm(wte, wte.shape[1:], norm.weight.float(), norm.bias.float(), norm.eps)
        wte = wte if transformer.embedding_scale is None else wte * transformer.embedding_scale
        places = torch.arange(gpt2.config.n_positions, device=wte.device)
        wpe = wte.new_zeros(len(places), 1)  # of ALiBi: a column for all
        if transformer.wpe is not None:
            wpe = transformer.wpe(places).float()  # learned or fixed
        if gpt2.config.embedding_size is not None:
            weight, bias = transformer.project_in.weight.float(), transformer.project_in.bias.float()  # (E, C), (C,)
            wte, wpe = wte @ weight, (wpe if transformer.wpe is None else wpe @ weight) + bias
        self.register_buffer("wte", wte.contiguous())
        self.register_buffer("wpe", wpe.contiguous())

    def forward(self, input_ids: Tensor, start: Tensor, count: Tensor) -> Tensor:
        """(B, T) -> (B, T, C)"""
        example = self.wte[0].expand(*input_ids.shape, -1)  # a view: its shape is all that is wanted
        inputs = [input_ids, start, count, self.wte, self.wpe]
        return poptorch.custom_op(inputs, "EmbedTokens", native.DOMAIN, 1, example_outputs=[example])[0]


class _NativeProduct(nn.Module):
    """The last token of each row, behind a layer norm if there is one, times a matrix (outputs, C)."""

    def __init__(self, matrix: Tensor, norm: nn.Module, precision: str, epsilon: float) -> None:
        super().__init__()
        self.attributes = {
            "vocab_size": matrix.shape[0],
            "precision": native.PRECISIONS.index(precision),
            "epsilon": epsilon,
        }
        if isinstance(norm, nn.LayerNorm):
            vectors = norm.weight.detach(), norm.bias.detach()
        else:
            self.attributes["norms"] = 0
            vectors = (matrix.new_zeros(matrix.shape[1]),) * 2  # nobody looks at them
        self.register_buffer("norm", vectors[0].float())
        self.register_buffer("norm_bias", vectors[1].float())
        self.register_buffer("weights", native.pack([matrix.detach()], precision))

    def forward(self, hidden: Tensor, count: Tensor) -> Tensor:
        """(B, T, C) -> (B, outputs)"""
        inputs = [hidden, count, self.norm, self.norm_bias, self.weights]
        example = hidden[:, 0, :1].expand(-1, self.attributes["vocab_size"])
        return poptorch.custom_op(
            inputs, "NextLogits", native.DOMAIN, 1, example_outputs=[example], attributes=self.attributes
        )[0]


class _NativeHead(_NativeProduct):
    """The head; that of a factorised embedding behind a projection to its width."""

    def __init__(self, gpt2: GPT2LMHeadModel, precision: str) -> None:
        config, transformer = gpt2.config, gpt2.transformer
        head = gpt2.lm_head.weight[: config.real_vocab_size]
        projected, epsilon = config.embedding_size is not None, config.layer_norm_epsilon
        super().__init__(head, nn.Identity() if projected else transformer.ln_f, precision, epsilon)
        self.project = None
        if projected:
            matrix = transformer.project_out.weight.t()  # (E, C)
            self.project = _NativeProduct(matrix, transformer.ln_f, precision, epsilon)
            self.register_buffer("project_bias", transformer.project_out.bias.detach().float())

    def forward(self, hidden: Tensor, count: Tensor) -> Tensor:
        """(B, T, C) -> (B, V)"""
        if self.project is not None:
            hidden = (self.project(hidden, count) + self.project_bias).unsqueeze(1)  # (B, 1, E)
            count = count.clamp(max=1)
        return super().forward(hidden, count)


class NativeSteps(nn.Module):
    """Steps by the operators of custom_ops/decode_blocks.py, one for the blocks of each IPU.

    Holds packed copies of the weights in `precision` (of native.PRECISIONS) and nothing of `gpt2`; of a block that all
    layers share one, with an operator for each layer. Raises ValueError if int8 does not fit the model's sizes.
    """

    def __init__(self, gpt2: GPT2LMHeadModel, layers_per_ipu: Sequence[int], precision: str) -> None:
        super().__init__()
        self.precision = precision
        self.embedding = poptorch.BeginBlock(_NativeEmbedding(gpt2), "embeddings", ipu_id=0)
        self.blocks = nn.ModuleList()
        first = 0
        shared = gpt2.config.share_layers
        self.uses = gpt2.config.n_layer if shared else 1  # of each of the blocks
        for ipu, layers in enumerate(layers_per_ipu):
            if layers:
                blocks = _NativeBlocks(gpt2, first, first + (1 if shared else layers), precision)
                name = f"layers {first}-{first + layers - 1}"
                self.blocks.append(poptorch.BeginBlock(blocks, name, ipu_id=ipu))
            first += layers
        self.head = poptorch.BeginBlock(_NativeHead(gpt2, precision), "head", ipu_id=0)

    @staticmethod
    def best(logits: Tensor, seen: Tensor | None, k: int, penalty: float) -> tuple[Tensor, Tensor, Tensor]:
        """As top_scores."""
        told = unlooked_at(logits) if seen is None else seen
        examples = [logits[:, :k], logits[:, :k].to(torch.int32), logits[:, :k]]
        attributes = {"k": k, "penalty": penalty}
        scores, ids, log_probs = poptorch.custom_op(
            [logits, told], "TopScores", native.DOMAIN, 1, example_outputs=examples, attributes=attributes
        )
        return scores, ids, log_probs

    def new_caches(self, batch: int, slots: int, device: torch.device | None = None) -> list[Tensor]:
        """Zeros for keys and values of each operator: (layers, B, H, S, D); int16 holds float16."""
        dtype = torch.float32 if self.precision == "float32" else torch.int16
        shapes = [(part.layers, batch, part.n_head, slots, part.head_size) for part in self._parts()]
        return [torch.zeros(shape, dtype=dtype, device=device) for shape in shapes * 2]

    def forward(self, input_ids: Tensor, start: Tensor, count: Tensor, caches: Sequence[Tensor]) -> Tensor:
        """As ModuleSteps.forward."""
        return self.head(self.hidden(input_ids, start, count, caches), count)

    def hidden(self, input_ids: Tensor, start: Tensor, count: Tensor, caches: Sequence[Tensor]) -> Tensor:
        """As ModuleSteps.hidden."""
        hidden, parts = self.embedding(input_ids, start, count), self._parts()
        for part, keys, values in zip(parts, caches, caches[len(parts) :]):
            hidden = part(hidden, start, count, keys, values)
        return hidden

    def logits(self, hidden: Tensor, count: Tensor) -> Tensor:
        """As ModuleSteps.logits."""
        return self.head(hidden, count)

    def _parts(self) -> list[nn.Module]:
        """The operators in the order of the layers."""
        return [part for part in self.blocks for _ in range(self.uses)]
