"""Products of half in a graph that is otherwise float32, replaced by ones of 16-bit operands (device/half_products.py).

Between two of them a value stays in 16 bits as long as only operations read it that move or drop elements or apply one
function to each, and that is how it is kept for the backward pass. Whatever else reads it is given float32:
normalisations, softmax, losses, the sums of the residual stream, and what leaves the program.
"""

from __future__ import annotations

import operator

import torch

from ...device import half_products, serialized
from ...device.computed_again import layer_norm, residual_sum
from ...device.dropout_attention import dropout_attention
from ...device.linear_cross_entropy import linear_cross_entropy
from ...device.policy import Products
from ...device.residual_dropout import residual_dropout
from ..tracing.export import TracedGraph
from ..tracing.writes import origins, written
from .patterns import CASTS, bodies, graphs

aten = torch.ops.aten
_LINEAR, _ATTENTION = aten.linear.default, aten.scaled_dot_product_attention.default
_MATMUL = frozenset({aten.matmul.default, aten.mm.default, aten.bmm.default, aten.mv.default, serialized.OPERATOR})
_ADDMM = frozenset({aten.addmm.default, aten.baddbmm.default})
_TRACED = _MATMUL | _ADDMM | {_LINEAR, _ATTENTION}
_FUSED = frozenset({dropout_attention, linear_cross_entropy})
_NORMS = frozenset({aten.layer_norm.default, layer_norm})
_SUMS = frozenset({aten.add.Tensor, residual_dropout})
_MARK = "half product"  # in a node's meta: it was half in the program

# What hands elements on, or applies a function to each that is no worse in 16 bits than its rounded argument.
_MOVES = frozenset(
    {
        aten.view.default, aten.reshape.default, aten._unsafe_view.default, aten.flatten.using_ints,
        aten.unflatten.int, aten.transpose.int, aten.t.default, aten.numpy_T.default, aten.permute.default,
        aten.movedim.int, aten.contiguous.default, aten.clone.default, aten.alias.default, aten.expand.default,
        aten.unsqueeze.default, aten.squeeze.dim, aten.squeeze.default, aten.slice.Tensor, aten.select.int,
        aten.narrow.default, aten.split.Tensor, aten.split.sizes, aten.split_with_sizes.default, aten.chunk.default,
        aten.unbind.int, operator.getitem,
    }
)  # fmt: skip
_FUNCTIONS = frozenset(
    {aten.gelu.default, aten.relu.default, aten.silu.default, aten.tanh.default, aten.dropout.default}
)
# Readers of logits and of scores, which lose by every bit; between scores and their softmax there may be some more.
_STATISTICS = CASTS | {
    aten.softmax.int, aten.log_softmax.int, aten._softmax.default, aten._log_softmax.default, aten.logsumexp.default,
    aten.cross_entropy_loss.default, aten.nll_loss_nd.default, aten.argmax.default, aten.topk.default,
    aten.max.dim, "output",
}  # fmt: skip
_OF_SCORES = _STATISTICS | {
    aten.mul.Tensor, aten.mul.Scalar, aten.div.Tensor, aten.div.Scalar, aten.add.Tensor, aten.sub.Tensor,
    aten.where.self, aten.where.ScalarOther, aten.where.ScalarSelf, aten.masked_fill.Scalar, aten.masked_fill.Tensor,
}  # fmt: skip


def mark_half(traced: TracedGraph) -> bool:
    """Mark the products that have half results, before their types are rewritten; whether there are any."""
    found = False
    for graph in graphs(traced):
        for node in graph.nodes:
            value = node.meta.get("val")
            if node.target in _TRACED and isinstance(value, torch.Tensor) and value.dtype == torch.float16:
                node.meta[_MARK] = found = True
    return found


def is_half(node: torch.fx.Node) -> bool:
    """Whether mark_half() marked `node`, or what was fused into it."""
    return bool(node.meta.get(_MARK))


def hand_on(product: torch.fx.Node, fused: torch.fx.Node) -> None:
    """`fused` does the work of `product`, and is half if that was."""
    fused.meta[_MARK] = is_half(product)


def replace_half(traced: TracedGraph, products: Products) -> int:
    """Let the marked products have operands of `products.dtype`; returns how many there are."""
    count, kept = 0, set(traced.watched.values())
    for graph in graphs(traced):
        rewriter = _Rewriter(graph, traced.modules, products, kept)
        count += rewriter.run()
        traced.watched.update((name, rewriter.widened.get(node, node)) for name, node in traced.watched.items())
    for body in bodies(traced):
        body.recompile()
    return count


class _Rewriter:
    """Replaces the marked products of one graph. Nodes of `float32` must be that whatever reads them."""

    def __init__(
        self,
        graph: torch.fx.Graph,
        modules: dict[str, torch.nn.Module],
        products: Products,
        float32: set[torch.fx.Node],
    ):
        self._graph, self._float32 = graph, float32
        self._dtype, self._native = products.dtype, products.native
        self._origin = origins(graph.nodes)
        self._changed = written(graph.nodes, modules, self._origin)  # in place: that must reach all views
        self._narrow: set[torch.fx.Node] = set()  # nodes whose values are of 16 bits
        self._kept: set[torch.fx.Node] = set()  # what layer norms keep
        self.widened: dict[torch.fx.Node, torch.fx.Node] = {}  # nodes of `float32` that are not: what is

    def run(self) -> int:
        """Rewrite the graph; returns the number of products replaced."""
        count, again = 0, set()
        for node in list(self._graph.nodes):
            if is_half(node) and node.target in _TRACED | _FUSED:
                self._replace(node)
                count += 1
            elif self._stays_narrow(node):
                self._mark_narrow(node)
            elif self._is_added_again(node):
                x, residual = node.args[:2] if node.args[0] in self._narrow else node.args[1::-1]
                if node.target is aten.add.Tensor:
                    node.target, node.args = residual_sum, (x, residual)
                again.add(node)
            elif not (node.target in CASTS and torch.float32 in (*node.args, *node.kwargs.values())):
                self._widen_arguments(node)
                if self._native and node.target is aten.layer_norm.default:
                    node.target = layer_norm
                    self._kept |= {node.args[0]} - again
        return count

    def _is_added_again(self, node: torch.fx.Node) -> bool:
        """Whether `node` adds something of 16 bits to what a layer norm keeps, for nobody but another one and sums."""
        if not self._native or node.target not in _SUMS or node.kwargs or node in self._float32:
            return False
        first, second, *_ = node.args
        x, residual = (first, second) if first in self._narrow else (second, first)
        if x not in self._narrow or residual not in self._kept or residual in self._narrow:
            return False
        if node.target is residual_dropout and x is not first:
            return False
        if self._origin[node] in self._changed or self._origin[residual] in self._changed:
            return False
        readers = [user.target for user in node.users]
        alike = x.meta["val"].shape == residual.meta["val"].shape and residual.meta["val"].dtype == torch.float32
        return alike and any(reader in _NORMS for reader in readers) and all(r in _NORMS | _SUMS for r in readers)

    def _stays_narrow(self, node: torch.fx.Node) -> bool:
        """Whether `node` does no more to a value of 16 bits than hand it on, and may."""
        inputs = node.all_input_nodes
        if node.target not in _MOVES | _FUNCTIONS or len(inputs) != 1 or inputs[0] not in self._narrow:
            return False
        return not self._must_be_wide(node)

    def _must_be_wide(self, node: torch.fx.Node) -> bool:
        return node in self._float32 or self._origin[node] in self._changed

    def _mark_narrow(self, node: torch.fx.Node) -> None:
        self._narrow.add(node)
        value = node.meta.get("val")
        if isinstance(value, torch.Tensor):
            node.meta["val"] = value.to(self._dtype)
        elif isinstance(value, (list, tuple)):
            node.meta["val"] = [part.to(self._dtype) for part in value]

    def _widen_arguments(self, node: torch.fx.Node, but: tuple[object, ...] = ()) -> None:
        """Give `node` float32 in place of 16 bits in all arguments `but` these."""

        def widened(source: torch.fx.Node) -> torch.fx.Node:
            if source not in self._narrow or source in but:
                return source
            with self._graph.inserting_before(node):
                return self._wide(source)

        if any(source in self._narrow for source in node.all_input_nodes):
            node.args = torch.fx.node.map_arg(node.args, widened)
            node.kwargs = torch.fx.node.map_arg(node.kwargs, widened)

    def _wide(self, source: torch.fx.Node) -> torch.fx.Node:
        wide = self._graph.call_function(aten.to.dtype, (source, torch.float32))
        if isinstance(source.meta.get("val"), torch.Tensor):
            wide.meta["val"] = source.meta["val"].float()
        return wide

    # -- products ------------------------------------------------------------------------------------------------

    def _replace(self, node: torch.fx.Node) -> None:
        """Make `node` a product of 16-bit operands; its result is of 16 bits unless float32 is all that is read."""
        if node.target is linear_cross_entropy:
            self._widen_arguments(node, but=node.args[:2])
            node.kwargs = {**node.kwargs, "products": self._dtype, "native": self._native}
            return
        if node.target in _ADDMM and not self._becomes_linear(node):
            self._widen_arguments(node, but=node.args[1:3])
            node.args = (*node.args[:3], self._dtype, self._native)
            node.target = half_products.addmm
            return
        if node.target in (_ATTENTION, dropout_attention):
            self._replace_attention(node)
            self._mark_narrow(node)
            if self._must_be_wide(node):
                self._widen_result(node)
            return
        wide = self._must_be_wide(node) or self._goes_into_statistics(node)
        how = (self._dtype, self._native, wide)
        if node.target is _LINEAR:
            x, weight, bias = (*node.args, None)[:3]
            self._widen_arguments(node, but=(x, weight))
            node.args, node.kwargs = (x, weight, node.kwargs.get("bias", bias), *how), {}
            node.target = half_products.linear
        else:  # serializedMatMul's among them: its steps save nothing here
            node.args, node.kwargs = (*node.args[:2], *how), {}
            node.target = half_products.matmul
        if not wide:
            self._mark_narrow(node)

    def _becomes_linear(self, node: torch.fx.Node) -> bool:
        """Whether b + x W is F.linear with the weight the other way round, which it then is."""
        bias, x, weight = node.args[:3]
        value = bias.meta.get("val")
        if node.target is not aten.addmm.default or node.kwargs or value is None or value.dim() != 1:
            return False
        with self._graph.inserting_before(node):
            transposed = self._graph.call_function(aten.t.default, (weight,))
        self._origin[transposed] = self._origin[weight]
        if weight in self._narrow:
            self._narrow.add(transposed)
        node.target, node.args = _LINEAR, (x, transposed, bias)
        return True

    def _replace_attention(self, node: torch.fx.Node) -> None:
        if node.target is dropout_attention:
            node.args, node.target = (*node.args, self._dtype), half_products.attention_with_dropout
            return
        self._widen_arguments(node, but=node.args[:3])  # the mask
        further, names = dict(node.kwargs), ("attn_mask", "dropout_p", "is_causal")
        further.update(zip(names, node.args[3:], strict=False))
        mask, dropout, causal = map(further.pop, names, (None, 0.0, False))
        node.args = (*node.args[:3], mask, dropout, causal, self._dtype, self._native)
        node.kwargs, node.target = further, half_products.attention

    def _widen_result(self, node: torch.fx.Node) -> None:
        with self._graph.inserting_after(node):
            wide = self._wide(node)
        node.replace_all_uses_with(wide, delete_user_cb=lambda user: user is not wide)
        self.widened[node] = wide

    def _goes_into_statistics(self, node: torch.fx.Node) -> bool:
        """Whether all that reads a product, behind views of it, are those that want the sums as they are.

        These are logits, and scores, which are products of two activations.
        """
        weights = any(self._origin[source].op == "placeholder" for source in node.all_input_nodes[1:2])
        statistics = _STATISTICS if weights else _OF_SCORES
        pending = list(node.users)
        while pending:
            user = pending.pop()
            if user.target in _MOVES and not is_half(user):
                pending.extend(user.users)
            elif user.target not in statistics:
                return False
        return True
