"""command_line/openmp.py: every program bounds the spin of OpenMP's threads before torch is loaded."""

import ast
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from command_line import openmp

ROOT = Path(__file__).resolve().parents[2]
PROGRAMS = ["train_gpt2", "text_generate_gpt2", "inference_gpt2"]
PROGRAMS += [f"tasks.{name}" for name in ("evaluate_wiki", "evaluate_lambada", "compare", "harness")]
SHOW = (
    "import json, os, sys; print(json.dumps(['torch' in sys.modules]"
    f" + [os.environ.get(name) for name in {openmp.DECIDED}]))"
)


def environment_after(imports: str, **variables: str) -> list:
    """In a fresh interpreter: whether torch was imported, and the variables."""
    rest = {name: value for name, value in os.environ.items() if name not in openmp.DECIDED}
    done = subprocess.run(
        [sys.executable, "-c", f"import {imports}\n{SHOW}"],
        env={**rest, **variables},
        cwd=str(ROOT),
        capture_output=True,
        text=True,
        check=True,
    )
    return json.loads(done.stdout)


@pytest.mark.parametrize("program", PROGRAMS)
def test_every_program_that_computes_bounds_it_before_torch(program):
    assert environment_after(program) == [False, *openmp.BOUNDED.values(), None]


@pytest.mark.parametrize("name", openmp.DECIDED)
def test_what_the_user_set_stays(name):
    value = "passive" if name == "OMP_WAIT_POLICY" else "7"
    found = environment_after("command_line", **{name: value})
    assert found == [False, *(value if name == other else None for other in openmp.DECIDED)]


def test_nothing_is_set_once_torch_is_there():
    """The library has read its variables, and the runtime is to see that they were not set in time."""
    assert environment_after("torch, command_line") == [True, None, None, None]


def test_both_rooms_bound_alike():
    """The application works with the vendor's poptorch, and portable/ knows no application: two definitions."""
    text = (ROOT / "portable/poptorch/openmp.py").read_text(encoding="utf-8")
    found = {
        target.id: node.value
        for node in ast.parse(text).body
        if isinstance(node, ast.Assign)
        for target in node.targets
        if isinstance(target, ast.Name)
    }
    assert ast.literal_eval(found["BOUNDED"]) == openmp.BOUNDED
