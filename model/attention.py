"""Causal self-attention of GPT-2 and the layer it is made of. Shapes as in gpt2.py."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from model.config import GPT2Config
from model.kv_cache import LayerCache
from model.positions import alibi_bias, alibi_slopes

# Score of a position that must not be seen, logit of a padding row. Softmax turns it into exactly 0
# in half, float32 and float64. Not the lowest half (-65504): softmax subtracts the row's largest
# value from it, and there it would overflow.
MASKED = -1.0e4


class Conv1D(nn.Module):
    """A linear layer whose weight is stored (in, out), as in GPT-2's released checkpoints."""

    def __init__(self, n_in: int, n_out: int, bias: bool = True) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(n_in, n_out))
        self.bias = nn.Parameter(torch.zeros(n_out)) if bias else None

    def forward(self, x: Tensor) -> Tensor:
        """(..., n_in) -> (..., n_out)"""
        return F.linear(x, self.weight.t(), self.bias)


def padding_scores(padding: Tensor, dtype: torch.dtype) -> Tensor:
    """(B, T) bool -> (B, 1, 1, T), to be added to the scores of the keys: those that are padding are not seen.

    A query that sees nothing but padding sees that: its scores all fall alike. As a sum with what depends on the key
    alone it is part of a fused attention, where a mask of every sample's own is not.
    """
    return (padding.to(dtype) * MASKED)[:, None, None, :]


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
        self.n_head, self.head_size, self.size = config.n_head, config.head_size, config.attention_size
        self.scale = 1.0 / math.sqrt(self.head_size) / config.score_divisor(layer)
        self.upcast = config.reorder_and_upcast_attn
        self.masked = MASKED if config.padding_id is None else 3 * MASKED  # below that of a key that is padding
        self.c_attn = Conv1D(config.n_embd, 3 * self.size, config.attention_bias)
        self.c_proj = Conv1D(self.size, config.n_embd, config.attention_bias)
        self.attn_dropout = nn.Dropout(config.attn_pdrop)
        self.resid_dropout = nn.Dropout(config.resid_pdrop)
        # One mask a layer (1 byte x n_positions^2): with blocks on several devices none has to travel.
        mask = torch.ones(config.n_positions, config.n_positions, dtype=torch.bool).tril()
        self.register_buffer("mask", mask.view(1, 1, config.n_positions, config.n_positions), persistent=False)
        slopes = torch.tensor(alibi_slopes(self.n_head)) if config.position_embedding == "alibi" else None
        self.register_buffer("slopes", slopes, persistent=False)  # (H,)

    def forward(
        self,
        x: Tensor,
        positions: Tensor | None = None,
        cache: LayerCache | None = None,
        documents: Tensor | None = None,
        padding: Tensor | None = None,
    ) -> Tensor:
        """(B, T, C) -> (B, T, C), or (B, P, C) for P `positions` (B, P): their queries, every key and value.

        With a `cache` (and no `positions`) the queries see what it holds, these T tokens included. With `documents`
        (B, T) (and no `cache`) they see the keys of the same number only. `padding` is what padding_scores gives of the
        T keys (without a `cache`, which has its own).
        """
        B, T, _ = x.shape
        if positions is None:
            seen = self.mask[..., :T, :T]  # (1, 1, T, T)
            q, k, v = (self._heads(part) for part in self.c_attn(x).split(self.size, 2))
        else:
            seen = self.mask[0, 0, :, :T][positions].unsqueeze(1)  # (B, 1, P, T)
            q, k, v = self._projected_at(x, positions)
        if documents is not None:
            askers = documents if positions is None else torch.gather(documents, 1, positions)
            seen = seen & (askers[:, None, :, None] == documents[:, None, None, :])  # (B, 1, T or P, T)
        if cache is not None:
            k, v, seen = cache.extend(k, v)  # (B, H, S, D) twice, (B, 1, T, S)
            positions, padding = cache.positions, cache.padding
        if self.upcast:
            q, k = q.float(), k.float()
        scores = torch.matmul(q, k.transpose(-1, -2)) * self.scale  # (B, H, T or P, T or S)
        if self.slopes is not None:
            queries = torch.arange(T, device=x.device) if positions is None else positions
            scores = scores + alibi_bias(self.slopes.to(scores.dtype), queries, scores.shape[-1])
        if padding is not None:
            scores = scores + padding
        scores = torch.where(seen, scores, self.masked)
        probs = torch.softmax(scores, dim=-1)
        probs = self.attn_dropout(probs.to(v.dtype) if self.upcast else probs)
        context = torch.matmul(probs, v)  # (B, H, T or P, D)
        return self.resid_dropout(self.c_proj(context.transpose(1, 2).reshape(B, -1, self.size)))

    def _projected_at(self, x: Tensor, positions: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Queries (B, H, P, D) of these positions, keys and values (B, H, T, D) of all."""
        weight, bias = self.c_attn.weight, self.c_attn.bias  # (C, 3 H D), (3 H D,): queries, keys, values
        query_bias, other_bias = (None, None) if bias is None else (bias[: self.size], bias[self.size :])
        q = self._heads(F.linear(at_positions(x, positions), weight[:, : self.size].t(), query_bias))
        k, v = (self._heads(p) for p in F.linear(x, weight[:, self.size :].t(), other_bias).split(self.size, 2))
        return q, k, v

    def _heads(self, part: Tensor) -> Tensor:
        """(B, T, H D) -> (B, H, T, D)"""
        return part.view(part.shape[0], part.shape[1], self.n_head, self.head_size).transpose(1, 2)
