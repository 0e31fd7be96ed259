"""examples_utils.load_lib."""

from __future__ import annotations

import ctypes
import shutil
import subprocess

import pytest
import torch
from programs import infer

import examples_utils
import poptorch
from poptorch import notices, popart_libraries


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


@pytest.fixture
def fresh(monkeypatch):
    monkeypatch.setattr(notices, "_said", set())
    monkeypatch.setattr(popart_libraries, "absent", [])


SOURCE = "// (c)\n#include <popart/op.hpp>\nnamespace {}\n"
LINE = "needs the Poplar SDK; its operators are refused where they are used, its patterns have no effect."


def test_popart_source_is_passed_over(tmp_path, fresh, capsys):
    source = tmp_path / "ops.cpp"
    source.write_text(SOURCE)
    for _ in range(2):
        assert isinstance(examples_utils.load_lib(source), ctypes.CDLL)
    assert capsys.readouterr().err.count(f"{source} {LINE}") == 1
    source.write_text("#include <torch/library.h>  // nothing of popart/\n")
    with pytest.raises(RuntimeError, match="ops.so does not exist"):
        examples_utils.load_lib(source)


@pytest.mark.skipif(shutil.which("gcc") is None, reason="needs a C compiler")
@pytest.mark.parametrize("how", ["ctypes", "torch", "load_lib"])
def test_a_library_that_needs_the_sdk_is_passed_over(tmp_path, fresh, capsys, how):
    def build(name, text, *more):
        (tmp_path / f"{name}.c").write_text(text)
        command = ["gcc", "-shared", "-fPIC", "-Wl,--no-as-needed", str(tmp_path / f"{name}.c")]
        subprocess.run([*command, "-o", str(tmp_path / f"{name}.so"), f"-L{tmp_path}", *more], check=True)

    build("libpopart", "int popart(void) { return 1; }\n")
    build("ops", "int popart(void);\nint answer(void) { return popart(); }\n", "-lpopart")
    (tmp_path / "libpopart.so").unlink()
    path = str(tmp_path / "ops.so")
    load = {"ctypes": ctypes.cdll.LoadLibrary, "torch": torch.ops.load_library, "load_lib": examples_utils.load_lib}
    handle = load[how](path)
    assert f"{path} {LINE}" in capsys.readouterr().err
    assert how == "torch" or not hasattr(handle, "answer")
    with pytest.raises(OSError, match="no_such"):
        ctypes.CDLL(str(tmp_path / "no_such.so"))


def test_an_operator_of_it_is_refused_where_it_is_used(tmp_path, fresh):
    (tmp_path / "ops.cpp").write_text(SOURCE)
    examples_utils.load_lib(tmp_path / "ops.cpp")

    def forward(m, x):
        return poptorch.custom_op([x], "Lost", "com.example.lost", 1, [x])[0]

    assert infer(lambda m, x: x + 1, torch.zeros(1)).item() == 1
    with pytest.raises(poptorch.Error, match="No kernel for the custom op com.example.lost.Lost.*ops.cpp would, with"):
        infer(forward, torch.zeros(1))
    poptorch.ops.register_custom_op("Lost", "com.example.lost")(lambda x: x + 2)
    assert infer(forward, torch.zeros(1)).item() == 2
