"""Layers: the portable runtime knows no application, and its lower layers know no contract."""

from __future__ import annotations

import ast
import pathlib
import re
import subprocess
import sys

import pytest
from import_graph import Module, circles, edges, modules_in

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
# What layers below the contract may import, by the beginnings of the names.
LAYERS = {"engine": ("poptorch.engine", "poptorch.device"), "device": ("poptorch.device",)}
# What they may take from the package above them: names and messages, no behaviour.
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
    names = imported(ROOT / "poptorch" / "engine" / "running" / "runner.py")
    assert {"poptorch.enums", "poptorch.engine.stages", "torch", "poptorch.device.policy"} <= names


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_nothing_of_the_application_is_imported(path):
    outside = {name.split(".")[0] for name in imported(path)} - ALLOWED
    # transformers and torch_xla are no dependencies; anything else would be the application's
    assert not outside, f"{path} imports {sorted(outside)}"


def violations(modules: dict[str, Module]) -> list[str]:
    """Imports that run up, and circles, of files and of folders."""
    up = []
    for importer, target in sorted(edges(modules)):
        for layer, allowed in LAYERS.items():
            if importer.startswith(f"poptorch.{layer}") and not target.startswith(allowed) and target not in SHARED:
                up.append(f"{importer} imports {target}, which is above it")
    return up + [f"circle: {' <-> '.join(circle)}" for circle in circles(modules)]


def test_no_import_runs_up_or_in_a_circle(capsys):
    found = violations(modules_in(ROOT, FILES))
    with capsys.disabled():
        print(f"\nimports of portable/ that run up or in circles: {len(found)}")
    assert found == []


@pytest.mark.parametrize(
    ("module", "line", "told"),
    [
        ("poptorch.device.policy", "from ..engine import stages", "poptorch.device.policy imports poptorch.engine"),
        ("poptorch.engine.running.state", "from ...options import Options", "imports poptorch.options"),
        ("poptorch.engine.updating.pieces", "from ...execution import session", "imports poptorch.execution"),
        ("poptorch.engine.tracing.writes", "def f():\n    from . import losses", "tracing.losses <-> "),
        ("poptorch.engine.tracing.markers", "from ..running import runner", "engine.running"),
        ("poptorch.engine.updating.pieces", "from .optimizer import DeviceOptimizer", "updating.optimizer <-> "),
        ("poptorch.execution.saving", "def f():\n    from .executor import PoplarExecutor", "execution.executor <-> "),
        ("poptorch.operations.blocks", "from ..execution.executor import PoplarExecutor", "poptorch.execution <-> "),
        ("poptorch.loading.batch_ring", "import poptorch.loading.dataloader", "loading.async_data <-> "),
        ("poptorch.options.base", "from ..reports import auto_report", "poptorch.options <-> poptorch.reports"),
        (
            "poptorch.enums",
            "if TYPE_CHECKING:\n    from .options import Options",
            "poptorch.enums <-> poptorch.options",
        ),
    ],
)
def test_a_planted_violation_is_found(module, line, told):
    modules = modules_in(ROOT, FILES)
    modules[module] = modules[module].with_lines(module, line)
    assert any(told in problem for problem in violations(modules)), violations(modules)


def test_each_folder_says_what_it_is():
    """A few lines in __init__.py: what lives there, who imports it, where to start."""
    for path in FILES:
        if path.name != "__init__.py" or path.parent.name == "poptorch":
            continue
        text = ast.get_docstring(ast.parse(path.read_text())) or ""
        assert 2 <= len([line for line in text.splitlines() if line]) <= 6, path
        assert re.search("[Ss]tart (with|there|below)", text) and "import" in text, path


PUBLISHED = ("enums", "ops", "optim", "options", "profiling", "testing", "poptorch_core")


def test_each_module_can_be_imported_first():
    """Of a process, and in whatever order: what a program finds does not depend on what it imported before."""
    modules = modules_in(ROOT, FILES)
    assert {f"poptorch.{name}" for name in PUBLISHED} <= set(modules)
    # Of poptorch the published ones and the folders: whichever is first, poptorch/__init__.py runs before it.
    names = [name for name in modules if modules[name].is_package or name.count(".") == 1]
    code = """if True:
        import importlib, os, sys
        import numpy, torch  # once: what is forked below has them
        for name in sorted(sys.argv[1:], key=lambda name: name.startswith("poptorch")):
            if name.startswith("poptorch."):
                import poptorch  # whichever module of it is imported, this one is first
            if os.fork() == 0:
                try:
                    importlib.import_module(name)
                except BaseException as error:
                    print(name, repr(error), flush=True)
                    os._exit(1)
                os._exit(0)
            os.wait()
    """
    done = subprocess.run([sys.executable, "-c", code, *names], capture_output=True, text=True, check=True, cwd=ROOT)
    assert done.stdout == ""


def test_importing_poptorch_leaves_what_takes_long_to_import_for_later():
    code = "import sys, torch; before = set(sys.modules); import poptorch; print(*sorted(set(sys.modules) - before))"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert "poptorch" in found
    heavy = {"sympy", "torch.fx.experimental.symbolic_shapes", "torch._dynamo", "torch._inductor", "numpy.testing"}
    assert not heavy & set(found)
