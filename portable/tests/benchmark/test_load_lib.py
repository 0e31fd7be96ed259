"""examples_utils.load_lib."""

from __future__ import annotations

import ctypes
import shutil
import subprocess

import pytest

import examples_utils


@pytest.mark.skipif(shutil.which("gcc") is None, reason="needs a C compiler")
def test_a_library_is_found_beside_its_source(tmp_path):
    source = tmp_path / "ops.c"
    source.write_text("int answer(void) { return 42; }\n")
    subprocess.run(["gcc", "-shared", "-fPIC", str(source), "-o", str(tmp_path / "ops.so")], check=True)
    for given in (tmp_path / "ops.so", str(tmp_path / "ops.cpp")):
        library = examples_utils.load_lib(given)
        assert isinstance(library, ctypes.CDLL) and library.answer() == 42


def test_a_missing_library(tmp_path):
    with pytest.raises(RuntimeError, match="ops.so does not exist\nHINT: build it"):
        examples_utils.load_lib(str(tmp_path / "ops.cpp"))


def test_a_file_that_is_no_library(tmp_path):
    (tmp_path / "ops.so").write_text("text")
    with pytest.raises(RuntimeError, match="(?s)cannot be loaded.*HINT:"):
        examples_utils.load_lib(tmp_path / "ops.so")
