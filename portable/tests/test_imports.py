"""Layers: the portable runtime knows no application, and its lower layers know no contract."""

from __future__ import annotations

import ast
import pathlib
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[1]
PACKAGES = ("poptorch", "popart", "popdist", "examples_utils")
ALLOWED = {
    *PACKAGES,
    "torch",
    "numpy",
    "tqdm",
    "yaml",
    "torch_geometric",
    *sys.stdlib_module_names,
}  # the last is optional
FILES = sorted(path for package in PACKAGES for path in (ROOT / package).rglob("*.py"))
# What the engine and the devices may take from the package above them: names and messages, no behaviour.
SHARED = {"poptorch.checks", "poptorch.enums", "poptorch.poptorch_core", "poptorch.notices"}


def imported(path: pathlib.Path) -> set[str]:
    """Full names of the modules (or of names in packages) that `path` imports."""
    package = list(path.relative_to(ROOT).with_suffix("").parts[:-1])
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            module = ".".join([*base, *([node.module] if node.module else [])])
            if node.module or not node.level:  # `from .. import notices` takes a module, not the package
                found.add(module)
            found.update(f"{module}.{alias.name}" for alias in node.names)
    return found


def test_the_reader_of_imports_sees_relative_ones():
    names = imported(ROOT / "poptorch" / "engine" / "runner.py")
    assert {"poptorch.enums", "poptorch.engine.stages", "torch", "poptorch.device.policy"} <= names


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_nothing_of_the_application_is_imported(path):
    outside = {name.split(".")[0] for name in imported(path)} - ALLOWED
    # transformers and torch_xla are no dependencies; anything else would be the application's
    assert not outside, f"{path} imports {sorted(outside)}"


@pytest.mark.parametrize("layer", ["engine", "device"])
def test_lower_layers_do_not_import_the_contract(layer):
    contract = {f"poptorch.{path.stem}" for path in (ROOT / "poptorch").glob("*.py")} - SHARED
    for path in sorted((ROOT / "poptorch" / layer).rglob("*.py")):
        names = imported(path)
        assert not names & contract, f"{path.name} imports {sorted(names & contract)}"
        assert "poptorch" not in names, f"{path.name} imports the package itself"


def test_devices_do_not_import_the_engine():
    for path in sorted((ROOT / "poptorch" / "device").rglob("*.py")):
        above = {name for name in imported(path) if name.startswith("poptorch.engine")}
        assert not above, f"{path.name} imports {sorted(above)}"


def test_importing_poptorch_leaves_what_takes_long_to_import_for_later():
    code = "import sys, torch; before = set(sys.modules); import poptorch; print(*sorted(set(sys.modules) - before))"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert "poptorch" in found
    heavy = {"sympy", "torch.fx.experimental.symbolic_shapes", "torch._dynamo", "torch._inductor", "numpy.testing"}
    assert not heavy & set(found)
