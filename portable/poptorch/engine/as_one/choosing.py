"""Which rule an operation has, if any."""

from __future__ import annotations

import math
import operator
from collections.abc import Collection

import torch

from ...device import float32_products, half_products, serialized
from ...device.alibi import with_alibi
from ...device.biased_attention import biased_attention
from ...device.computed_again import layer_norm, residual_sum
from ...device.dropout_attention import causal_attention, dropout_attention
from ...device.gelu import bias_gelu
from ...device.key_bias import with_key_bias
from ...device.linear_cross_entropy import linear_cross_entropy
from ...device.packed_linear import packed_linear
from ...device.residual_dropout import residual_dropout
from ...device.tied_embedding import tied_embedding
from ..tracing.writes import is_norm, written
from .rules import (
    Drawing,
    Dropout,
    Keyed,
    KeyedSamples,
    Linear,
    LinearCrossEntropy,
    MaskedSamples,
    OneByOne,
    Pointwise,
    Product,
    Rule,
    Samples,
    Unchanged,
)

aten = torch.ops.aten

_DROPOUTS = frozenset({aten.dropout.default, aten.feature_dropout.default, aten.alpha_dropout.default})
_ATTENTION = aten.scaled_dot_product_attention.default
# Products with a shared weight by functions of this package: x is the first operand.
_LINEAR_FUNCTIONS = frozenset({packed_linear, half_products.linear, float32_products.linear, float32_products.matmul})
PRODUCTS = _LINEAR_FUNCTIONS | {aten.linear.default, aten.addmm.default, aten.mm.default}
# Functions of this package that stand in graphs: where they draw, by their name.
_WITH_DROPOUT = frozenset({dropout_attention, half_products.attention_with_dropout})
_DRAWING_FUNCTIONS = _WITH_DROPOUT | {residual_dropout}
_EMBEDDINGS = frozenset({aten.embedding.default, tied_embedding})
_NORMS = frozenset({aten.layer_norm.default, layer_norm})
_UNCHANGED = _EMBEDDINGS | _NORMS | {bias_gelu, with_alibi, with_key_bias}
_ATTENTIONS = frozenset({_ATTENTION, causal_attention, half_products.attention, biased_attention})
_WITH_MASK = frozenset({_ATTENTION, half_products.attention})
_FUNCTIONS = (_DRAWING_FUNCTIONS | _LINEAR_FUNCTIONS) | {
    linear_cross_entropy,
    with_alibi,
    with_key_bias,
    half_products.matmul,
    half_products.addmm,
    half_products.attention,
    biased_attention,
    causal_attention,
    bias_gelu,
    layer_norm,
    residual_sum,
    tied_embedding,
}


def draws(node: torch.fx.Node) -> bool:
    """Whether an operation draws random numbers."""
    if node.target in _DRAWING_FUNCTIONS:
        return True
    if node.target is half_products.attention:
        return bool(node.args[4])
    if node.target is biased_attention:
        return bool(node.args[6])
    if torch.Tag.nondeterministic_seeded not in getattr(node.target, "tags", ()):
        return False
    if node.target in _DROPOUTS:
        return bool(node.args[2]) and node.args[1] != 0.0
    if node.target is _ATTENTION:
        return bool(_argument(node, 4, "dropout_p", 0.0))
    return True


def choose(node: torch.fx.Node, stacked: Collection[str]) -> Rule | str | None:
    """The rule for an operation of which some operands are `stacked`; None: it stays as it is; a text: it has none."""
    differing = [operand.name in stacked for operand in node.all_input_nodes]
    if node.target is operator.getitem:
        return None
    foreign = _foreign(node)
    if foreign:
        return foreign
    writes = written([node], {})
    if draws(node):
        if writes:
            return f"{_name(node)} draws random numbers into a tensor that is there already"
        return _drawing_rule(node)(node, stacked)
    if not any(differing):
        return None
    if any(target.name not in stacked for target in writes):
        return f"{_name(node)} writes what differs between micro-batches into what does not"
    return _rule(node)(node, stacked) if _rule_fits(node, stacked) else Rule(node, stacked)


def _foreign(node: torch.fx.Node) -> str:
    """Why nothing is known of an operation, if so."""
    if node.op != "call_function":
        return "forward() has a loop, a condition or an autograd.Function"
    if node.target in _FUNCTIONS:
        return ""
    if not isinstance(node.target, torch._ops.OpOverload):
        return f"{_name(node)} is Python"
    known = node.target.namespace == "aten" or node.target is serialized.OPERATOR
    if not known and torch.Tag.view_copy not in node.target.tags:
        return f"{_name(node)} is an operator of a library"
    if is_norm(node) and any(node.args[place] is not None for place in (3, 4)):
        return f"{_name(node)} has running statistics"
    if _depends_on_values(node):
        return f"{_name(node)} asks for values"
    return ""


def _depends_on_values(node: torch.fx.Node) -> bool:
    """Whether the shape of the result, or what the program is told, depends on values."""
    if torch.Tag.data_dependent_output in node.target.tags:
        return True
    if torch.Tag.dynamic_output_shape not in node.target.tags:
        return False
    if node.target not in (aten.index.Tensor, aten._unsafe_index.Tensor):
        return True
    given = [index.meta["val"].dtype for index in node.args[1] if index is not None]
    return torch.bool in given or torch.uint8 in given  # masks


def _drawing_rule(node: torch.fx.Node) -> type[Rule]:
    if node.target is residual_dropout:
        return Keyed
    if node.target is biased_attention or (node.target in _WITH_DROPOUT and _has_kernel(node)):
        return KeyedSamples
    return Dropout if node.target is aten.dropout.default else Drawing


def _has_kernel(node: torch.fx.Node) -> bool:
    return bool(node.args[5])


def _rule(node: torch.fx.Node) -> type[Rule]:
    if node.target is aten.embedding.default and any(node.args[3:]):
        return OneByOne  # its gradient counts how often a row is asked for, or is sparse
    if node.target is aten.linear.default or node.target in _LINEAR_FUNCTIONS:
        return Linear
    if node.target is half_products.matmul:
        return Product
    if node.target is half_products.addmm:
        return OneByOne
    if node.target in _UNCHANGED:
        return Unchanged
    if node.target in _ATTENTIONS:
        masked = node.target in _WITH_MASK and isinstance(_argument(node, 3, "attn_mask", None), torch.fx.Node)
        return MaskedSamples if masked else Samples
    if node.target is linear_cross_entropy:
        return LinearCrossEntropy
    if getattr(node.target, "namespace", "aten") != "aten" and torch.Tag.view_copy in node.target.tags:
        return Unchanged
    if node.target is residual_sum:
        return Pointwise
    if node.target in _DROPOUTS or (node.target is aten.to.dtype and len(node.args) == 2 and not node.kwargs):
        return Unchanged  # the ones that draw have other rules
    if torch.Tag.pointwise in getattr(node.target, "tags", ()) and "memory_format" not in node.kwargs:
        return Pointwise
    return Rule


def _rule_fits(node: torch.fx.Node, stacked: Collection[str]) -> bool:
    """Whether the operands are stacked or not as the rule of the operation wants them."""
    flags = {place: each.name in stacked for place, each in enumerate(node.args) if isinstance(each, torch.fx.Node)}
    rule = _rule(node)
    if rule is Linear or node.target is bias_gelu or node.target in _NORMS:
        return flags[0] and not any(flags[place] for place in flags if place)
    if node.target in _EMBEDDINGS and rule is Unchanged:
        return flags == {0: False, 1: True}
    if node.target in (with_key_bias, biased_attention):
        return all(flags[place] for place in range(3))
    if rule is Samples:
        return len(flags) == 3 and all(flags.values())
    if rule is MaskedSamples:
        return all(flags[place] for place in range(3))
    if rule is LinearCrossEntropy:
        return flags.pop(0) and flags.pop(3) and not any(flags.values())
    return True


def held_bytes(node: object) -> int:
    """Bytes of a value that an operation makes, and of what it keeps beside it; 0 of a view."""
    if not isinstance(node, torch.fx.Node) or node.op != "call_function" or node.target is operator.getitem:
        return 0
    value = node.meta.get("val")
    schema = getattr(node.target, "_schema", None)
    if schema is not None and any(result.alias_info is not None for result in schema.returns):
        return 0
    values = value if isinstance(value, (list, tuple)) else [value]
    total = sum(each.numel() * each.element_size() for each in values if isinstance(each, torch.Tensor))
    if node.target is aten.dropout.default and draws(node):  # the noise
        total *= 2
    if node.target in _WITH_DROPOUT and not _has_kernel(node):  # the probabilities, in float32 in any case
        shape = node.args[0].meta["val"].shape
        total += math.prod(shape[:-1]) * shape[-2] * 4
    return total


def _argument(node: torch.fx.Node, place: int, name: str, default: object) -> object:
    return node.args[place] if len(node.args) > place else node.kwargs.get(name, default)


def _name(node: torch.fx.Node) -> str:
    return str(getattr(node.target, "__name__", node.target))
