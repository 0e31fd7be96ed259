"""What an executor's first call takes beyond the later ones: compiling, and memory; this tree beside another checkout.

`python -m benchmarks.executor_overhead --other DIR` measures it. Each side is a training executor of GPT-2 in a fresh
process; the sides take turns. Compiling is the first call less the second: tracing, the passes, the copies of weights
and optimizer states on the device, and the pages of memory that a first step touches. Those pages are the system's
time, the same for both sides and, on a virtual machine, very different from minute to minute: the user's time of the
process alone leaves them out.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
SIDES = ("ours", "other")
SIDE = Path(__file__).with_name("first_call_side.py")


def calls_of(tree: Path, python: Path, settings: dict[str, Any]) -> list[dict[str, float]]:
    """The first calls in a process of this tree. Raises RuntimeError with its last line if it fails."""
    variables = dict(os.environ, OMP_NUM_THREADS=str(settings["threads"]), POPTORCH_LOG_LEVEL="ERR")
    variables.update(PYTHONPATH=os.pathsep.join([str(tree / "portable"), str(tree)]), POPTORCH_PORTABLE_DEVICE="cpu")
    words = [str(python), str(SIDE), json.dumps(settings)]
    done = subprocess.run(words, cwd=tree, env=variables, capture_output=True, text=True)
    if done.returncode:
        last = (done.stderr.strip() or "it says nothing").splitlines()[-1]
        raise RuntimeError(f"the process that measures {tree} ended with status {done.returncode}: {last}")
    return json.loads(done.stdout)


def figures(calls: list[dict[str, float]]) -> dict[str, float]:
    """Compiling in seconds, processor seconds and the user's part of them; the first call's peak memory."""
    first, second = calls[:2]
    return {
        "compile_seconds": first["seconds"] - second["seconds"],
        "compile_processor_seconds": first["processor_seconds"] - second["processor_seconds"],
        "compile_user_seconds": first["user_seconds"] - second["user_seconds"],
        "first_peak_gb": first["peak_bytes"] / 1e9,
        "later_peak_gb": max(call["peak_bytes"] for call in calls[1:]) / 1e9,
        "peak_ratio": first["peak_bytes"] / max(call["peak_bytes"] for call in calls[1:]),
    }


def measure(other: Path, python: Path, rounds: int, settings: dict[str, Any]) -> dict[str, Any]:
    """Alternating rounds of both trees: medians, and those of the quotients within a round."""
    sides = {"ours": (ROOT, Path(sys.executable)), "other": (other, python)}
    rows = []
    for index in range(rounds):
        order = list(sides) if index % 2 == 0 else list(sides)[::-1]
        found = {name: figures(calls_of(*sides[name], settings)) for name in order}
        rows.append({name: found[name] for name in sides})
    results: dict[str, Any] = {"rounds": rows}
    for what in rows[0]["ours"]:
        results[what] = {name: statistics.median(row[name][what] for row in rows) for name in sides}
        if what.startswith("compile"):
            results[what]["share_of_other"] = statistics.median(row["ours"][what] / row["other"][what] for row in rows)
            results[what]["times_faster"] = statistics.median(row["other"][what] / row["ours"][what] for row in rows)
    return results


def describe(results: dict[str, Any], length: int) -> list[str]:
    """The lines for people."""
    names = {"compile_seconds": "seconds", "compile_processor_seconds": "processor", "compile_user_seconds": "user's"}
    lines = [f"compiling, 4 x {length:,} tokens:"]
    for what, name in names.items():
        found = results[what]
        sides = f"ours {found['ours']:6.2f} s, other {found['other']:6.2f} s"
        lines.append(f"  {name:<10} {sides}, {found['share_of_other']:.0%} of the other")
    peaks = {side: f"{results['peak_ratio'][side]:.3f} ({results['first_peak_gb'][side]:.2f} GB)" for side in SIDES}
    return [*lines, f"  peak of the first call over the later ones': ours {peaks['ours']}, other {peaks['other']}"]
