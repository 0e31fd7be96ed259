"""Derived metrics: arithmetic over other metrics, parsed and walked, never evaluated as Python."""

from __future__ import annotations

import ast
import math
import operator
from collections.abc import Mapping

_BINARY = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.FloorDiv: operator.floordiv,
    ast.Mod: operator.mod,
    ast.Pow: operator.pow,
}
_UNARY = {ast.UAdd: operator.pos, ast.USub: operator.neg}


class Expression:
    """`a * 1024 / (b - 1)`: numbers, names of metrics, + - * / // % ** and parentheses.

    Raises ValueError for anything else.
    """

    def __init__(self, text: str) -> None:
        self.text = text
        try:
            self._tree = ast.parse(text.strip(), mode="eval").body
        except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
            raise ValueError(f"{text!r} is no arithmetic ({getattr(error, 'msg', error)})") from error
        self.names: set[str] = set()
        self._check(self._tree)

    def _check(self, node: ast.AST) -> None:
        if isinstance(node, ast.BinOp) and type(node.op) in _BINARY:
            self._check(node.left)
            self._check(node.right)
        elif isinstance(node, ast.UnaryOp) and type(node.op) in _UNARY:
            self._check(node.operand)
        elif isinstance(node, ast.Name):
            self.names.add(node.id)
        elif not (isinstance(node, ast.Constant) and type(node.value) in (int, float)):
            raise ValueError(
                f"{ast.unparse(node)!r} in {self.text!r} is not allowed: numbers, metrics, + - * / // % ** and "
                "parentheses are"
            )

    def value(self, metrics: Mapping[str, float]) -> float:
        """The result. Raises ValueError if there is none: a division by zero, a number too large, a root of -1."""
        try:
            result = self._value(self._tree, metrics)
        except ArithmeticError as error:
            raise ValueError(f"{self.text}: {error}") from error
        if isinstance(result, complex) or not math.isfinite(result):
            raise ValueError(f"{self.text}: the result is no finite number")
        return result

    def _value(self, node: ast.AST, metrics: Mapping[str, float]) -> float:
        if isinstance(node, ast.BinOp):
            return _BINARY[type(node.op)](self._value(node.left, metrics), self._value(node.right, metrics))
        if isinstance(node, ast.UnaryOp):
            return _UNARY[type(node.op)](self._value(node.operand, metrics))
        # Floats throughout: 9 ** 9 ** 9 overflows at once instead of filling the memory.
        return float(metrics[node.id] if isinstance(node, ast.Name) else node.value)
