"""`make`: what it builds and says for each kind of host, and that what is done is not done again.

Interpreters and compilers are small scripts that write down how they were called, so nothing is installed.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
REQUIREMENT_FILES = ["constraints.txt", *sorted(path.name for path in ROOT.glob("requirements*.txt"))]

# Stands for g++: notes its arguments and leaves a library that carries the stamp it was given.
COMPILER = """#!{python}
import sys
open({log!r}, "a").write(" ".join(sys.argv[1:]) + "\\n")
stamp = next(a for a in sys.argv if a.startswith("-DCUSTOM_OPS_BUILD_STAMP=")).split('"')[1]
open(sys.argv[sys.argv.index("-o") + 1], "wb").write(stamp.encode() + bytes(1))
"""

# Stands for python3: `-m venv DIR` puts a copy of it there, `-m pip …` is noted, `-c …` succeeds.
INTERPRETER = """#!/bin/sh
if [ "$2" = venv ]; then mkdir -p "$3/bin" && cp "$0" "$3/bin/python"; else echo "$@" >> "{log}"; fi
"""


@pytest.fixture
def tree(tmp_path):
    """A copy of what make reads, without .venv and the libraries."""
    root = tmp_path / "tree"
    for folder in ("corpora", "custom_ops", "data", "tokenizer"):
        shutil.copytree(str(ROOT / folder), str(root / folder), ignore=shutil.ignore_patterns("__pycache__"))
    for name in ["Makefile"] + REQUIREMENT_FILES:
        shutil.copy(str(ROOT / name), str(root / name))
    kernels = Path("portable", "poptorch", "device", "native")
    shutil.copytree(str(ROOT / kernels), str(root / kernels), ignore=shutil.ignore_patterns("__pycache__", "*.so"))
    (root / "portable" / "pyproject.toml").write_text("[project]\n")
    return root


def make(tree, *arguments, **variables):
    """`make` in `tree`, with nothing inherited that would change its mind."""
    inherited = ("MAKEFLAGS", "MAKELEVEL", "MFLAGS", "PYTHON", "CXX", "CXXFLAGS", "POPLAR_SDK_ENABLED")
    env = {name: value for name, value in os.environ.items() if name not in inherited}
    command = ["make", "-C", str(tree), "--no-print-directory"] + list(arguments)
    run = subprocess.run(command, env={**env, **variables}, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    return run.returncode, run.stdout


def script(path, text):
    path.write_text(text)
    path.chmod(0o755)
    return path


@pytest.fixture
def bare_python(tmp_path):
    """An interpreter that finds no installed package."""
    return script(tmp_path / "bare", f'#!/bin/sh\nexec "{sys.executable}" -S -E "$@"\n')


@pytest.fixture
def compiler(tmp_path):
    log = tmp_path / "compiler.log"
    log.write_text("")
    path = script(tmp_path / "compiler", COMPILER.format(python=sys.executable, log=str(log)))
    return path, log


@pytest.fixture
def interpreter(tmp_path):
    log = tmp_path / "interpreter.log"
    log.write_text("")
    return script(tmp_path / "interpreter", INTERPRETER.format(log=log)), log


def test_without_torch_names_the_next_command(tree, bare_python, compiler):
    status, output = make(tree, f"CXX={compiler[0]}", PYTHON=str(bare_python))
    assert status == 0, output
    assert "torch CPU operators: no (no torch in" in output
    assert "PopART operators: no (POPLAR_SDK_ENABLED is not set)" in output
    assert "make setup" in output and "pip install -r requirements.txt" in output
    assert not (tree / "custom_ops.so").exists()


def test_without_compiler_the_reference_serves(tree):
    (tree / "custom_ops.so").write_bytes(b"custom_ops built for torch 0.0 from long ago\0")
    status, output = make(tree, "PYTHON=" + sys.executable, "CXX=missing-compiler")
    assert status == 0, output
    assert "missing-compiler is not found; the reference in plain torch serves" in output
    assert re.search(r"torch CPU operators: no \(torch .*, but there is no C\+\+ compiler\)", output)
    assert not (tree / "custom_ops.so").exists(), "a library of another torch must not stay"


def test_without_python_says_so(tree):
    status, output = make(tree, PYTHON="missing-python")
    assert status != 0
    assert "missing-python is not found" in output and "make PYTHON=" in output


def calls_for(library, log):
    return [line for line in log.read_text().splitlines() if library in line]


def test_builds_for_torch_only_when_something_changed(tree, compiler):
    path, log = compiler
    arguments = ["PYTHON=" + sys.executable, f"CXX={path}"]

    def compilations():
        status, output = make(tree, *arguments)
        assert status == 0, output
        return len(calls_for("custom_ops.so", log))

    assert compilations() == 1
    (call,) = calls_for("custom_ops.so", log)
    assert "remap_ce_torch.cpp" in call and "-ltorch_cpu" in call and "popart" not in call
    (call,) = calls_for("poptorch_tensor_memory.so", log)
    assert "tensor_memory_torch.cpp" in call and "-lc10" in call and "-ltorch_cpu" not in call
    assert f'-DTENSOR_MEMORY_TORCH="{metadata.version("torch")} ' in call
    assert (tree / "custom_ops.so").exists() and not (tree / "custom_ops.so.unfinished").exists()
    assert compilations() == 1, "nothing changed"
    os.utime(str(tree / "custom_ops" / "remap_ce_torch.cpp"))
    assert compilations() == 1, "a new date is no change"
    with open(str(tree / "custom_ops" / "remap_ce_torch.cpp"), "a") as source:
        source.write("// more\n")
    assert compilations() == 2, "a source changed"
    arguments.append("CXXFLAGS=-O1")
    assert compilations() == 3, "the flags changed"
    assert make(tree, "clean")[0] == 0
    assert not list(tree.rglob("*.so"))
    assert compilations() == 4


def test_builds_what_needs_only_a_compiler_for_every_host_and_only_when_something_changed(tree, compiler, bare_python):
    path, log = compiler
    for expected, variables in [(1, {}), (1, {}), (2, {"CXXFLAGS": "-O1"})]:
        status, output = make(tree, PYTHON=str(bare_python), CXX=str(path), **variables)
        assert status == 0, output
        assert "native tokenizer: yes" in output
        assert len(calls_for("bpe_encoder.so", log)) == expected
        assert len(calls_for("megatron_data.so", log)) == expected
        assert len(calls_for("poptorch_kernels.so", log)) == expected
        assert not calls_for("poptorch_tensor_memory.so", log), "without torch"
    assert {library.name for library in tree.glob("*.so")} == {"bpe_encoder.so", "megatron_data.so"}
    kernels = tree / "portable" / "poptorch" / "device" / "native" / "poptorch_kernels.so"
    assert kernels.exists()
    with open(str(tree / "tokenizer" / "unicode_classes.inc"), "a") as source:
        source.write("// more\n")
    status, output = make(tree, PYTHON=str(bare_python), CXX="missing-compiler")
    assert status == 0 and "the tokenizers library serves" in output
    assert not (tree / "bpe_encoder.so").exists()
    assert "native kernels of portable/: no (there is no C++ compiler); plain torch serves" in output
    assert not kernels.exists()


def test_compiler_that_fails_leaves_no_library(tree):
    status, output = make(tree, "PYTHON=" + sys.executable, "CXX=false")
    assert status != 0
    assert "the compiler failed (1)" in output and "HINT:" in output
    assert not (tree / "custom_ops.so").exists()


def test_builds_for_popart_where_there_is_an_sdk(tree, compiler, bare_python):
    path, log = compiler
    arguments = [f"CXX={path}", f"PYTHON={bare_python}"]
    status, output = make(tree, *arguments, POPLAR_SDK_ENABLED="/opt/poplar")
    assert status == 0, output
    assert "PopART operators: yes (POPLAR_SDK_ENABLED=/opt/poplar)" in output
    call = calls_for("custom_ops.so", log)[0].split()
    sources = {Path(argument).name for argument in call if argument.endswith(".cpp")}
    assert sources == {"remap_ce_popart.cpp", "residual_add_inplace_popart.cpp", "build_stamp.cpp"}
    assert "native kernels of portable/: no (POPLAR_SDK_ENABLED is set)" in output
    assert not calls_for("poptorch_kernels.so", log)
    assert {"-shared", "-fPIC", "-DONNX_NAMESPACE=onnx", "-lpopart", "-lpoplar", "-lpoputil"} <= set(call)


@pytest.mark.skipif(not os.environ.get("POPLAR_SDK_ENABLED"), reason="the Poplar SDK's headers are needed")
@pytest.mark.parametrize("stem", ["remap_ce", "residual_add_inplace"])
def test_popart_sources_compile(stem):
    source = ROOT / "custom_ops" / (stem + "_popart.cpp")
    command = ["g++", "-std=c++17", "-fsyntax-only", "-DONNX_NAMESPACE=onnx", str(source)]
    run = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    assert run.returncode == 0, run.stdout


def test_setup_installs_once_and_again_when_a_requirement_changes(tree, interpreter):
    path, log = interpreter
    for _ in range(2):
        status, output = make(tree, "setup", PYTHON=str(path))
        assert status == 0, output
    calls = [line for line in log.read_text().splitlines() if "install" in line]
    assert len(calls) == 1
    assert calls[0].endswith("-r requirements.txt -c constraints.txt -e ./portable")
    with open(str(tree / "requirements.txt"), "a") as requirements:
        requirements.write("# more\n")
    assert make(tree, "setup", PYTHON=str(path))[0] == 0
    assert log.read_text().count("install") == 2


def test_setup_on_an_ipu_host_leaves_portable_out(tree, interpreter):
    path, log = interpreter
    status, output = make(tree, "setup", PYTHON=str(path), POPLAR_SDK_ENABLED="/opt/poplar")
    assert status == 0, output
    assert log.read_text().count("install") == 1 and "portable" not in log.read_text()


def test_setup_refuses_an_old_python(tree, tmp_path):
    old = script(tmp_path / "old", "#!/bin/sh\nexit 1\n")
    status, output = make(tree, "setup", PYTHON=str(old))
    assert status != 0
    assert "Python 3.10 or newer is needed" in output and "PYTHON=python3" in output
    assert not (tree / ".venv").exists()


@pytest.mark.parametrize(
    "target, commands",
    [
        ("demo", ["-r requirements.txt", "-r requirements-plots.txt", "custom_ops.build", "bash run/demo.sh"]),
        ("seeds", ["-r requirements.txt", "custom_ops.build", "-m benchmarks.seeds"]),
        ("test", ["-r requirements.txt", "-r requirements-dev.txt", "custom_ops.build", "-m pytest"]),
        ("lint", ["-r requirements-dev.txt", "ruff format --check", "ruff check", "clang-format --dry-run --Werror"]),
    ],
)
def test_order_of_commands(tree, target, commands):
    status, output = make(tree, "-n", target)
    assert status == 0, output
    places = [output.find(command) for command in commands]
    assert -1 not in places, output
    assert places == sorted(places), output


@pytest.mark.parametrize("target", ["test-gpu", "test-browser"])
def test_what_is_missing_for_skipped_tests_is_said(tree, target):
    command = re.search(r"-m pytest (.*)", make(tree, "-n", target)[1]).group(1)
    file = {"test-gpu": "tests/test_cuda.py", "test-browser": "tests/serving/test_page.py"}[target]
    bare = {"CUDA_VISIBLE_DEVICES": "", "CHROMIUM": "", "PATH": ""}
    words = [sys.executable, "-m", "pytest", *command.split(), "-p", "no:cacheprovider", file]
    said = subprocess.run(words, cwd=ROOT, env={**os.environ, **bare}, capture_output=True, text=True).stdout
    needed = {"test-gpu": "it takes an NVIDIA GPU and torch's CUDA build", "test-browser": "`apt install chromium`"}
    assert needed[target] in said or "requirements-serving.txt is not installed" in said, said


def test_the_demo_is_told_where_its_caller_stands(tree):
    assert 'CALLED_FROM="/over there" bash run/demo.sh' in make(tree, "-n", "demo", PWD="/over there")[1]


def test_help_lists_the_targets(tree):
    status, output = make(tree, "help")
    assert status == 0
    targets = (
        "build setup setup-dev demo seeds test test-gpu test-harness test-browser test-programs test-checkpoints "
        "test-long bench-compare lint clean help"
    )
    assert [line.split()[1] for line in output.splitlines()] == targets.split()


@pytest.mark.parametrize("name", REQUIREMENT_FILES)
def test_requirements_are_pinned(name):
    lines = [line.split("#")[0].strip() for line in (ROOT / name).read_text().splitlines()]
    requirements = [line for line in lines if line and not re.match("-[cr] ", line)]
    assert requirements
    for line in requirements:
        assert re.fullmatch(r'[\w-]+==[\w.]+(; python_version (<|>=|==) "3\.\d+")?', line), line


def test_the_application_brings_no_torch():
    names = re.findall(r"^[\w-]+", (ROOT / "requirements.txt").read_text(), flags=re.MULTILINE)
    assert "numpy" in names and not {"torch", "poptorch", "poptorch-portable"} & set(names)
    assert re.search(r"^torch==2\.13\.0; ", (ROOT / "constraints.txt").read_text(), flags=re.MULTILINE)
