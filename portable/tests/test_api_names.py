"""Every published name exists, with its signature, defaults and enum values (poptorch_api.json: the 3.4 API)."""

from __future__ import annotations

import enum
import inspect
import json
import pathlib
from typing import Any

import pytest

import popart
import popdist
import popdist.poptorch
import poptorch

API = json.loads(pathlib.Path(__file__).with_name("poptorch_api.json").read_text())
NAMES = API["names"]
ELSEWHERE = {"<parameter of a wrapped model>.replicaGrouping"}


def resolve(name: str) -> Any:
    """The object behind a dotted name; `Options()` in it is a new object."""
    found: Any = poptorch
    for part in name.removesuffix("(setter)").removeprefix("poptorch.").replace("()", "@").split("."):
        found = getattr(found, part.rstrip("@"))
        found = found() if part.endswith("@") else found
    return found


def signature_text(function: Any) -> str:
    parameters = [p for p in inspect.signature(function).parameters.values() if p.name != "self"]
    return "(" + ", ".join(_parameter_text(p) for p in parameters) + ")"


def _parameter_text(parameter: inspect.Parameter) -> str:
    star = {inspect.Parameter.VAR_POSITIONAL: "*", inspect.Parameter.VAR_KEYWORD: "**"}.get(parameter.kind, "")
    if parameter.default is inspect.Parameter.empty:
        return star + parameter.name
    default = parameter.default
    text = str(default) if isinstance(default, enum.Enum) else repr(default)
    return f"{parameter.name}={text}"


@pytest.mark.parametrize("name", [name for name in NAMES if name not in ELSEWHERE])
def test_name(name):
    entry = NAMES[name]
    found = resolve(name)
    if entry["kind"] == "enum":
        assert {member.name: member.value for member in found} == entry["members"]
    elif entry["kind"] == "module":
        assert inspect.ismodule(found)
    elif entry["kind"] in ("class", "function", "method", "staticmethod"):
        assert callable(found)
        if entry.get("signature", "").startswith("("):
            assert signature_text(found) == entry["signature"]
        if entry["kind"] == "class":
            assert inspect.isclass(found)
    if entry["kind"].startswith("property") and inspect.isclass(resolve(name.rsplit(".", 1)[0])):
        assert isinstance(found, property)
        assert (found.fset is not None) == (f"{name}(setter)" in NAMES or name.endswith("(setter)"))


def test_error_classes_are_those_of_the_native_module():
    for name in ("Error", "RecoverableError", "UnrecoverableError"):
        assert getattr(poptorch, name) is getattr(poptorch.poptorch_core, name)
    error = poptorch.createPoptorchError("text")
    assert isinstance(error, poptorch.Error) and not isinstance(error, RuntimeError)
    assert (error.type, error.message, str(error)) == ("poptorch_py_error", "text", "'poptorch_py_error': text")
    assert poptorch.RecoverableError("text", recovery_action="IPU_RESET").recovery_action == "IPU_RESET"


def test_option_defaults(monkeypatch):
    monkeypatch.delenv("POPTORCH_DEFAULT_OPTIONS", raising=False)
    for group, defaults in API["option_defaults"].items():
        options = resolve(group)
        for name, text in defaults.items():
            value = getattr(options, name)
            shown = f"poptorch.{value}" if isinstance(value, enum.Enum) else str(value)
            assert shown == text, f"{group}.{name}"


@pytest.mark.parametrize("group", API["options_created_on_set"])
def test_options_that_do_not_exist_until_set(group):
    options = resolve(group)
    created = set(API["options_created_on_set"][group]) - {"available_memory_proportion"}  # listed as a default, too
    assert not created & options.toDict().keys()
    for name in created - set(dir(type(options))):  # some setters have their option's name
        with pytest.raises(AttributeError):
            getattr(options, name)


@pytest.mark.parametrize("name", API["popdist_names_in_use"])
def test_popdist_name(name):
    found = popdist
    for part in name.split(".")[1:]:
        found = getattr(found, part)
    assert found is not None


@pytest.mark.parametrize("name", API["popart_names_in_use"])
def test_popart_name(name):
    found = popart
    for part in name.split(".")[1:]:
        found = getattr(found, part)
    owner = name.rsplit(".", 1)[0]
    if owner != "popart":
        assert isinstance(found, enum.Enum) and int(found) >= 0


@pytest.mark.parametrize(
    "name", "Builder DataFlow DeviceManager InferenceSession PyStepIO SessionOptions TrainingSession SGD".split()
)
def test_popart_sessions_need_the_sdk(name):
    with pytest.raises(poptorch.Error, match="SDK"):
        getattr(popart, name)()


def test_nothing_published_is_missing_from_all():
    top = {name.split(".")[1] for name in NAMES if name.startswith("poptorch.")} - {"__version__", "Options()"}
    assert top <= set(poptorch.__all__)
