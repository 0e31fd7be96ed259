"""A repository of nothing but run/, in which every program is a script that prints how it was called.

Used by the tests of the run scripts.
"""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture()
def checkout(tmp_path: Path) -> Path:
    """A repository with nothing but run/, so that no program really starts; `bin` is first on the path."""
    root = tmp_path / "a checkout"
    shutil.copytree(ROOT / "run", root / "run")
    (root / "bin").mkdir()
    (root / "elsewhere").mkdir()
    stub(root / "bin" / "python3", "system")
    return root


def stub(path: Path, name: str) -> None:
    """A program that prints its name, folder, POPLAR_TARGET_OPTIONS and arguments, one a line."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f'#!/bin/sh\nprintf "%s\\n" "{name}" "$PWD" "$POPLAR_TARGET_OPTIONS" "$@"\n')
    path.chmod(0o755)


def run(root: Path, script: str, *words: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [str(root / "run" / f"{script}.sh"), *words],
        cwd=root / "elsewhere",
        env={"PATH": f"{root / 'bin'}:/usr/bin:/bin", **environment},
        capture_output=True,
        text=True,
        timeout=300,
    )


def lines(done: subprocess.CompletedProcess[str]) -> list[str]:
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout.splitlines()
