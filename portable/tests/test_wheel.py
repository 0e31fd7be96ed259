"""The wheel: what is in it, what it says of itself, and that it is all that a program needs beside torch."""

from __future__ import annotations

import email
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

import poptorch

PORTABLE = Path(__file__).parents[1]
PACKAGES = ("examples_utils", "popart", "popdist", "poptorch")


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    """Built from a copy: setuptools writes into the folder that it builds from."""
    source, target = (tmp_path_factory.mktemp(name) for name in ("source", "wheels"))
    left_out = shutil.ignore_patterns("build", "dist", "*.egg-info", "__pycache__", "*.so", ".*")
    shutil.copytree(PORTABLE, source, ignore=left_out, dirs_exist_ok=True)
    pip("wheel", "--no-deps", "--no-build-isolation", "--no-index", f"--wheel-dir={target}", source)
    (built,) = target.iterdir()
    return built


def pip(*arguments: str | Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check", *arguments],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_name_says_version_and_that_any_python_3_takes_it(wheel):
    assert wheel.name == f"poptorch_portable-{poptorch.__version__}-py3-none-any.whl"


def test_every_module_the_mark_of_types_and_the_style_of_reports_is_in_it(wheel):
    names = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    modules = {path.relative_to(PORTABLE).as_posix() for name in PACKAGES for path in (PORTABLE / name).rglob("*.py")}
    assert names == modules | {f"{name}/py.typed" for name in PACKAGES} | {"poptorch/reports/page.css"}


def test_what_it_says_of_itself(wheel):
    archive = zipfile.ZipFile(wheel)
    (about,) = (name for name in archive.namelist() if name.endswith(".dist-info/METADATA"))
    said = email.message_from_string(archive.read(about).decode())
    assert (said["Name"], said["Version"]) == ("poptorch-portable", poptorch.__version__)
    assert (said["License-Expression"], said["License-File"]) == ("MIT", "LICENSE")
    assert said["Requires-Python"] == ">=3.10"
    assert said.get_payload().strip() == (PORTABLE / "README.md").read_text().strip()
    licence = archive.read(about.replace("METADATA", "licenses/LICENSE"))
    assert licence == (PORTABLE.parent / "LICENSE").read_bytes()  # of the repository, for all of it


def test_an_installed_one_runs_an_example_outside_the_repository(wheel, tmp_path):
    installed, folder = tmp_path / "installed", tmp_path / "empty"
    folder.mkdir()
    pip("install", "--no-deps", "--no-index", f"--target={installed}", wheel)
    example = shutil.copy(PORTABLE / "examples" / "for_loop_decoder.py", tmp_path)
    start = (
        f"import sys, runpy, poptorch; print(poptorch.__file__); runpy.run_path({str(example)!r}, run_name='__main__')"
    )
    done = subprocess.run(
        [sys.executable, "-c", start],
        cwd=folder,
        env={"PYTHONPATH": str(installed)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    where, *printed = done.stdout.splitlines()
    assert where == str(installed / "poptorch" / "__init__.py") and "log probability" in printed[-1]
    assert list(folder.iterdir()) == []
