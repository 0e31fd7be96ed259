"""EmbedTokens, DecodeBlocks, NextLogits (domain gpt2.decode): what they mean, in plain torch, and the packed weights.

A few tokens of each row of a batch go through blocks of GPT-2 over a static key/value cache, and the last of them
through the head. The time of such a step is the time to read the weights. decode_blocks_torch.cpp reads them at the
speed of the memory, from one buffer in which matrices lie (out, in) in float32, float16 or int8 (groups of 32 weights
with a float16 scale each, largest absolute value / 127). There are no such operators for IPUs: where the library that
was loaded lacks them, the model's own modules do the work.
"""

from __future__ import annotations

from typing import Any, Iterable, Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

DOMAIN, NAMESPACE = "gpt2.decode", "gpt2_decode"
PRECISIONS = ("float32", "float16", "int8")  # their index is the attribute `precision`
GROUP = 32  # int8 weights that share a scale
ALIGNMENT = 64  # bytes

# The matrices of a block in the order in which they are packed, and the vectors in theirs.
MATRICES = ("attn.c_attn.weight", "attn.c_proj.weight", "mlp.c_fc.weight", "mlp.c_proj.weight")
VECTORS = (
    *("ln_1.weight", "ln_1.bias", "attn.c_attn.bias", "attn.c_proj.bias"),
    *("ln_2.weight", "ln_2.bias", "mlp.c_fc.bias", "mlp.c_proj.bias"),
)


def available(variants: bool = False) -> bool:
    """Whether the library that was loaded has these operators (the one for IPUs has not).

    With `variants` that means parallel, slopes and norms too, which one built before they were known lacks.
    """
    namespace = getattr(torch.ops, NAMESPACE)
    if not hasattr(namespace, "DecodeBlocks") or not hasattr(namespace, "TopScores"):
        return False
    return not variants or "slopes" in str(namespace.DecodeBlocks.default._schema)


def quantise(matrix: Tensor) -> tuple[Tensor, Tensor]:
    """(n, k) float32 -> (n, k) int8 and (n, k / 32) float16 scales. Raises ValueError if 32 does not divide k."""
    n, k = matrix.shape
    if k % GROUP:
        raise ValueError(f"int8 weights need sizes that {GROUP} divides, and the model has a matrix with {k} columns")
    groups = matrix.reshape(n, k // GROUP, GROUP)
    scales = (groups.abs().amax(-1) / 127).half()
    steps = scales.float().clamp_min(torch.finfo(torch.float16).tiny).unsqueeze(-1)
    return (groups / steps).round_().clamp_(-127, 127).to(torch.int8).view(n, k), scales


def pack(matrices: Iterable[Tensor], precision: str) -> Tensor:
    """Matrices (n, k), one after the other, as bytes: each part of them on a multiple of 64."""
    parts: list[Tensor] = []
    for matrix in matrices:
        if precision == "int8":
            stored = quantise(matrix.float())
        else:
            stored = (matrix.to(getattr(torch, precision)),)
        for part in stored:
            flat = part.contiguous().view(-1).view(torch.uint8)
            parts += [flat, flat.new_zeros(-flat.numel() % ALIGNMENT)]
    return torch.cat(parts)


def pack_blocks(states: Iterable[Mapping[str, Tensor]], precision: str) -> tuple[Tensor, Tensor]:
    """State dicts of blocks -> packed matrices (uint8) and vectors (float32).

    A block with one layer norm, as with a parallel residual, has that in the place of the second.
    """
    matrices, vectors = [], []
    for state in states:
        matrices += [state[name].detach().t() for name in MATRICES]  # Conv1D stores (in, out)
        one_norm = "ln_2.weight" not in state
        names = [name.replace("ln_2", "ln_1") if one_norm else name for name in VECTORS]
        vectors += [state[name].detach().float() for name in names]
    return pack(matrices, precision), torch.cat(vectors)


class _Unpacked:
    """Reads a packed buffer again, as float32 matrices."""

    def __init__(self, data: Tensor, precision: int) -> None:
        self.data, self.precision, self.offset = data, PRECISIONS[precision], 0

    def _part(self, dtype: Any, *shape: int) -> Tensor:
        count = 1
        for size in shape:
            count *= size
        size = count * torch.empty(0, dtype=dtype).element_size()
        part = self.data[self.offset : self.offset + size].clone().view(dtype).view(shape)
        self.offset += -(-size // ALIGNMENT) * ALIGNMENT
        return part.float()

    def matrix(self, n: int, k: int) -> Tensor:
        if self.precision != "int8":
            return self._part(getattr(torch, self.precision), n, k)
        whole = self._part(torch.int8, n, k // GROUP, GROUP)
        return (whole * self._part(torch.float16, n, k // GROUP, 1)).view(n, k)


def embed_tokens(input_ids: Tensor, start: Tensor, count: Tensor, wte: Tensor, wpe: Tensor) -> Tensor:
    """(B, T) ids of which the first count[b] are tokens, at positions from start[b] on -> (B, T, C).

    What is not a token comes back as zeros here, and as anything from the native operator.
    """
    column = torch.arange(input_ids.shape[1])
    found = wte[input_ids.long()] + wpe[(start[:, None] + column).clamp(max=wpe.shape[0] - 1).long()]
    return torch.where((column < count[:, None]).unsqueeze(-1), found, 0.0)


def decode_blocks(
    hidden: Tensor,
    start: Tensor,
    count: Tensor,
    weights: Tensor,
    vectors: Tensor,
    keys: Tensor,
    values: Tensor,
    n_head: int,
    inner: int,
    precision: int,
    activation: str,
    epsilon: float,
    parallel: int = 0,
    slopes: Sequence[float] = (),
) -> Tensor:
    """(B, T, C) hidden states through all blocks -> (B, T, C); what is not a token as in embed_tokens.

    Args:
        start, count: (B,) the slot of each row's first token and how many of its T columns are tokens.
        weights, vectors: what pack_blocks gave.
        keys, values: (layers, B, n_head, slots, C / n_head) float32, or int16 that holds float16; changed in place.
        parallel: 1: the MLP reads the first layer norm too, and both are added in one sum; the second one is unused.
        slopes: of ALiBi, one a head; none: the scores have no bias.
    """
    act = {"gelu": F.gelu, "gelu_new": lambda x: F.gelu(x, approximate="tanh"), "relu": F.relu}[activation]
    result = torch.zeros_like(hidden)
    width = hidden.shape[-1]
    unpacked, vector = _Unpacked(weights, precision), 0
    cache_type = torch.float16 if keys.dtype == torch.int16 else torch.float32
    rows = {b: hidden[b, : int(count[b])] for b in range(hidden.shape[0]) if int(count[b])}
    for layer in range(keys.shape[0]):
        sizes = [width, width, 3 * width, width, width, width, inner, width]
        norm_1, norm_1_bias, in_bias, out_bias, norm_2, norm_2_bias, fc_bias, proj_bias = vectors[
            vector : vector + sum(sizes)
        ].split(sizes)
        vector += sum(sizes)
        shapes = ((3 * width, width), (width, width), (inner, width), (width, inner))
        attention_in, attention_out, mlp_in, mlp_out = (unpacked.matrix(*shape) for shape in shapes)
        for b, x in rows.items():
            begin, end = int(start[b]), int(start[b]) + x.shape[0]
            normed = F.layer_norm(x, (width,), norm_1, norm_1_bias, epsilon)
            projected = F.linear(normed, attention_in, in_bias)
            q, k, v = (part.view(-1, n_head, width // n_head).transpose(0, 1) for part in projected.split(width, 1))
            layer_keys, layer_values = (cache[layer, b].view(cache_type) for cache in (keys, values))
            layer_keys[:, begin:end], layer_values[:, begin:end] = k.to(cache_type), v.to(cache_type)
            visible = torch.ones(end - begin, end, dtype=torch.bool).tril(begin)
            if slopes:
                distance = torch.arange(end) - torch.arange(begin, end)[:, None]
                bias = distance * torch.tensor(slopes)[:, None, None]  # (H, T, S)
                visible = torch.where(visible, bias, -torch.inf)
            context = F.scaled_dot_product_attention(
                q, layer_keys[:, :end].float(), layer_values[:, :end].float(), visible
            )
            x = x + F.linear(context.transpose(0, 1).reshape(-1, width), attention_out, out_bias)
            read = normed if parallel else F.layer_norm(x, (width,), norm_2, norm_2_bias, epsilon)
            active = act(F.linear(read, mlp_in, fc_bias))
            rows[b] = x + F.linear(active, mlp_out, proj_bias)
    for b, x in rows.items():
        result[b, : x.shape[0]] = x
    return result


def next_logits(
    hidden: Tensor,
    count: Tensor,
    norm: Tensor,
    norm_bias: Tensor,
    weights: Tensor,
    vocab_size: int,
    precision: int,
    epsilon: float,
    norms: int = 1,
) -> Tensor:
    """Layer norm and head for the last token of each row: (B, T, C) hidden, (B,) count -> (B, vocab_size) logits.

    `norm` and `norm_bias` are those of ln_f, which with `norms` 0 are unused, `weights` pack([wte]). A row without
    tokens gives zeros and costs nothing.
    """
    width = hidden.shape[-1]
    last = (count.long() - 1).clamp(min=0)
    rows = hidden[torch.arange(hidden.shape[0]), last]
    head = _Unpacked(weights, precision).matrix(vocab_size, width)
    logits = F.linear(F.layer_norm(rows, (width,), norm, norm_bias, epsilon) if norms else rows, head)
    return torch.where(count.unsqueeze(1) > 0, logits, 0.0)
