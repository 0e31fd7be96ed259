"""Builds custom_ops.so for what the host has: the Poplar SDK (PopART operators) or torch (CPU and CUDA operators), and
what needs a C++ compiler only: bpe_encoder.so, the tokenizer's encoder, megatron_data.so, loops of Megatron's data,
and, where there is no SDK, portable/'s kernels, and for torch its memory of tensors.

`make` runs this as `python3 -m custom_ops.build`, with the interpreter whose torch is meant. It needs the standard
library only, looks at torch's files without importing it, and compiles only if sources, torch or flags changed.
Exit status: 0 also if there is nothing to build with (the reference serves then), 1 if the compiler fails.
"""

from __future__ import annotations

import hashlib
import importlib.util
import os
import re
import runpy
import shlex
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import NamedTuple

from corpora.program import ProgramParser
from custom_ops import LIBRARY, build_stamp

SOURCES = Path(__file__).resolve().parent
NEXT_COMMAND = """custom_ops: nothing to build for: neither torch nor the Poplar SDK is there. Next, one of
  make setup      installs everything into .venv, torch included; then `make` again
  pip install -r requirements.txt -e ./portable      the same into the environment you are in
  source <Poplar SDK>/enable.sh      on a host with IPUs"""


# Nobody reads the flags that comparisons of floating-point numbers set, and with them GCC keeps a loop with a bound on
# its numbers (exponentials, GELU) scalar.
VECTORISE = "-fno-trapping-math"


class Torch(NamedTuple):
    """An installed torch, read from its files: importing it would cost every `make` two seconds."""

    root: Path
    version: str
    cuda: str | None  # the CUDA version that it was built for
    commit: str  # of its sources

    def release(self) -> tuple[int, int]:
        """(2, 13) of version "2.13.0+cpu"."""
        major, minor = self.version.split(".")[:2]
        return int(major), int(minor)

    def flags(self, *libraries: str) -> list[str]:
        """Compiler and linker flags of an extension: headers, libraries, the C++ standard and ABI of this torch."""
        # The standard is the one that torch's own extension builder uses: 17 for 2.0, 20 for 2.13.
        builder = (self.root / "utils" / "cpp_extension.py").read_text(encoding="utf-8")
        standard = max(re.findall(r"-std=c\+\+(\d\d)", builder), default="17")
        # Wheels up to 2.6 used the old ABI of std::string; where nothing is said the compiler's default is right.
        config = (self.root / "share" / "cmake" / "Torch" / "TorchConfig.cmake").read_text(encoding="utf-8")
        abi = re.findall(r"-D_GLIBCXX_USE_CXX11_ABI=\d", config)[:1]
        include = self.root / "include"
        headers = ["-isystem", str(include), "-isystem", str(include / "torch" / "csrc" / "api" / "include")]
        linked = ["-l" + library for library in libraries]
        return ["-std=c++" + standard] + abi + headers + ["-L" + str(self.root / "lib")] + linked


class Native(NamedTuple):
    """A library of its own, `name` seen from custom_ops.so's folder. `units` are compiled with `included`.

    It is in C++ alone, or made for the installed torch, of which `for_torch` is the name of a macro for version and
    commit. portable/ takes no torch before 2.11, nor would the source.
    """

    name: str
    feature: str
    units: tuple[Path, ...]
    included: tuple[Path, ...]
    without: str  # what serves in its place
    with_sdk: bool = True  # whether it is of use on a host with the Poplar SDK
    for_torch: str = ""


_ROOT = SOURCES.parent
_KERNELS = _ROOT / "portable" / "poptorch" / "device" / "native"
_TENSOR_MEMORY = (_KERNELS / "tensor_memory_torch.cpp", _KERNELS / "tensor_reserve.h")
NATIVE = (
    Native(
        "bpe_encoder.so",  # tokenizer/native.py loads it
        "native tokenizer",
        (_ROOT / "tokenizer" / "bpe_encoder.cpp",),
        (_ROOT / "tokenizer" / "unicode_classes.inc",),
        "the tokenizers library",
    ),
    Native(
        "megatron_data.so",  # data/megatron/native.py loads it
        "native loops of Megatron's data",
        (_ROOT / "data" / "megatron" / "loops.cpp",),
        (),
        "numpy",
    ),
    Native(
        "portable/poptorch/device/native/poptorch_kernels.so",  # the package beside it loads it
        "native kernels of portable/",
        tuple(sorted(set(_KERNELS.glob("*.cpp")) - set(_TENSOR_MEMORY))),
        tuple(sorted(set(_KERNELS.glob("*.h")) - set(_TENSOR_MEMORY))),
        "plain torch",
        with_sdk=False,
    ),
    Native(
        "portable/poptorch/device/native/poptorch_tensor_memory.so",  # tensor_memory.py beside it loads it
        "memory of tensors of portable/",
        _TENSOR_MEMORY[:1],
        _TENSOR_MEMORY[1:],
        "torch's own allocator",
        with_sdk=False,
        for_torch="TENSOR_MEMORY_TORCH",
    ),
)


def find_torch() -> Torch | None:
    """The torch of this interpreter, or None."""
    spec = importlib.util.find_spec("torch")
    if spec is None or not spec.origin:
        return None
    root = Path(spec.origin).parent
    version = runpy.run_path(str(root / "version.py"))
    return Torch(root, version["__version__"], version["cuda"], version["git_version"])


def features(sdk: str, torch: Torch | None, compiler: bool) -> list[str]:
    """One line for each kind of operator: built or not, and why."""
    yes = "yes ({})" if compiler else "no ({}, but there is no C++ compiler)"
    if sdk:
        cpu = cuda = "no (POPLAR_SDK_ENABLED is set)"
        popart = yes.format(f"POPLAR_SDK_ENABLED={sdk}")
    elif torch is None:
        cpu = cuda = f"no (no torch in {sys.executable})"
        popart = "no (POPLAR_SDK_ENABLED is not set)"
    else:
        cpu = yes.format(f"torch {torch.version}")
        nvcc = "nvcc found" if shutil.which("nvcc") else "no nvcc"
        if torch.cuda:  # the operators so far are made of kernels that torch carries
            cuda = yes.format(f"torch {torch.version} for CUDA {torch.cuda}; {nvcc}, none needed")
        else:
            cuda = f"no ({nvcc}, but torch {torch.version} is a build without CUDA)"
        popart = "no (POPLAR_SDK_ENABLED is not set)"
    return ["torch CPU operators: " + cpu, "torch CUDA operators: " + cuda, "PopART operators: " + popart]


def build(output: Path, cxx: str, cxxflags: str) -> int:
    """Brings `output` up to date and says so; returns the exit status."""
    sdk, torch = os.environ.get("POPLAR_SDK_ENABLED", ""), find_torch()
    compiler = shlex.split(cxx)
    have_compiler = bool(compiler and shutil.which(compiler[0]))
    for line in features(sdk, torch, have_compiler):
        print("custom_ops: " + line)
    if sdk:
        # enable.sh sets CPATH and LIBRARY_PATH, so the SDK's headers and libraries need no flags.
        target, kind = f"PopART {sdk}", "popart"
        flags = ["-std=c++17", "-DONNX_NAMESPACE=onnx", "-lpopart", "-lpoplar", "-lpoputil", "-lpopops"]
    elif torch:
        target, kind, flags = f"torch {torch.version}", "torch", torch.flags("torch_cpu", "c10")
    else:
        print(NEXT_COMMAND)
        return 0
    sources = sorted(SOURCES.glob(f"*_{kind}.cpp")) + [SOURCES / "build_stamp.cpp"]
    # Sources first: the linker looks libraries up for what stands before them.
    command = compiler + ["-shared", "-fPIC", VECTORISE] + [str(source) for source in sources] + flags
    command += shlex.split(cxxflags)
    # runtime_kernels.h includes the structures of portable/'s kernels.
    return _bring_up_to_date(output, target, command, [*sources, _KERNELS / "kernels.h"], have_compiler)


def build_native(library: Native, folder: Path, cxx: str, cxxflags: str) -> int:
    """The same for a library of its own."""
    torch = find_torch() if library.for_torch else None
    compiler = shlex.split(cxx)
    have_compiler = bool(compiler and shutil.which(compiler[0]))
    if not library.with_sdk and os.environ.get("POPLAR_SDK_ENABLED"):
        print(f"custom_ops: {library.feature}: no (POPLAR_SDK_ENABLED is set)")
        return 0
    if library.for_torch and (torch is None or torch.release() < (2, 11)):
        why = f"no torch in {sys.executable}" if torch is None else f"torch {torch.version} is older than 2.11"
        print(f"custom_ops: {library.feature}: no ({why})")
        return 0
    yes = f"yes ({library.name})" if have_compiler else f"no (there is no C++ compiler); {library.without} serves"
    print(f"custom_ops: {library.feature}: {yes}")
    units = [*library.units, SOURCES / "build_stamp.cpp"]
    target, flags = "C++17", ["-std=c++17"]
    if torch is not None:
        target = f"torch {torch.version}"
        flags = [f'-D{library.for_torch}="{torch.version} {torch.commit}"', *torch.flags("c10")]
    command = compiler + ["-shared", "-fPIC"] + [str(unit) for unit in units] + flags + shlex.split(cxxflags)
    sources = [*units, *library.included]
    (folder / library.name).parent.mkdir(parents=True, exist_ok=True)
    return _bring_up_to_date(folder / library.name, target, command, sources, have_compiler)


def _bring_up_to_date(output: Path, target: str, command: list[str], sources: list[Path], have_compiler: bool) -> int:
    digest = hashlib.sha256("\0".join([target] + command).encode())
    for source in sources + sorted(SOURCES.glob("*.h")):
        digest.update(source.read_bytes())
    stamp = f"{target} from {digest.hexdigest()[:16]}"
    if output.exists() and build_stamp(output) == stamp:
        print(f"custom_ops: {output.name} is up to date")
        return 0
    if have_compiler:
        print(f"custom_ops: compiling {output.name} for {target} …", flush=True)
        return _compile(output, command, stamp)
    serves = next(
        (library.without for library in NATIVE if Path(library.name).name == output.name),
        "the reference in plain torch",
    )
    print(f"custom_ops: nothing built: {(command or ['CXX'])[0]} is not found; {serves} serves;")
    print("  for native code install a C++ compiler (apt install g++) and run `make` again")
    if output.exists():
        output.unlink()
        print(f"custom_ops: removed {output.name}, which was built for something else")
    return 0


def _compile(output: Path, command: list[str], stamp: str) -> int:
    started = time.time()
    # Written beside and renamed: a process that has the old file loaded keeps it.
    unfinished = output.with_name(output.name + ".unfinished")
    definition = f'-DCUSTOM_OPS_BUILD_STAMP="custom_ops built for {stamp}"'
    status = subprocess.call(command + [definition, "-o", str(unfinished)])
    if status:
        print(f"custom_ops: the compiler failed ({status}); the command was\n  {shlex.join(command)}")
        if stamp.startswith("PopART"):
            print("HINT: are the SDK's enable scripts sourced? They set CPATH and LIBRARY_PATH")
        else:
            print(f"HINT: `make CXX=…` names another compiler; without {output.name} Python libraries serve")
        return 1
    os.replace(str(unfinished), str(output))
    print(f"custom_ops: built {output.name} in {time.time() - started:.0f} s")
    return 0


def main() -> int:
    parser = ProgramParser("python3 -m custom_ops.build", "Builds the native libraries.")
    parser.add_argument(
        "--output", type=Path, default=LIBRARY, help="custom_ops.so; the others go to their places from its folder"
    )
    parser.add_argument("--cxx", default="g++", help="the C++ compiler, with wrappers if need be")
    parser.add_argument("--cxxflags", default="-O3", help="flags to add")
    args = parser.parse_args()
    status = build(args.output, args.cxx, args.cxxflags)
    for library in NATIVE:
        status = build_native(library, args.output.parent, args.cxx, args.cxxflags) or status
    return status


if __name__ == "__main__":
    sys.exit(main())
