"""The processes of busy_machine.py: each makes some steps of train_gpt2.py whenever its standard input asks for it.

Requests, a line each: "steps" -> {"seconds"} of a step, in the mean. torch is imported before the application here, so
that what the environment says about OpenMP is all there is.
"""

from __future__ import annotations

import contextlib
import io
import sys
import time
from pathlib import Path
from typing import Any, Callable

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.side_process import serve  # noqa: E402


def requests(settings: dict[str, Any]) -> dict[str, Callable[[], dict[str, float]]]:
    """A compiled run with these settings."""
    from arguments import parse_train_args
    from training.run import TrainingRun

    words = ["--model", settings["model"], "--train-path", "generated", "--max-len", settings["length"]]
    words += ["--batch-size", settings["batch"], "--gradient-accumulation", 1, "--device-iterations", 1]
    words += ["--num-workers", 0, "--training-steps", 10**6, "--epochs", 10**6]
    with contextlib.redirect_stdout(io.StringIO()):
        run = TrainingRun(parse_train_args([str(word) for word in words]))
        call = next(run.batches())
        run.compile(call)

    def steps() -> dict[str, float]:
        begun = time.perf_counter()
        for _ in range(settings["steps"]):
            losses, _ = run.executor(**call._asdict())
            float(losses.float().mean())
        return {"seconds": (time.perf_counter() - begun) / settings["steps"]}

    return {"steps": steps}


if __name__ == "__main__":
    serve(requests)
