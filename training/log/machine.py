"""The machine a run is on: what it is, how much memory the run has taken, and the arithmetic its device could do."""

from __future__ import annotations

import os
import platform
import resource
import subprocess
import time
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import poptorch
import torch

from model.config import GPT2Config
from model.pipeline import TRAINING, head_operations, layer_operations, projection_operations

ROOT = Path(__file__).resolve().parents[2]

# Dense half products with float32 sums, in TFLOP/s, as the vendor's data sheets have them (without sparsity), by a part
# of the device's name; the first that fits counts.
DATA_SHEETS = (
    ("H200", 989.0),
    ("H100 PCIe", 756.0),
    ("H100 NVL", 835.0),
    ("H100", 989.0),
    ("A100", 312.0),
    ("L40S", 362.0),
    ("L4", 121.0),
    ("A10", 125.0),
    ("V100", 125.0),
    ("T4", 65.0),
)
# Of CPUs, for products of 16 bits, by the type that they multiply: those that portable/ asks about.
_UNITS = {
    "bfloat16": {"avx512_bf16", "amx_bf16", "avx_ne_convert", "bf16"},
    "float16": {"avx512_fp16", "amx_fp16"},
}
_PRODUCT = 1024  # rows and columns of the product that is timed on a CPU


class Peak(NamedTuple):
    """Floating-point operations a second, and where the figure is from."""

    flops: float
    source: str


def flops_per_token(config: GPT2Config, length: int) -> float:
    """Multiplications and additions that training on one token takes.

    6 for each weight of a matrix, 2 forward and 4 backward: 6 (L (4 C^2 + 2 C I) + V C), and 12 L T C for attention's
    two products over all T positions, masked ones included. A block that L layers share counts L times, a factorised
    embedding of width E 6 (V E + 2 C E) in place of 6 V C. What recomputation repeats is not counted. (PaLM, Chowdhery
    et al. 2022, appendix B, with the head's matrix.)
    """
    once = config.n_layer * layer_operations(config, length) + head_operations(config)
    return float(TRAINING * (once + 2 * projection_operations(config)))


def computes_on_ipus() -> bool:
    """Whether there are IPUs. POPTORCH_PORTABLE_IPU_VERSION has a program told so by the runtime that needs none."""
    return poptorch.ipuHardwareIsAvailable() and not os.environ.get("POPTORCH_PORTABLE_IPU_VERSION")


def computes_on_cuda() -> bool:
    """Whether the runtime takes a CUDA device, as it does where there is one."""
    return torch.cuda.is_available() and os.environ.get("POPTORCH_PORTABLE_DEVICE", "cuda") != "cpu"


def device_peak(stated: float | None) -> Peak | None:
    """What the device could do at most: as `stated` in TFLOP/s, from a data sheet, or measured on a CPU.

    None for IPUs, and for a CUDA device that no data sheet here names. Measuring takes a tenth of a second, once a
    process.
    """
    if stated is not None:
        return Peak(stated * 1e12, "--peak-tflops")
    if computes_on_ipus():
        return None
    if computes_on_cuda():
        name = torch.cuda.get_device_name()
        rate = next((rate for part, rate in DATA_SHEETS if part in name), None)
        return None if rate is None else Peak(rate * 1e12, f"data sheet of {name}, dense half")
    return Peak(_measured(), "measured: float32 product on the CPU")


@lru_cache(maxsize=None)
def _measured() -> float:
    return _time_products()


def _time_products() -> float:
    """The best of some square products of 2 N^3 operations each."""
    a = torch.ones(_PRODUCT, _PRODUCT)
    torch.mm(a, a)  # warms up
    best, start, count = float("inf"), time.perf_counter(), 0
    while count < 3 or time.perf_counter() < start + 0.1:
        began = time.perf_counter()
        torch.mm(a, a)
        best, count = min(best, time.perf_counter() - began), count + 1
    return 2.0 * _PRODUCT**3 / best


def measured_again(peak: Peak) -> Peak:
    """The peak of a CPU that was busy with something else when it was measured, if that is higher now."""
    return max(peak, Peak(_time_products(), peak.source))


def device_line() -> str:
    """What a run computes on, with how many threads and in which precision: its first line."""
    if computes_on_ipus():
        return "device: IPU, half"
    if computes_on_cuda():
        return f"device: {torch.cuda.get_device_name()}, half"
    return f"device: CPU ({_processor()}), {torch.get_num_threads()} threads, {_half_on_a_cpu()}"


def _half_on_a_cpu() -> str:
    """What stands for half. Where no setting says so the runtime chooses for products, and says so when it compiles."""
    asked = _asked_for() or "the type that the runtime chooses"
    if asked == "native":
        return "half"
    return "float32 for half" if asked == "float32" else f"float32 for half, its products in {asked}"


def _asked_for() -> str:
    """How half is to be computed on a CPU: the type of its products, or "native". Empty where the runtime chooses."""
    return os.environ.get("POPTORCH_PORTABLE_HALF", "")


def _type_of_products() -> str:
    """What half's products on this CPU multiply: as asked for, or the type that it has units for, or else float32.

    The runtime's own choice, which it makes when it compiles, is by a measurement of these units.
    """
    return _asked_for() or next((name for name, units in _UNITS.items() if units & _flags()), "float32")


def products_in_16_bits() -> bool:
    """Whether the operands of half's products on this CPU are of 16 bits."""
    return _type_of_products() in _UNITS


def has_bfloat16_kernels() -> bool:
    """Whether the runtime makes such products by its own kernels: of bfloat16 with AVX512_BF16, and without AMX."""
    flags = _flags()
    return _type_of_products() == "bfloat16" and "avx512_bf16" in flags and "amx_bf16" not in flags


def _flags() -> set[str]:
    """What the first processor says it can, in the system's words. Nothing where the system does not tell."""
    found = (line.partition(":")[2].split() for line in _cpu_information() if line.startswith(("flags", "Features")))
    return set(next(found, []))


def _cpu_information() -> list[str]:
    try:
        return Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return []


def memory_gb() -> dict[str, float]:
    """The most memory taken so far in GB, by place: this process, and the CUDA device if it uses one."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if platform.system() == "Darwin" else 1024)
    found = {"host": peak / 1e9}
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        found["device"] = torch.cuda.max_memory_allocated() / 1e9
    return found


def describe() -> dict[str, Any]:
    """Hardware, versions and commit, for run.json."""
    return {
        "hardware": {
            "processor": _processor(),
            "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
            "memory_gb": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9, 1),
            "cuda": [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())],
        },
        "versions": {"python": platform.python_version(), "torch": str(torch.__version__), **_versions()},
        "commit": _commit(),
    }


def _versions() -> dict[str, str]:
    from importlib import metadata

    found = {}
    for name in ("poptorch", "poptorch-portable", "numpy", "tokenizers", "safetensors", "transformers"):
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def _processor() -> str:
    names = [line.split(":", 1)[1].strip() for line in _cpu_information() if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def _commit() -> str | None:
    def git(*words: str) -> str | None:
        try:
            done = subprocess.run(["git", *words], cwd=str(ROOT), capture_output=True, text=True)
        except OSError:
            return None
        return done.stdout.strip() if done.returncode == 0 else None

    head = git("rev-parse", "HEAD")
    return head and head + (" with changes" if git("status", "--porcelain") else "")
