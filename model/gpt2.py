"""GPT-2 (Radford et al., 2019), clean: no devices, no flags, no vendor calls.

Module and parameter names are Hugging Face's, so the state dict is that of transformers'
GPT2LMHeadModel. Placement, recomputation and serialisation are passes over this model (hooks on
wte, wpe, h[i], ln_f and lm_head, each called as a module). Its variants are fields of GPT2Config; what
one of them lacks is an Identity or None.

Shapes: B samples, T positions, C = n_embd, H heads of D = C / H, V rows of the vocabulary, E columns of the embeddings
(C unless they are factorised).
"""

from __future__ import annotations

import math
from typing import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from model.attention import MASKED, Attention, Conv1D, at_positions, padding_scores
from model.config import GPT2Config
from model.documents import positions_in_documents
from model.initialization import initialize as draw_weights
from model.kv_cache import LayerCache
from model.positions import SinusoidalEmbedding


class MLP(nn.Module):
    """The feed-forward half of a block."""

    def __init__(self, config: GPT2Config) -> None:
        super().__init__()
        self.c_fc = Conv1D(config.n_embd, config.inner_size)
        self.c_proj = Conv1D(config.inner_size, config.n_embd)
        self.act = {"gelu": nn.GELU(), "gelu_new": nn.GELU("tanh"), "relu": nn.ReLU()}[config.activation_function]
        self.dropout = nn.Dropout(config.resid_pdrop)

    def forward(self, x: Tensor) -> Tensor:
        """(B, T, C) -> (B, T, C)"""
        return self.dropout(self.c_proj(self.act(self.c_fc(x))))


class Block(nn.Module):
    """One transformer layer. `layer` is its number, from 0 on. With `shared` it has the parts of that block."""

    def __init__(self, config: GPT2Config, layer: int, shared: Block | None = None) -> None:
        super().__init__()
        self.parallel, self.norm_first = config.parallel_residual, config.norm_position == "pre"
        if shared is not None:
            self.ln_1, self.attn, self.ln_2, self.mlp = shared.ln_1, shared.attn, shared.ln_2, shared.mlp
            return
        self.ln_1 = nn.LayerNorm(config.n_embd, eps=config.layer_norm_epsilon)
        self.attn = Attention(config, layer)
        self.ln_2 = None if self.parallel else nn.LayerNorm(config.n_embd, eps=config.layer_norm_epsilon)
        self.mlp = MLP(config)

    def forward(
        self,
        x: Tensor,
        positions: Tensor | None = None,
        cache: LayerCache | None = None,
        documents: Tensor | None = None,
        padding: Tensor | None = None,
    ) -> Tensor:
        """(B, T, C) -> (B, T, C), or (B, P, C) if only these P positions (B, P) are wanted."""
        given = self.ln_1(x) if self.norm_first else x
        attended = self.attn(given, positions, cache, documents, padding)
        if positions is not None:
            x = at_positions(x, positions)
        if self.parallel:
            return self.mlp(given if positions is None else at_positions(given, positions)) + attended + x
        # The dropout's output stands on the left: the residual-add pattern of custom_ops looks for it there.
        x = attended + x
        if self.norm_first:
            return self.mlp(self.ln_2(x)) + x
        x = self.ln_1(x)
        return self.ln_2(self.mlp(x) + x)


class GPT2Model(nn.Module):
    """Embeddings, blocks and the last layer norm: token ids to hidden states."""

    def __init__(self, config: GPT2Config, initialize: bool = True) -> None:
        super().__init__()
        self.config = config
        width, narrow, eps = config.n_embd, config.embedding_width, config.layer_norm_epsilon
        projected = config.embedding_size is not None
        self.embedding_scale = math.sqrt(width) if config.scale_embedding else None
        self.wte = nn.Embedding(config.vocab_size, narrow)
        self.ln_e = nn.LayerNorm(narrow, eps=eps) if config.embedding_norm else nn.Identity()
        if config.position_embedding == "learned":
            self.wpe: nn.Module | None = nn.Embedding(config.n_positions, narrow)
        elif config.position_embedding == "sinusoidal":
            self.wpe = SinusoidalEmbedding(config.n_positions, narrow)
        else:
            self.wpe = None  # attention knows positions
        self.project_in = Conv1D(narrow, width) if projected else nn.Identity()
        self.drop = nn.Dropout(config.embd_pdrop)
        first = Block(config, 0)
        shared = first if config.share_layers else None
        self.h = nn.ModuleList([first, *(Block(config, layer, shared) for layer in range(1, config.n_layer))])
        self.ln_f = nn.LayerNorm(width, eps=eps) if config.final_norm else nn.Identity()
        self.project_out = Conv1D(width, narrow) if projected else nn.Identity()
        if initialize:
            draw_weights(self, config)

    def forward(
        self,
        input_ids: Tensor,
        position_ids: Tensor | None = None,
        wanted: Tensor | None = None,
        caches: Sequence[LayerCache] | None = None,
        documents: Tensor | None = None,
    ) -> Tensor:
        """Hidden states after the last layer norm, in the width of the head.

        Args:
            input_ids: (B, T) integers below vocab_size.
            position_ids: (B, T) or (1, T) integers below n_positions; None: 0 ... T - 1.
            wanted: (B, P) int64, indices below T of the hidden states to return; None: all. The last block then
                computes queries and MLP for these only.
            caches: keys and values of earlier tokens, one a layer, to which these T are added; with position_ids and
                without `wanted`.
            documents: (B, T) integers that never fall along a row (model/documents.py): tokens see only those of the
                same number, and positions count from its first one; without position_ids and caches. None: a row is
                one document.

        Returns:
            (B, T, E), or (B, P, E) for P wanted positions

        Raises:
            ValueError: if T exceeds n_positions.
        """
        T = input_ids.shape[1]
        if T > self.config.n_positions:
            raise ValueError(
                f"input of {T} tokens, but the model has n_positions {self.config.n_positions}: "
                "shorten the input or build the model with a larger n_positions (--max-len)"
            )
        if documents is not None:
            position_ids = positions_in_documents(documents)  # (B, T)
        elif position_ids is None:
            position_ids = torch.arange(T, device=input_ids.device).unsqueeze(0)  # (1, T)
        x, padding = self.embed(input_ids, position_ids), None
        if self.config.padding_id is not None and caches is None:  # which have their own
            padding = padding_scores(input_ids == self.config.padding_id, x.dtype)  # (B, 1, 1, T)
        last = len(self.h) - 1
        for index, block in enumerate(self.h):
            positions = wanted if index == last else None
            x = block(x, positions, None if caches is None else caches[index], documents, padding)
        return self.project_out(self.ln_f(x))

    def embed(self, input_ids: Tensor, position_ids: Tensor) -> Tensor:
        """What the first block is given: (B, T), (B or 1, T) -> (B, T, C)"""
        x = self.ln_e(self.wte(input_ids))  # (B, T, E)
        if self.embedding_scale is not None:
            x = x * self.embedding_scale
        if self.wpe is not None:
            x = x + self.wpe(position_ids)
        return self.drop(self.project_in(x))


def project_onto(hidden: Tensor, weight: Tensor) -> Tensor:
    """(B, T, E), (V, E) -> (B, T, V)"""
    return F.linear(hidden, weight)


class LMHead(nn.Module):
    """Hidden states to logits with a (V, E) matrix: the token embedding's own, or one that is not tied to it.

    `project(hidden, weight)` makes the matrix product and may be replaced, by a serialised one for
    instance; it is handed the weight, so that copies of the module use their own. What it returns
    must be a new tensor that its backward does not need.

    The logits of padding rows are about -1e4. Their probability is then exactly 0 in half and in
    float32, and so is the gradient that cross-entropy sends to the rows. The logits are the largest
    tensor of the model (B x T x 50,272): adding a bias in place costs one pass over them and no
    memory, and its backward is free; filling a slice would copy the whole gradient.
    """

    def __init__(self, weight: nn.Parameter, real_vocab_size: int) -> None:
        super().__init__()
        self.weight = weight
        self.project: Callable[[Tensor, Tensor], Tensor] = project_onto
        padding_bias = None
        if real_vocab_size < weight.shape[0]:
            padding_bias = torch.zeros(weight.shape[0], dtype=weight.dtype, device=weight.device)
            padding_bias[real_vocab_size:] = MASKED
        self.register_buffer("padding_bias", padding_bias, persistent=False)

    def forward(self, hidden: Tensor) -> Tensor:
        """(B, T, E) -> (B, T, V)"""
        logits = self.project(hidden, self.weight)
        if self.padding_bias is not None:
            logits.add_(self.padding_bias)
        return logits


class GPT2LMHeadModel(nn.Module):
    """GPT-2 with its head: token ids to logits.

    `initialize=False` leaves the matrices unset, for a caller that fills all of them.
    """

    def __init__(self, config: GPT2Config, initialize: bool = True) -> None:
        super().__init__()
        self.config = config
        self.transformer = GPT2Model(config, initialize)
        tied = self.transformer.wte.weight
        weight = tied if config.tie_word_embeddings else nn.Parameter(torch.empty_like(tied))
        self.lm_head = LMHead(weight, config.real_vocab_size)
        if initialize and weight is not tied:
            draw_weights(self.lm_head, config)

    def forward(self, input_ids: Tensor, position_ids: Tensor | None = None) -> Tensor:
        """Logits of the next token at every position: (B, T) -> (B, T, V). Arguments as GPT2Model.forward."""
        return self.lm_head(self.transformer(input_ids, position_ids))
