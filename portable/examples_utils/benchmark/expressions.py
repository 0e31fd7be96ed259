"""Derived metrics: arithmetic over other figures, parsed and walked, never evaluated as Python."""

from __future__ import annotations

import ast
import math
import operator
import re
from collections.abc import Mapping
from typing import Any

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
    """`{throughput} * {bs}` or `throughput * bs`: numbers, names of figures, + - * / // % ** and parentheses.

    In braces a name may have any characters. `names` are the figures it needs. Raises ValueError for anything else.
    """

    def __init__(self, text: str) -> None:
        self.text = text
        self.names: set[str] = set()
        self._braced: dict[str, str] = {}  # the identifier put in a brace's place, and the name in the brace
        try:
            self._tree = ast.parse(re.sub(r"\{([^{}]+)\}", self._identifier, text.strip()), mode="eval").body
        except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
            raise ValueError(f"{text!r} is no arithmetic ({getattr(error, 'msg', error)})") from error
        self._check(self._tree)

    def _identifier(self, match: re.Match[str]) -> str:
        name = match.group(1).strip()
        identifier = name if name.isidentifier() else f"_figure_{len(self._braced)}"
        self._braced[identifier] = name
        return f"({identifier})"

    def _check(self, node: ast.AST) -> None:
        if isinstance(node, ast.BinOp) and type(node.op) in _BINARY:
            self._check(node.left)
            self._check(node.right)
        elif isinstance(node, ast.UnaryOp) and type(node.op) in _UNARY:
            self._check(node.operand)
        elif isinstance(node, ast.Name):
            self.names.add(self._braced.get(node.id, node.id))
        elif not (isinstance(node, ast.Constant) and type(node.value) in (int, float)):
            raise ValueError(
                f"{ast.unparse(node)!r} in {self.text!r} is not allowed: numbers, metrics, + - * / // % ** and "
                "parentheses are"
            )

    def value(self, figures: Mapping[str, Any]) -> float:
        """The result, of figures that are numbers or texts of numbers.

        Raises ValueError if there is none: a division by zero, a number too large, a root of -1, a text.
        """
        try:
            result = self._value(self._tree, figures)
        except ArithmeticError as error:
            raise ValueError(f"{self.text}: {error}") from error
        if isinstance(result, complex) or not math.isfinite(result):
            raise ValueError(f"{self.text}: the result is no finite number")
        return result

    def _value(self, node: ast.AST, figures: Mapping[str, Any]) -> float:
        if isinstance(node, ast.BinOp):
            return _BINARY[type(node.op)](self._value(node.left, figures), self._value(node.right, figures))
        if isinstance(node, ast.UnaryOp):
            return _UNARY[type(node.op)](self._value(node.operand, figures))
        if isinstance(node, ast.Constant):
            return float(node.value)  # floats throughout: 9 ** 9 ** 9 overflows at once instead of filling the memory
        name = self._braced.get(node.id, node.id)
        try:
            return float(figures[name])
        except (TypeError, ValueError) as error:
            raise ValueError(f"{self.text}: {name} is {figures[name]!r}, no number") from error
