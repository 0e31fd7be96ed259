"""Attention written with plain operators, replaced by torch's fused kernel where that is exact.

The pattern is softmax(where(mask, q k^T * scale, low)) v with an optional dropout. It is replaced when the mask is a
constant of the program and causal. A bias of the scores goes into the kernel as further columns if it is ALiBi's, slope
times distance (alibi.py), or depends on the key alone, as a mask of padding does (key_bias.py). The (B, H, T, T) scores
are then never held; with dropout on a CPU, where torch's kernel has none, dropout_attention.py takes its place and
holds them once. What is left of torch's kernel in the end, the program's own calls of it among that, goes to ours where
that is faster, and our kernel takes a bias without columns (biased_attention.py).
"""

from __future__ import annotations

import dataclasses
import operator
from collections.abc import Callable

import torch

from ...device import alibi, half_products, key_bias, native
from ...device.alibi import LONGEST, with_alibi
from ...device.biased_attention import biased_attention
from ...device.dropout_attention import causal_attention, dropout_attention
from ...device.key_bias import with_key_bias
from ..tracing.constants import constant_value
from ..tracing.export import TracedGraph
from ..tracing.writes import origins, written
from .half_products import hand_on, is_half
from .patterns import CASTS, erase, only_use, overwritten

aten = torch.ops.aten
_FUSED = aten.scaled_dot_product_attention.default
_SHORTEST = 64  # tokens; below, the calls take more time than the kernel saves
_LOW = -1e4  # masked scores at or below this vanish in the softmax


@dataclasses.dataclass
class _Match:
    query: torch.fx.Node  # (B, H, T, d)
    key: torch.fx.Node
    value: torch.fx.Node
    scale: float
    dropout: float
    slopes: tuple[float, ...] | None  # of ALiBi, one a head
    of_keys: torch.fx.Node | None  # a bias of each key, (B or 1, 1, 1, T)
    first: torch.fx.Node  # the product of queries and keys
    replaced: set[torch.fx.Node]  # the nodes of the pattern before the last product


def fuse_attention(traced: TracedGraph, device: torch.device, philox: bool = True) -> int:
    """Replace every causal attention found in `traced`; returns how many there were. `philox` is its dropout's."""
    replaced: set[torch.fx.Node] = set()
    count = 0
    origin = origins(traced.graph.nodes)
    changed = written(traced.graph.nodes, traced.modules, origin)
    for node in list(traced.graph.nodes):
        match = _match(traced, node, origin, changed) if node.target is aten.matmul.default else None
        if match is None:
            continue
        operands: tuple[torch.fx.Node, ...] = (match.query, match.key, match.value)
        with traced.graph.inserting_before(node):
            if match.slopes is not None:
                further = (match.slopes, match.scale)
                operands = _with_columns(traced.graph, node, with_alibi, alibi.COLUMNS, operands, further)
            if match.of_keys is not None:
                further = (match.of_keys, match.scale, is_half(match.first))
                operands = _with_columns(traced.graph, node, with_key_bias, key_bias.COLUMNS, operands, further)
            if match.dropout and device.type == "cpu":
                further = (match.dropout, match.scale, philox)
                fused = traced.graph.call_function(dropout_attention, (*operands, *further))
            else:
                fused = traced.graph.call_function(
                    _FUSED,
                    (*operands, None, match.dropout, True),
                    {"scale": match.scale},
                )
        fused.meta.update(node.meta)
        hand_on(match.first if is_half(node) else node, fused)  # it is half if both products are
        result = fused if operands[2] is match.value else _without_columns(traced.graph, node, fused, operands[2])
        node.replace_all_uses_with(result)
        origin[fused] = origin[result] = origin[node]  # what is a view of the one is now a view of the other
        replaced |= match.replaced | {node}
        count += 1
    erase(traced, replaced)
    return count


def take_kernel(traced: TracedGraph, device: torch.device) -> int:
    """Causal attention without dropout by our kernel where there is one for it; returns how often.

    Wherever ours serves biases of the scores need no columns. For when the products of half are what they will be.
    """
    found = [node for node in traced.graph.nodes if node.target is _FUSED and _takes_kernel(node)]
    if device.type != "cpu" or not native.available():
        return 0
    for node in found:
        node.args, node.kwargs, node.target = (*node.args[:3], node.kwargs.get("scale")), {}, causal_attention
    erase(traced, {old for node in list(traced.graph.nodes) for old in _take_bias(traced.graph, node)})
    return len(found)


def _take_bias(graph: torch.fx.Graph, node: torch.fx.Node) -> list[torch.fx.Node]:
    """Attention by our kernel over operands with columns for a bias becomes one with a bias, over those without.

    Returns the nodes that nobody reads any more.
    """
    settings = _of_own_kernel(node)
    operands, of_keys, slopes = node.args[:3], None, None
    while settings is not None and (together := _origin_of_columns(operands)) is not None:
        operands, bias = together.args[:3], together.args[3]
        if together.target is with_alibi:
            slopes = bias
        else:
            of_keys = bias
    if of_keys is None and slopes is None:
        return []
    columns = list(node.users)  # _without_columns()
    with graph.inserting_before(node):
        context = graph.call_function(biased_attention, (*map(_unwidened, operands), of_keys, slopes, *settings))
    context.meta.update({**node.meta, "val": columns[0].meta["val"]})
    for old in columns:
        old.replace_all_uses_with(context)
    return columns


def _of_own_kernel(node: torch.fx.Node) -> tuple[object, ...] | None:
    """Scale, dropout and 16-bit type of attention that our kernel computes; None of anything else."""
    if node.target is causal_attention:
        return node.args[3], 0.0, None
    if node.target in (dropout_attention, half_products.attention_with_dropout):
        dropout, scale, philox, *dtype = node.args[3:]
        return (scale, dropout, *(dtype or (None,))) if philox else None
    if node.target is half_products.attention:
        mask, dropout, causal, dtype, native_products = node.args[3:8]
        own = causal and mask is None and not dropout and native_products and half_products.has_kernel(dtype)
        return (node.kwargs.get("scale"), 0.0, dtype) if own else None
    return None


def _origin_of_columns(operands: tuple[torch.fx.Node, ...]) -> torch.fx.Node | None:
    """The operation that added columns to query, key and value, if one did."""
    parts = [_unwidened(operand) for operand in operands]
    if any(part.target is not operator.getitem for part in parts):
        return None
    sources = {part.args[0] for part in parts}
    together = next(iter(sources))
    return together if len(sources) == 1 and together.target in (with_alibi, with_key_bias) else None


def _unwidened(operand: torch.fx.Node) -> torch.fx.Node:
    """What was widened for the columns' sake, in 16 bits."""
    narrow = operand.target in CASTS and operand.args[1:] == (torch.float32,) and not operand.kwargs
    value = operand.args[0].meta.get("val") if narrow else None
    return operand.args[0] if value is not None and value.dtype in (torch.float16, torch.bfloat16) else operand


def _takes_kernel(node: torch.fx.Node) -> bool:
    given = dict(zip(("attn_mask", "dropout_p", "is_causal"), node.args[3:], strict=False), **node.kwargs)
    if given.get("attn_mask") is not None or given.get("dropout_p") or given.get("enable_gqa"):
        return False
    query, key, value = (each.meta["val"] for each in node.args[:3])
    alike = query.dim() == 4 and query.shape == key.shape and query.shape[:3] == value.shape[:3]
    plain = all(each.dtype == torch.float32 for each in (query, key, value))
    return bool(given.get("is_causal")) and alike and plain and query.shape[2] >= _SHORTEST


def _match(
    traced: TracedGraph,
    product: torch.fx.Node,
    origin: dict[torch.fx.Node, torch.fx.Node],
    changed: set[torch.fx.Node],
) -> _Match | None:
    """Read the pattern backwards from the product of probabilities and values."""
    probabilities, value = product.args
    dropout = 0.0
    dropped = only_use(probabilities, aten.dropout.default)
    if dropped is not None:
        dropout = float(dropped.args[1]) if dropped.args[2] else 0.0
        if dropout >= 1.0:
            return None
        probabilities = dropped.args[0]
    softmax = only_use(probabilities, aten.softmax.int)
    if softmax is None or softmax.args[1] not in (-1, 3) or len(softmax.args) > 2:
        return None
    masked = only_use(softmax.args[0], aten.where.self, aten.where.ScalarOther)
    if masked is None:
        return None
    mask, scores, low = masked.args
    sums, biases = [], []
    while (biased := only_use(scores, aten.add.Tensor)) is not None:
        if len(biased.args) != 2 or biased.kwargs:
            return None
        scores, bias = biased.args
        sums.append(biased)
        biases.append(bias)
    scaled = only_use(scores, aten.mul.Tensor, aten.div.Tensor)
    if scaled is None or not isinstance(scaled.args[1], (int, float)):
        return None
    scale = scaled.args[1] if scaled.target is aten.mul.Tensor else 1 / scaled.args[1]
    inner = only_use(scaled.args[0], aten.matmul.default)
    transposed = only_use(inner.args[1], aten.transpose.int) if inner is not None else None
    if transposed is None or sorted(d % 4 for d in transposed.args[1:]) != [2, 3]:
        return None
    operands = query, key, value = inner.args[0], transposed.args[0], value
    shapes = [node.meta["val"].shape for node in operands]
    if any(len(shape) != 4 for shape in shapes) or shapes[0] != shapes[1] or shapes[1][2] != shapes[2][2]:
        return None
    of_keys = [bias for bias in biases if _is_of_keys(bias, query)]
    slopes = [_alibi_slopes(traced, bias, shapes[0], changed) for bias in biases if bias not in of_keys]
    if len(of_keys) > 1 or len(slopes) > 1 or None in slopes:
        return None
    read = (*operands, *of_keys)
    if len({node.meta["val"].dtype for node in read}) > 1 or overwritten(traced, read, inner, product, origin):
        return None
    # A key may be lowered to what masks: what the future has must then be lower still.
    if not _vanishes(traced, low, changed, 2 * _LOW if of_keys else _LOW):
        return None
    if not _is_causal(traced, mask, shapes[0][2], changed):
        return None
    replaced = {node for node in (dropped, softmax, masked, *sums, scaled, inner) if node is not None}
    only = [found[0] if found else None for found in (slopes, of_keys)]
    return _Match(query, key, value, float(scale), dropout, *only, inner, replaced)


def _is_of_keys(bias: object, query: torch.fx.Node) -> bool:
    """Whether `bias` is one for each key, whatever the head and the query: (B or 1, 1, 1, T)."""
    if not isinstance(bias, torch.fx.Node) or not isinstance(bias.meta.get("val"), torch.Tensor):
        return False
    shape, of_query = bias.meta["val"].shape, query.meta["val"].shape
    return len(shape) == 4 and shape[0] in (1, of_query[0]) and tuple(shape[1:]) == (1, 1, of_query[2])


def _alibi_slopes(
    traced: TracedGraph, bias: object, shape: torch.Size, changed: set[torch.fx.Node]
) -> tuple[float, ...] | None:
    """The slope of each head if `bias` is a constant, (H, T, T), of slopes times distances; else None."""
    _, heads, length, _ = shape
    if not isinstance(bias, torch.fx.Node) or not 1 < length <= LONGEST:
        return None
    if bias.meta["val"].shape[-3:] != (heads, length, length) or bias.meta["val"].numel() != heads * length**2:
        return None
    value = constant_value(traced, bias, changed)
    if value is None:
        return None
    value = value.reshape(heads, length, length).float()
    places = torch.arange(length, dtype=torch.float32)
    slopes = -value[:, 1, 0]
    expected = slopes.view(-1, 1, 1) * (places - places.unsqueeze(1))  # at most 0 where something is seen
    exact = 2e-3 if bias.meta["val"].dtype in (torch.float16, torch.bfloat16) else 1e-6
    return tuple(slopes.tolist()) if torch.allclose(value.tril(), expected.tril(), rtol=exact, atol=0.0) else None


def _with_columns(
    graph: torch.fx.Graph,
    product: torch.fx.Node,
    function: Callable[..., tuple[torch.Tensor, ...]],
    columns: int,
    operands: tuple[torch.fx.Node, ...],
    further: tuple[object, ...],
) -> tuple[torch.fx.Node, ...]:
    """Queries, keys and values with the columns that make a bias; `product` is what they are for."""
    together = graph.call_function(function, (*operands, *further))
    parts = tuple(graph.call_function(operator.getitem, (together, index)) for index in range(3))
    for part, operand in zip(parts, operands, strict=True):
        value = operand.meta["val"]
        part.meta.update({**product.meta, "val": value.new_empty((*value.shape[:-1], value.shape[-1] + columns))})
    together.meta.update({**product.meta, "val": tuple(part.meta["val"] for part in parts)})
    return parts


def _without_columns(
    graph: torch.fx.Graph, product: torch.fx.Node, fused: torch.fx.Node, values: torch.fx.Node
) -> torch.fx.Node:
    """What `product` gave, of a kernel whose `values` have the columns too."""
    value = product.meta["val"]
    fused.meta["val"] = value.new_empty((*value.shape[:-1], values.meta["val"].shape[-1]))
    with graph.inserting_after(fused):
        result = graph.call_function(aten.slice.Tensor, (fused, -1, 0, value.shape[-1]))
    result.meta.update(product.meta)
    return result


def _vanishes(traced: TracedGraph, low: object, changed: set[torch.fx.Node], most: float) -> bool:
    """Whether what masked scores are is `most` or less."""
    if isinstance(low, torch.fx.Node):
        value = constant_value(traced, low, changed)
        return value is not None and bool((value <= most).all())
    return isinstance(low, (int, float)) and low <= most


def _is_causal(traced: TracedGraph, mask: object, length: int, changed: set[torch.fx.Node]) -> bool:
    value = constant_value(traced, mask, changed) if isinstance(mask, torch.fx.Node) else None
    if value is None or value.dtype != torch.bool or value.numel() != length * length:
        return False
    return torch.equal(value.reshape(length, length), torch.ones(length, length, dtype=torch.bool).tril())
