"""poptorch/openmp.py: OpenMP's threads spin for a bounded time, and a program that comes too late is told once."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import textwrap

import pytest
from forks import forks

from poptorch import openmp

SHOW = "import json; print(json.dumps([os.environ.get(name) for name in poptorch.openmp.DECIDED]))"
MODEL = """
torch.set_num_threads(2)
for _ in range(2):
    poptorch.inferenceModel(torch.nn.Linear(2, 2))(torch.ones(1, 2))
"""


@pytest.fixture(scope="module")
def program(tmp_path_factory) -> subprocess.CompletedProcess[str]:
    """A fresh interpreter in which nobody has decided, and OpenMP tells what it has read.

    It prints the variables, runs a model and prints what processes of a loader find: of each strategy, a line.
    """
    path = tmp_path_factory.mktemp("spinning") / "program.py"
    path.write_text(
        "import os, sys, poptorch, torch\n"
        "class Variables(torch.utils.data.Dataset):\n"
        "    def __len__(self): return 2\n"
        "    def __getitem__(self, i):\n"
        "        return torch.tensor([int(os.environ[name]) for name in poptorch.openmp.BOUNDED])\n"
        "if __name__ == '__main__':\n"
        + textwrap.indent(SHOW + MODEL, "    ")
        + "    for strategy in ('Fork', 'SharedMemory'):\n"
        "        loader = poptorch.DataLoader(poptorch.Options(), Variables(), batch_size=2, num_workers=1,\n"
        "            mode=poptorch.DataLoaderMode.Async, async_options={'sharing_strategy':\n"
        "            poptorch.SharingStrategy[strategy], 'load_indefinitely': False})\n"
        "        print(next(iter(loader)).tolist())\n"
    )
    rest = {name: value for name, value in os.environ.items() if name not in openmp.DECIDED}
    rest["OMP_DISPLAY_ENV"] = "verbose"
    return subprocess.run([sys.executable, str(path)], env=rest, capture_output=True, text=True, check=True)


def test_importing_poptorch_bounds_the_spin_before_torch_is_loaded(program):
    assert json.loads(program.stdout.splitlines()[0]) == [*openmp.BOUNDED.values(), None]
    assert "OpenMP" not in program.stderr


def test_the_library_that_torch_brings_reads_it(program):
    if "GOMP_SPINCOUNT" in program.stderr:
        assert f"GOMP_SPINCOUNT = '{openmp.BOUNDED['GOMP_SPINCOUNT']}'" in program.stderr
    else:
        assert f"KMP_BLOCKTIME='{openmp.BOUNDED['KMP_BLOCKTIME']}" in program.stderr


def test_processes_of_a_loader_inherit_it(program):
    inherited = [int(value) for value in openmp.BOUNDED.values()]
    assert program.stdout.splitlines()[1:] == [str([inherited] * 2)] * 2


SET = {name: "passive" if name == "OMP_WAIT_POLICY" else "7" for name in openmp.DECIDED}
TORCH = "import torch, torch.export, torch._dynamo"


def assert_it_stays(names: list[str], said: list[tuple[str, str]]) -> None:
    for name, value, (shown, errors) in zip(names, map(SET.get, names), said, strict=True):
        assert json.loads(shown) == [value if name == other else None for other in openmp.DECIDED]
        assert "OpenMP" not in errors


def test_what_the_user_set_stays():
    code = "import poptorch, torch\n" + SHOW + "\npoptorch.openmp.report_late()"  # as the first compilation does
    names = [next(iter(openmp.BOUNDED)), openmp.DECIDED[-1]]  # one of either kind: each run imports torch, for seconds
    assert_it_stays(
        names, forks("import numpy", *(({name: SET[name]}, code) for name in names), without=openmp.DECIDED)
    )


def test_a_program_that_imports_torch_first_is_told_once():
    code = "import poptorch\n" + SHOW + MODEL
    one_thread = code.replace("(2)\nfor", "(1)\nfor")  # meets nobody
    set_by_user = [({name: value}, code) for name, value in SET.items()]
    late, told, alone, *others = forks(
        TORCH,
        ({}, code),
        ({"POPTORCH_LOG_LEVEL": "INFO"}, code),
        ({}, one_thread),
        *set_by_user,
        without=openmp.DECIDED,
    )
    assert json.loads(late[0]) == [None] * len(openmp.DECIDED)
    assert late[1].count("OpenMP spins: import poptorch before torch") == 1
    assert told[1].count("GOMP_SPINCOUNT=1000 KMP_BLOCKTIME=1 in the environment") == 1
    assert "OpenMP" not in alone[1]
    assert_it_stays(list(SET), others)
