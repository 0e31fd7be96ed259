"""Whether this CPU multiplies bfloat16 or float16 so much faster than float32 that it is worth it.

Only a CPU that claims units for it is asked. A product is tried in a child process first, for a virtual machine may
claim units and trap; then products of both types are timed in turn, and the median of their ratios decides. It is kept
for the machine in a file of the user's cache folder, so that the next program does not measure.
"""

from __future__ import annotations

import contextlib
import dataclasses
import faulthandler
import functools
import hashlib
import json
import math
import os
import statistics
import time
import warnings
from collections.abc import Callable
from pathlib import Path

import torch

WORTH_IT = 1.5  # times float32's speed
# Units by the type they multiply, as the kernel names them in /proc/cpuinfo.
UNITS = {
    torch.bfloat16: frozenset({"avx512_bf16", "amx_bf16", "avx_ne_convert", "bf16"}),
    torch.float16: frozenset({"avx512_fp16", "amx_fp16"}),
}
_ROWS, _INNER, _COLUMNS = 512, 768, 768  # the product that is timed, or one of fewer rows where that takes too long
_FEWEST_ROWS = 16
_SAMPLE = 0.015  # seconds that a sample is meant to take at most
_BUDGET = 0.15  # seconds for all samples of one type; warming up comes to that
_FEWEST, _MOST = 5, 25  # samples
_SPREAD = 0.25  # of the middle half of the ratios, as a share of their median: above it the machine is busy
_TRIAL = 20.0  # seconds that the child process has
_CPU_INFORMATION = Path("/proc/cpuinfo")


@dataclasses.dataclass(frozen=True)
class Speed:
    """How products of a type compare with float32's.

    `ratio` is how many times as fast they are; None where that was not measured, for the reason `why`.
    """

    ratio: float | None
    why: str = ""

    @property
    def worth_it(self) -> bool:
        """Whether programs in half should use them."""
        return self.ratio is not None and self.ratio >= WORTH_IT


@functools.cache
def speed(dtype: torch.dtype) -> Speed:
    """What products of `dtype` on this CPU are worth, with the threads that torch has. Measured once a machine."""
    name = str(dtype).removeprefix("torch.")
    if not claimed(dtype):
        return Speed(None, f"this CPU has no units for {name}")
    failure = _fails(dtype) if _read(_key(name)) is None else None
    if failure is not None:
        return Speed(None, f"this CPU claims units for {name}, but {failure}")
    return Speed(measured(name, lambda: _stopwatch(dtype)))


def measured(name: str, stopwatch: Callable[[], Callable[[], tuple[float, float]]]) -> float:
    """The ratio that is kept for `name` on this machine, or else that of samples that `stopwatch()` takes.

    It is kept from then on, unless the machine was too busy.
    """
    kept = _read(key := _key(name))
    if kept is not None:
        return kept
    ratio, steady = measure(stopwatch())
    if steady:
        _write(key, ratio)
    return ratio


def claimed(dtype: torch.dtype) -> bool:
    """Whether the CPU, or torch's library for products, says that it multiplies `dtype` itself."""
    return bool(_flags() & UNITS[dtype]) or (dtype == torch.bfloat16 and _library_says_so())


def has_tiles() -> bool:
    """Whether the CPU has AMX for bfloat16: torch's library multiplies several times faster by it than by vectors."""
    return "amx_bf16" in _flags()


@functools.cache
def _flags() -> frozenset[str]:
    """Of the first processor: "flags" of x86, "Features" of Arm. Nothing where the system does not tell."""
    try:
        lines = _CPU_INFORMATION.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return frozenset()
    found = (line.partition(":") for line in lines)
    return next(
        (frozenset(rest.split()) for name, _, rest in found if name.strip() in ("flags", "Features")), frozenset()
    )


def _library_says_so() -> bool:
    asks = getattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", None)
    return torch.backends.mkldnn.is_available() and asks is not None and bool(asks())


# -- the trial ---------------------------------------------------------------------------------------------------------


def _fails(dtype: torch.dtype) -> str | None:
    """How a small product ends that a child process makes, if it does not end well."""
    if not hasattr(os, "fork"):
        return "there is no process to try them in"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of threads: the child uses none of them
        child = os.fork()
    if child == 0:
        status = 1
        try:
            faulthandler.disable()  # a trap is no news
            status = 0 if _is_right(dtype) else 2
        finally:
            os._exit(status)
    return _how_it_ended(child, time.monotonic() + _TRIAL)


def _is_right(dtype: torch.dtype) -> bool:
    torch.set_num_threads(1)  # those of the parent do not exist here
    a = (torch.arange(64 * 64, dtype=torch.float32) % 7 - 3.0).view(
        64, 64
    )  # whole numbers below 256: exact in either type
    return torch.equal((a.to(dtype) @ torch.eye(64, dtype=dtype)).float(), a)


def _how_it_ended(child: int, deadline: float) -> str | None:
    while True:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            break
        if time.monotonic() > deadline:
            os.kill(child, 9)
            os.waitpid(child, 0)
            return "a product with them does not end"
        time.sleep(0.002)
    if os.WIFSIGNALED(status):
        return f"a product with them ends by signal {os.WTERMSIG(status)}"
    return {0: None, 2: "a product with them is wrong"}.get(os.WEXITSTATUS(status), "a product with them fails")


# -- the measurement ---------------------------------------------------------------------------------------------------


def _stopwatch(dtype: torch.dtype) -> Callable[[], tuple[float, float]]:
    """What takes one sample: seconds of a float32 product and of one of `dtype`.

    Of as many rows as a share of the time allows: a library without kernels for the type is hundreds of times slower.
    """
    b = torch.ones(_INNER, _COLUMNS, dtype=torch.float32)
    narrow = b.to(dtype)
    pairs: list[tuple[torch.Tensor, torch.Tensor]] = []

    def size(rows: int) -> None:
        a = torch.ones(rows, _INNER, dtype=torch.float32)
        pairs[:] = [(a, b), (a.to(dtype), narrow)]

    def seconds(left: torch.Tensor, right: torch.Tensor) -> float:
        start = time.perf_counter()
        torch.mm(left, right)
        return time.perf_counter() - start

    def sample() -> tuple[float, float]:
        return seconds(*pairs[0]), seconds(*pairs[1])

    size(_FEWEST_ROWS)
    sample()  # warms up
    size(max(_FEWEST_ROWS, min(_ROWS, int(_FEWEST_ROWS * _SAMPLE / sum(sample())))))
    sample()
    return sample


def measure(sample: Callable[[], tuple[float, float]]) -> tuple[float, bool]:
    """(the median of the first seconds over the second, whether the samples agree) over several samples.

    Samples are taken until they agree or the time for it is over: a machine that is busy with something else is asked
    longer, and what it answered is not to be kept.
    """
    ratios: list[float] = []
    spent, steady = 0.0, False
    while len(ratios) < _FEWEST or (not steady and spent < _BUDGET and len(ratios) < _MOST):
        first, second = sample()
        spent += first + second
        ratios.append(first / max(second, 1e-9))
        if len(ratios) >= _FEWEST:
            lower, middle, upper = statistics.quantiles(ratios, n=4)
            steady = upper - lower <= _SPREAD * middle
    return statistics.median(ratios), steady


# -- what is kept ------------------------------------------------------------------------------------------------------


def _key(name: str) -> str:
    """What a measurement holds for: the processor and its flags, torch and its threads, what was measured."""
    try:
        lines = _CPU_INFORMATION.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        lines = []
    model = next((line for line in lines if line.startswith(("model name", "CPU part"))), "")
    flags = hashlib.sha256(" ".join(sorted(_flags())).encode()).hexdigest()[:16]
    return " | ".join((model.partition(":")[2].strip(), flags, torch.__version__, str(torch.get_num_threads()), name))


def _file() -> Path:
    folder = os.environ.get("XDG_CACHE_HOME") or os.path.join(os.path.expanduser("~"), ".cache")
    return Path(folder) / "poptorch-portable" / "half_speed.json"


def _entries() -> dict[str, object]:
    try:
        entries = json.loads(_file().read_text(encoding="utf-8"))
    except (OSError, ValueError):  # not there, not readable, or damaged: it is measured again
        return {}
    return entries if isinstance(entries, dict) else {}


def _read(key: str) -> float | None:
    ratio = _entries().get(key)
    usable = isinstance(ratio, (int, float)) and not isinstance(ratio, bool) and math.isfinite(ratio) and ratio > 0
    return float(ratio) if usable else None


def _write(key: str, ratio: float) -> None:
    path = _file()
    temporary = path.with_name(f"{path.name}.{os.getpid()}.partial")
    with contextlib.suppress(OSError):  # it serves the next start only
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary.write_text(json.dumps({**_entries(), key: round(ratio, 3)}, indent=1) + "\n", encoding="utf-8")
        os.replace(temporary, path)
