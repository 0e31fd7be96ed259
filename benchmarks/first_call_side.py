"""A process that makes the first calls of a training executor and prints what each took, for first_call.py.

It runs in a checkout, whose model and runtime it measures by way of that checkout's benchmarks/train_step_sides.py.
"""

from __future__ import annotations

import json
import resource
import sys
import time
from pathlib import Path

_STATUS, _RESET = Path("/proc/self/status"), Path("/proc/self/clear_refs")


def peak_bytes() -> int:
    """The largest resident memory since reset_peak(), or of the whole process where that has no effect."""
    if _STATUS.exists():
        line = next(line for line in _STATUS.read_text().splitlines() if line.startswith("VmHWM:"))
        return int(line.split()[1]) * 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def reset_peak() -> None:
    """The peak is measured anew from here on, where the system can do that (Linux: proc(5), clear_refs)."""
    try:
        _RESET.write_text("5")
    except OSError:
        return


def main() -> None:
    answers, sys.stdout = sys.stdout, sys.stderr
    sys.path[0] = str(Path.cwd())  # not this file's folder
    import poptorch  # noqa: F401 - before torch, as in programs: it bounds OpenMP's spin
    import torch

    from benchmarks.train_step_sides import our_step

    settings = json.loads(sys.argv[1])
    torch.set_num_threads(settings["threads"])
    torch.manual_seed(0)
    step = our_step(settings)
    calls = []
    for _ in range(settings["calls"]):
        reset_peak()
        begun, before = time.perf_counter(), resource.getrusage(resource.RUSAGE_SELF)
        loss = step()
        seconds, after = time.perf_counter() - begun, resource.getrusage(resource.RUSAGE_SELF)
        user, system = after.ru_utime - before.ru_utime, after.ru_stime - before.ru_stime
        calls.append(
            {
                "seconds": seconds,
                "processor_seconds": user + system,
                "user_seconds": user,
                "peak_bytes": peak_bytes(),
                "loss": loss,
            }
        )
    print(json.dumps(calls), file=answers)


if __name__ == "__main__":
    main()
