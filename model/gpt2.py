"""GPT-2 (Radford et al., 2019), clean: no devices, no flags, no vendor calls.

Module and parameter names are Hugging Face's, so the state dict is that of transformers'
GPT2LMHeadModel. Placement, recomputation and serialisation are passes over this model (hooks on
wte, wpe, h[i], ln_f and lm_head, each called as a module).

Shapes: B samples, T positions, C = n_embd, H heads of D = C / H, V rows of the vocabulary.
"""

from __future__ import annotations

import math
from typing import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from model.config import GPT2Config
from model.documents import positions_in_documents
from model.kv_cache import LayerCache

# Score of a position that must not be seen, logit of a padding row. Softmax turns it into exactly 0
# in half, float32 and float64. Not the lowest half (-65504): softmax subtracts the row's largest
# value from it, and there it would overflow.
MASKED = -1.0e4


class Conv1D(nn.Module):
    """A linear layer whose weight is stored (in, out), as in GPT-2's released checkpoints."""

    def __init__(self, n_in: int, n_out: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(n_in, n_out))
        self.bias = nn.Parameter(torch.zeros(n_out))

    def forward(self, x: Tensor) -> Tensor:
        """(..., n_in) -> (..., n_out)"""
        return F.linear(x, self.weight.t(), self.bias)


def at_positions(x: Tensor, positions: Tensor) -> Tensor:
    """(B, T, C), (B, P) int64 -> (B, P, C)"""
    return torch.gather(x, 1, positions.unsqueeze(-1).expand(-1, -1, x.shape[-1]))


class Attention(nn.Module):
    """Causal self-attention of the block number `layer`, from 0 on.

    Plain operations in one fixed order, the only attention of the program: back ends without a fused
    kernel run it as it is, others recognise the pattern.
    """

    def __init__(self, config: GPT2Config, layer: int) -> None:
        super().__init__()
        self.n_head, self.head_size = config.n_head, config.head_size
        self.scale = 1.0 / math.sqrt(self.head_size) / config.score_divisor(layer)
        self.upcast = config.reorder_and_upcast_attn
        self.c_attn = Conv1D(config.n_embd, 3 * config.n_embd)
        self.c_proj = Conv1D(config.n_embd, config.n_embd)
        self.attn_dropout = nn.Dropout(config.attn_pdrop)
        self.resid_dropout = nn.Dropout(config.resid_pdrop)
        # One mask a layer (1 byte x n_positions^2): with blocks on several devices none has to travel.
        mask = torch.ones(config.n_positions, config.n_positions, dtype=torch.bool).tril()
        self.register_buffer("mask", mask.view(1, 1, config.n_positions, config.n_positions), persistent=False)

    def forward(
        self,
        x: Tensor,
        positions: Tensor | None = None,
        cache: LayerCache | None = None,
        documents: Tensor | None = None,
    ) -> Tensor:
        """(B, T, C) -> (B, T, C), or (B, P, C) for P `positions` (B, P): their queries, every key and value.

        With a `cache` (and no `positions`) the queries see what it holds, these T tokens included. With `documents`
        (B, T) (and no `cache`) they see the keys of the same number only.
        """
        B, T, C = x.shape
        if positions is None:
            seen = self.mask[..., :T, :T]  # (1, 1, T, T)
            q, k, v = (self._heads(part) for part in self.c_attn(x).split(C, 2))
        else:
            seen = self.mask[0, 0, :, :T][positions].unsqueeze(1)  # (B, 1, P, T)
            weight, bias = self.c_attn.weight, self.c_attn.bias  # (C, 3C), (3C,): queries, keys, values
            q = self._heads(F.linear(at_positions(x, positions), weight[:, :C].t(), bias[:C]))
            k, v = (self._heads(part) for part in F.linear(x, weight[:, C:].t(), bias[C:]).split(C, 2))
        if documents is not None:
            askers = documents if positions is None else torch.gather(documents, 1, positions)
            seen = seen & (askers[:, None, :, None] == documents[:, None, None, :])  # (B, 1, T or P, T)
        if cache is not None:
            k, v, seen = cache.extend(k, v)  # (B, H, S, D) twice, (B, 1, T, S)
        if self.upcast:
            q, k = q.float(), k.float()
        scores = torch.matmul(q, k.transpose(-1, -2)) * self.scale  # (B, H, T or P, T or S)
        scores = torch.where(seen, scores, MASKED)
        probs = torch.softmax(scores, dim=-1)
        probs = self.attn_dropout(probs.to(v.dtype) if self.upcast else probs)
        context = torch.matmul(probs, v)  # (B, H, T or P, D)
        return self.resid_dropout(self.c_proj(context.transpose(1, 2).reshape(B, -1, C)))

    def _heads(self, part: Tensor) -> Tensor:
        """(B, T, C) -> (B, H, T, D)"""
        return part.view(part.shape[0], part.shape[1], self.n_head, self.head_size).transpose(1, 2)


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
    """One transformer layer, layer norm first. `layer` is its number, from 0 on."""

    def __init__(self, config: GPT2Config, layer: int) -> None:
        super().__init__()
        self.ln_1 = nn.LayerNorm(config.n_embd, eps=config.layer_norm_epsilon)
        self.attn = Attention(config, layer)
        self.ln_2 = nn.LayerNorm(config.n_embd, eps=config.layer_norm_epsilon)
        self.mlp = MLP(config)

    def forward(
        self,
        x: Tensor,
        positions: Tensor | None = None,
        cache: LayerCache | None = None,
        documents: Tensor | None = None,
    ) -> Tensor:
        """(B, T, C) -> (B, T, C), or (B, P, C) if only these P positions (B, P) are wanted."""
        attended = self.attn(self.ln_1(x), positions, cache, documents)
        # The dropout's output stands on the left: the residual-add pattern of custom_ops looks for it there.
        x = attended + (x if positions is None else at_positions(x, positions))
        return self.mlp(self.ln_2(x)) + x


class GPT2Model(nn.Module):
    """Embeddings, blocks and the last layer norm: token ids to hidden states."""

    def __init__(self, config: GPT2Config, initialize: bool = True) -> None:
        super().__init__()
        self.config = config
        self.wte = nn.Embedding(config.vocab_size, config.n_embd)
        self.wpe = nn.Embedding(config.n_positions, config.n_embd)
        self.drop = nn.Dropout(config.embd_pdrop)
        self.h = nn.ModuleList(Block(config, layer) for layer in range(config.n_layer))
        self.ln_f = nn.LayerNorm(config.n_embd, eps=config.layer_norm_epsilon)
        if initialize:
            self.initialize()

    @torch.no_grad()
    def initialize(self) -> None:
        """Draws the weights from torch's global generator: N(0, initializer_range).

        Projections into the residual stream are narrower by 1 / sqrt(2 n_layer), one for each of the
        2 n_layer sums into it (GPT-2 paper, section 2.3). Biases are 0 and padding rows too.
        """
        std = self.config.initializer_range
        residual_std = std / math.sqrt(2 * self.config.n_layer)
        for name, parameter in self.named_parameters():
            if parameter.dim() > 1:  # biases and layer norms are constants, set where they are made
                parameter.normal_(0.0, residual_std if name.endswith("c_proj.weight") else std)
        self.wte.weight[self.config.real_vocab_size :] = 0.0

    def forward(
        self,
        input_ids: Tensor,
        position_ids: Tensor | None = None,
        wanted: Tensor | None = None,
        caches: Sequence[LayerCache] | None = None,
        documents: Tensor | None = None,
    ) -> Tensor:
        """Hidden states after the last layer norm.

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
            (B, T, C), or (B, P, C) for P wanted positions

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
        x = self.drop(self.wte(input_ids) + self.wpe(position_ids))  # (B, T, C)
        last = len(self.h) - 1
        for index, block in enumerate(self.h):
            positions = wanted if index == last else None
            x = block(x, positions, None if caches is None else caches[index], documents)
        return self.ln_f(x)


def project_onto(hidden: Tensor, weight: Tensor) -> Tensor:
    """(B, T, C), (V, C) -> (B, T, V)"""
    return F.linear(hidden, weight)


class LMHead(nn.Module):
    """Hidden states to logits with the embedding's own weight.

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
        """(B, T, C) -> (B, T, V)"""
        logits = self.project(hidden, self.weight)
        if self.padding_bias is not None:
            logits.add_(self.padding_bias)
        return logits


class GPT2LMHeadModel(nn.Module):
    """GPT-2 with its tied head: token ids to logits.

    `initialize=False` leaves the matrices unset, for a caller that fills all of them.
    """

    def __init__(self, config: GPT2Config, initialize: bool = True) -> None:
        super().__init__()
        self.config = config
        self.transformer = GPT2Model(config, initialize)
        self.lm_head = LMHead(self.transformer.wte.weight, config.real_vocab_size)

    def forward(self, input_ids: Tensor, position_ids: Tensor | None = None) -> Tensor:
        """Logits of the next token at every position: (B, T) -> (B, T, V). Arguments as GPT2Model.forward."""
        return self.lm_head(self.transformer(input_ids, position_ids))
