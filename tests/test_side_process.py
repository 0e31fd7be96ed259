"""benchmarks/side_process.py: a side of a comparison answers from a process of its own, and its death is told."""

from pathlib import Path

import pytest

from benchmarks.side_process import SideProcess
from command_line.openmp import DECIDED

ROOT = Path(__file__).resolve().parent.parent

SIDE = f"""
import os, sys
sys.path.insert(0, {str(ROOT)!r})
from benchmarks.side_process import serve

def requests(settings):
    import torch

    print("noise of a library")
    variables = [os.environ[name] for name in ("POPTORCH_PORTABLE_DEVICE", "OMP_NUM_THREADS", "OF_A_SIDE")]
    variables.append(torch.get_num_threads())
    return {{"add": lambda: {{"sum": settings["a"] + 1, "variables": variables}}, "die": lambda: os._exit(1)}}

serve(requests)
"""


SPINNING = f"""
import os, sys
sys.path.insert(0, {str(ROOT)!r})
from benchmarks.side_process import serve

serve(lambda settings: {{"spin": lambda: {{name: os.environ.get(name) for name in settings["names"]}}}})
"""


@pytest.mark.parametrize(
    "decided, bounded, expected",
    [
        ({}, True, ["1000", "1", None]),
        ({}, False, [None] * 3),
        ({"OMP_WAIT_POLICY": "passive"}, True, [None, None, "passive"]),
    ],
)
def test_openmp_spins_as_in_our_programs_unless_somebody_has_decided(tmp_path, monkeypatch, decided, bounded, expected):
    for name in DECIDED:
        monkeypatch.delenv(name, raising=False)
    for name, value in decided.items():
        monkeypatch.setenv(name, value)
    program = tmp_path / "side.py"
    program.write_text(SPINNING)
    side = SideProcess(str(program), "ours", {"names": DECIDED, "threads": 1}, "cpu", bounded=bounded)
    try:
        assert list(side.ask("spin").values()) == expected
    finally:
        side.close()


def test_answers_and_an_early_end(tmp_path, capfd):
    program = tmp_path / "side.py"
    program.write_text(SIDE)
    side = SideProcess(str(program), "ours", {"a": 2, "threads": 1}, "cpu", {"OF_A_SIDE": "x"})
    try:
        assert [side.ask("add") for _ in range(2)] == [{"sum": 3, "variables": ["cpu", "1", "x", 1]}] * 2
        for _ in range(2):
            with pytest.raises(RuntimeError, match="process that measures 'ours' ended early.\nHINT: "):
                side.ask("die")
    finally:
        side.close()
    assert capfd.readouterr().err == "noise of a library\n"
