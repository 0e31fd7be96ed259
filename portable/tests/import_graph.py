"""Who imports whom in a tree of modules, and the circles in that. The application's tests use it too."""

from __future__ import annotations

import ast
import functools
import pathlib
from collections.abc import Iterable
from typing import NamedTuple


class Module(NamedTuple):
    """What a file imports, by its import statements wherever they stand: type-only and lazy ones count."""

    is_package: bool
    imported: tuple[str, ...]  # full names of modules, or of names in them

    def with_lines(self, name: str, lines: str) -> Module:
        """As if `lines` stood in the file too; `name` is the module's own."""
        return self._replace(imported=self.imported + _imported(name, self.is_package, lines))


def modules_in(root: pathlib.Path, files: Iterable[pathlib.Path]) -> dict[str, Module]:
    """The files by their dotted names below `root`; packages have no `.__init__`."""
    found = {}
    for path in files:
        parts = path.relative_to(root).with_suffix("").parts
        is_package = parts[-1] == "__init__"
        name = ".".join(parts[:-1] if is_package else parts)
        found[name] = Module(is_package, _imported(name, is_package, path.read_text(encoding="utf-8")))
    return found


@functools.cache
def _imported(name: str, is_package: bool, text: str) -> tuple[str, ...]:
    package = name if is_package else name.rpartition(".")[0]
    found: list[str] = []
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            up = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
            base = ".".join([*up, *([node.module] if node.module else [])])
            found += [f"{base}.{alias.name}" for alias in node.names]
    return tuple(found)


def edges(modules: dict[str, Module]) -> set[tuple[str, str]]:
    """(importer, imported) for every import of one of these modules by another."""
    found = set()
    for name, module in modules.items():
        for target in module.imported:
            while target and target not in modules:
                target = target.rpartition(".")[0]
            if target and target != name:
                found.add((name, target))
    return found


def circles(modules: dict[str, Module]) -> list[list[str]]:
    """Circles of files, and of what stands in one folder: there a folder counts as one with all that is in it."""
    pairs = edges(modules)
    folders = {""}
    for name in modules:
        parts = name.split(".")
        folders |= {".".join(parts[:depth]) for depth in range(1, len(parts))}
    found = _circles_of(pairs)
    for folder in sorted(folders):
        depth = len(folder.split(".")) if folder else 0
        inside = [pair for pair in pairs if not folder or all(name.startswith(folder + ".") for name in pair)]
        rooms = {tuple(".".join(name.split(".")[: depth + 1]) for name in pair) for pair in inside}
        found += [circle for circle in _circles_of({(a, b) for a, b in rooms if a != b}) if circle not in found]
    return found


def _circles_of(pairs: set[tuple[str, str]]) -> list[list[str]]:
    """The sets of nodes that reach each other, each sorted; none in a graph without a circle."""
    graph: dict[str, set[str]] = {}
    for a, b in pairs:
        graph.setdefault(a, set()).add(b)
    reach: dict[str, set[str]] = {}
    for start in graph:
        seen, left = set(), [start]
        while left:
            new = graph.get(left.pop(), set()) - seen
            seen |= new
            left += new
        reach[start] = seen
    groups = {tuple(sorted(b for b in reach[a] if a in reach.get(b, ()))) for a in reach if a in reach[a]}
    return [list(group) for group in sorted(groups)]
