"""Options from text: JSON objects, and files with one option a line. Nothing in them is run as code."""

from __future__ import annotations

import ast
import enum
import inspect
import json
from typing import Any

import torch

from .. import enums
from . import strategies, tensor_locations

# What a line may name besides literals.
_TORCH_NAMES = {name: getattr(torch, name) for name in ("float16", "half", "float32", "float")}
_STRATEGIES = ("PipelinedExecution", "ShardedExecution", "ParallelPhasedExecution", "SerialPhasedExecution")
_MAKERS = {f"poptorch.{name}": getattr(strategies, name) for name in ("Stage", "Phase", *_STRATEGIES)}
_MAKERS["poptorch.TensorLocationSettings"] = tensor_locations.TensorLocationSettings
_GROUPS = ("Training", "Distributed", "Jit", "Precision", "TensorLocations", "_Popart")


class ConfigFileError(Exception):
    """A line of an options file, or POPTORCH_DEFAULT_OPTIONS, is not an option or was refused."""


def apply_defaults(options: Any, text: str) -> None:
    """Applies the value of POPTORCH_DEFAULT_OPTIONS: a JSON object or the path of a file. Empty: nothing.

    Raises ConfigFileError naming the variable.
    """
    if not text.strip():
        return
    try:
        if text.lstrip().startswith("{"):
            apply_json(options, text)
        else:
            apply_file(options, text)
    except (ValueError, AttributeError, AssertionError, TypeError, RuntimeError, OSError, ConfigFileError) as error:
        raise ConfigFileError(f"POPTORCH_DEFAULT_OPTIONS: {error}") from error


def apply_json(options: Any, string: str) -> Any:
    """Calls the setters of `options` that the JSON object names, e.g. {"Training.gradientAccumulation": 4}."""
    entries = json.loads(string)
    if not isinstance(entries, dict):
        raise ValueError(f"options in JSON are an object {{name: value}}, got {string!r}")
    for name, value in entries.items():
        setter = find_setter(options, name)
        several = isinstance(value, list) and _required_arguments(setter) > 1
        setter(*map(_named_enum, value)) if several else setter(_named_enum(value))
    return options


def apply_file(options: Any, filepath: str) -> Any:
    """Applies a file with one option a line, e.g. `outputMode(poptorch.OutputMode.All)`; # starts a comment line."""
    with open(filepath, encoding="utf-8") as lines:
        for number, line in enumerate(map(str.strip, lines), start=1):
            if line and not line.startswith("#"):
                try:
                    _apply_line(options, line)
                # A setter answers a wrong value with any of these; all mean that this line is at fault.
                except (SyntaxError, ValueError, AttributeError, AssertionError, TypeError, RuntimeError) as error:
                    raise ConfigFileError(f"{filepath}:{number}: cannot set option {line!r}: {error}") from error
    return options


def find_setter(options: Any, name: str) -> Any:
    """The setter called e.g. "deviceIterations" or "Training.gradientAccumulation". AttributeError if none is."""
    *groups, setter_name = name.split(".")
    known = len(groups) <= 1 and all(group in _GROUPS for group in groups)
    setter = getattr(getattr(options, groups[0]) if groups else options, setter_name, None) if known else None
    if not getattr(setter, "is_option", False):
        raise AttributeError(f"Options have no option {name!r}")
    return setter


def _required_arguments(setter: Any) -> int:
    parameters = inspect.signature(setter).parameters.values()
    return sum(parameter.default is parameter.empty for parameter in parameters)


def _named_enum(value: Any) -> Any:
    """The member for a string such as "poptorch.OutputMode.All" or "OutputMode.All"; other values as they are."""
    if isinstance(value, str):
        enum_name, _, member = value.removeprefix("poptorch.").partition(".")
        candidate = getattr(enums, enum_name, None) if member else None
        if isinstance(candidate, type) and issubclass(candidate, enum.Enum) and member in candidate.__members__:
            return candidate[member]
    return value


def _apply_line(options: Any, line: str) -> None:
    """Calls the setter of one line; options may be chained: `deviceIterations(2).replicationFactor(4)`."""
    node = ast.parse(f"options.{line}", mode="eval").body
    calls = []
    while isinstance(node, ast.Call):
        names = []
        target = node.func
        while isinstance(target, ast.Attribute):
            names.insert(0, target.attr)
            target = target.value
        calls.insert(0, (names, node))
        node = target
    if not calls or not (isinstance(node, ast.Name) and node.id == "options"):
        raise ValueError("not of the form option(value)")
    current = options
    for names, call in calls:
        args = [_value(argument) for argument in call.args]
        kwargs = {keyword.arg: _value(keyword.value) for keyword in call.keywords if keyword.arg is not None}
        if any(keyword.arg is None for keyword in call.keywords):
            raise ValueError("** is not possible here")
        current = find_setter(current, ".".join(names))(*args, **kwargs)


def _value(node: ast.expr) -> Any:
    """The value of an argument: a literal, a name of torch or poptorch, or an object of poptorch made of such."""
    if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "torch":
        if node.attr in _TORCH_NAMES:
            return _TORCH_NAMES[node.attr]
        raise ValueError(f"torch.{node.attr} is not one of {', '.join(_TORCH_NAMES)}")
    if isinstance(node, ast.Attribute) and (member := _named_enum(ast.unparse(node))) != ast.unparse(node):
        return member
    if isinstance(node, ast.Call):
        return _call(node)
    return ast.literal_eval(node)


def _call(node: ast.Call) -> Any:
    """A strategy, stage, phase or TensorLocationSettings: `poptorch.Stage("A").ipu(0)`."""
    args = [_value(argument) for argument in node.args]
    kwargs = {keyword.arg: _value(keyword.value) for keyword in node.keywords if keyword.arg is not None}
    target = node.func
    if isinstance(target, ast.Attribute) and isinstance(target.value, ast.Call):
        if target.attr.startswith("_"):
            raise ValueError(f"{target.attr} is private")
        return getattr(_call(target.value), target.attr)(*args, **kwargs)
    name = ast.unparse(target)
    if name not in _MAKERS:
        raise ValueError(f"{name} is not one of {', '.join(_MAKERS)}")
    return _MAKERS[name](*args, **kwargs)
