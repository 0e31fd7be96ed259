"""poptorch/openmp.py: OpenMP's threads spin for a bounded time, and a program that comes too late is told once."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

from poptorch import openmp

SHOW = "import json; print(json.dumps([os.environ.get(name) for name in poptorch.openmp.DECIDED]))"
MODEL = """
torch.set_num_threads(2)
for _ in range(2):
    poptorch.inferenceModel(torch.nn.Linear(2, 2))(torch.ones(1, 2))
"""


def run(code: str, **variables: str) -> subprocess.CompletedProcess[str]:
    """A fresh interpreter in which nobody has decided but by `variables`."""
    rest = {name: value for name, value in os.environ.items() if name not in openmp.DECIDED}
    return subprocess.run(
        [sys.executable, "-c", code], env={**rest, **variables}, capture_output=True, text=True, check=True
    )


def test_importing_poptorch_bounds_the_spin_before_torch_is_loaded():
    done = run("import os, poptorch, torch\n" + SHOW + MODEL)
    assert json.loads(done.stdout) == [*openmp.BOUNDED.values(), None]
    assert "OpenMP" not in done.stderr


def test_the_library_that_torch_brings_reads_it():
    shown = run("import poptorch", OMP_DISPLAY_ENV="verbose").stderr
    if "GOMP_SPINCOUNT" in shown:
        assert f"GOMP_SPINCOUNT = '{openmp.BOUNDED['GOMP_SPINCOUNT']}'" in shown
    else:
        assert f"KMP_BLOCKTIME='{openmp.BOUNDED['KMP_BLOCKTIME']}" in shown


@pytest.mark.parametrize("name", openmp.DECIDED)
def test_what_the_user_set_stays(name):
    value = "passive" if name == "OMP_WAIT_POLICY" else "7"
    for imports in ("import os, poptorch, torch\n", "import os, torch, poptorch\n"):
        done = run(imports + SHOW + MODEL, **{name: value})
        assert json.loads(done.stdout) == [value if name == other else None for other in openmp.DECIDED]
        assert "OpenMP" not in done.stderr


def test_a_program_that_imports_torch_first_is_told_once():
    code = "import os, torch, poptorch\n" + SHOW + MODEL
    done = run(code)
    assert json.loads(done.stdout) == [None] * len(openmp.DECIDED)
    assert done.stderr.count("OpenMP spins: import poptorch before torch") == 1
    told = run(code, POPTORCH_LOG_LEVEL="INFO").stderr
    assert told.count("GOMP_SPINCOUNT=1000 KMP_BLOCKTIME=1 in the environment") == 1
    assert "OpenMP" not in run(code.replace("(2)\nfor", "(1)\nfor")).stderr  # one thread meets nobody


def test_processes_of_a_loader_inherit_it(tmp_path):
    program = tmp_path / "program.py"
    program.write_text(
        "import os, sys, poptorch, torch\n"
        "class Variables(torch.utils.data.Dataset):\n"
        "    def __len__(self): return 2\n"
        "    def __getitem__(self, i):\n"
        "        return torch.tensor([int(os.environ[name]) for name in poptorch.openmp.BOUNDED])\n"
        "if __name__ == '__main__':\n"
        "    loader = poptorch.DataLoader(poptorch.Options(), Variables(), batch_size=2, num_workers=1,\n"
        "        mode=poptorch.DataLoaderMode.Async, async_options={'sharing_strategy':\n"
        "        poptorch.SharingStrategy[sys.argv[1]], 'load_indefinitely': False})\n"
        "    print(next(iter(loader)).tolist())\n"
    )
    rest = {name: value for name, value in os.environ.items() if name not in openmp.DECIDED}
    for strategy in ("Fork", "SharedMemory"):
        done = subprocess.run(
            [sys.executable, str(program), strategy], env=rest, capture_output=True, text=True, check=True
        )
        assert done.stdout == f"{[[int(value) for value in openmp.BOUNDED.values()]] * 2}\n"
