"""YAML as plain values that know their lines, so that every message can say where it is about."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml


class SpecError(ValueError):
    """A spec file that cannot be used; `args` are the problems, each with file and line."""


class Mapping(dict):
    """A YAML mapping. `line` is where it begins, `lines` has the line of every key; of a merged key, where it was."""

    def __init__(self, line: int) -> None:
        super().__init__()
        self.line, self.lines = line, {}


class Sequence(list):
    """A YAML sequence. `line` is where it begins, `lines` has the line of every item."""

    def __init__(self, line: int) -> None:
        super().__init__()
        self.line, self.lines = line, []


class Set(Sequence):
    """A YAML set in curly brackets, {a, b}: names or numbers without values, in their order."""


def read(path: Path) -> Mapping:
    """The mapping in a YAML file, anchors and merges resolved.

    Raises SpecError: no such file, not YAML, no mapping, a key given twice, an anchor inside itself.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise SpecError(f"{path}: cannot be read ({error.strerror}); check the path given with --spec") from error
    except UnicodeDecodeError as error:
        line = error.object[: error.start].count(b"\n") + 1
        raise SpecError(f"{path}:{line}: not UTF-8 text") from error
    loader = None
    try:
        loader = yaml.SafeLoader(text)
        node = loader.get_single_node()
        if not isinstance(node, yaml.MappingNode):
            raise SpecError(f"{path}:1: the file must be a mapping of benchmarks, `name:` with `cmd:` under it")
        _refuse_twice(path, node, set())
        return _Builder(path, loader).build(node)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        raise SpecError(f"{path}:{mark.line + 1 if mark else 1}: not valid YAML: {error.problem}") from error
    except yaml.YAMLError as error:  # a character that YAML does not allow
        line = text[: getattr(error, "position", 0)].count("\n") + 1
        raise SpecError(f"{path}:{line}: not valid YAML: {getattr(error, 'reason', error)}") from error
    finally:
        if loader is not None:
            loader.dispose()


def _refuse_twice(path: Path, node: yaml.Node, seen: set[int]) -> None:
    """Keys that a mapping has twice: YAML forbids them, PyYAML takes the last. Before merging, which adds some."""
    if id(node) in seen:
        return
    seen.add(id(node))
    if isinstance(node, yaml.MappingNode):
        keys: dict[str, int] = {}
        for key, value in node.value:
            line = key.start_mark.line + 1
            if isinstance(key, yaml.ScalarNode) and key.value in keys and key.value != "<<":
                raise SpecError(f"{path}:{line}: {key.value!r} is given already in line {keys[key.value]}; remove one")
            if isinstance(key, yaml.ScalarNode):
                keys[key.value] = line
            _refuse_twice(path, value, seen)
    elif isinstance(node, yaml.SequenceNode):
        for item in node.value:
            _refuse_twice(path, item, seen)


class _Builder:
    """Values from nodes; each node is built once, so that what an anchor names is one object."""

    def __init__(self, path: Path, loader: yaml.SafeLoader) -> None:
        self._path, self._loader = path, loader
        self._open: set[int] = set()

    def build(self, node: yaml.Node) -> Any:
        line = node.start_mark.line + 1
        if id(node) in self._open:
            raise SpecError(f"{self._path}:{line}: this contains itself, by its anchor")
        self._open.add(id(node))
        try:
            if isinstance(node, yaml.MappingNode):
                return self._mapping(node, line)
            if isinstance(node, yaml.SequenceNode):
                built = Sequence(line)
                for item in node.value:
                    built.append(self.build(item))
                    built.lines.append(item.start_mark.line + 1)
                return built
            return self._loader.construct_object(node)
        finally:
            self._open.discard(id(node))

    def _mapping(self, node: yaml.MappingNode, line: int) -> Mapping | Set:
        # No bracket of a mapping has only names: `{a: , b: }` is the same to YAML, and as little of a mapping.
        if node.flow_style and node.value and all(_is_nothing(value) for _, value in node.value):
            built_set = Set(line)
            for key_node, _ in node.value:
                built_set.append(self.build(key_node))
                built_set.lines.append(key_node.start_mark.line + 1)
            return built_set
        self._loader.flatten_mapping(node)  # puts what `<<` names in front, where the mapping's own keys override it
        built = Mapping(line)
        for key_node, value in node.value:
            key = self.build(key_node)
            if not isinstance(key, str):
                raise SpecError(f"{self._path}:{key_node.start_mark.line + 1}: the name {key!r} must be text; quote it")
            built[key] = self.build(value)
            built.lines[key] = key_node.start_mark.line + 1
        return built


def _is_nothing(node: yaml.Node) -> bool:
    return isinstance(node, yaml.ScalarNode) and node.tag == "tag:yaml.org,2002:null"
