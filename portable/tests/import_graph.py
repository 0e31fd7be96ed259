"""Who imports whom in a tree of modules, and the circles in that. The application's tests use it too."""

from __future__ import annotations

import ast
import pathlib
from collections.abc import Iterable


def modules_in(root: pathlib.Path, files: Iterable[pathlib.Path]) -> dict[str, ast.Module]:
    """The files by their dotted names below `root`; packages have no `.__init__`."""
    found = {}
    for path in files:
        parts = path.relative_to(root).with_suffix("").parts
        tree = ast.parse(path.read_text(encoding="utf-8"))
        tree.is_package = parts[-1] == "__init__"  # type: ignore[attr-defined]
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = tree
    return found


def edges(modules: dict[str, ast.Module]) -> set[tuple[str, str]]:
    """(importer, imported) for every import statement, wherever it stands: type-only and lazy ones count."""
    found = set()
    for name, tree in modules.items():
        package = name if tree.is_package else name.rpartition(".")[0]
        for node in ast.walk(tree):
            targets = []
            if isinstance(node, ast.Import):
                targets = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom):
                up = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
                base = ".".join([*up, *([node.module] if node.module else [])])
                targets = [f"{base}.{alias.name}" for alias in node.names]
            for target in targets:
                while target and target not in modules:
                    target = target.rpartition(".")[0]
                if target and target != name:
                    found.add((name, target))
    return found


def circles(modules: dict[str, ast.Module]) -> list[list[str]]:
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
