"""The processes of micro_batches.py: each makes one weight update whenever its standard input asks for it.

Requests, a line each: "step" -> {"seconds"}, "memory" -> {"peak_gb", "loss"}.
"""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path
from typing import Any, Callable

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.side_process import serve  # noqa: E402
from benchmarks.train_step_sides import RATE, our_model, peak_memory_gb  # noqa: E402

VARIABLE = "POPTORCH_PORTABLE_MICRO_BATCHES_AS_ONE"


def requests(settings: dict[str, Any]) -> dict[str, Callable[[], dict[str, Any]]]:
    """What answers each request."""
    if settings["as_one"] is not None:
        os.environ[VARIABLE] = str(settings["as_one"])
    import poptorch
    import torch

    torch.manual_seed(0)
    batch, accumulation, length = settings["batch"], settings["accumulation"], settings["length"]
    model = our_model(settings)
    options = poptorch.Options().randomSeed(0)
    options.Training.gradientAccumulation(accumulation)
    options.outputMode(poptorch.OutputMode.All)
    training = poptorch.trainingModel(model, options, poptorch.optim.AdamW(model.parameters(), lr=RATE))
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(
        settings["vocabulary"], (batch * accumulation, length + 1), generator=generator, dtype=torch.int32
    )
    counts = torch.full((accumulation, 2), float(batch * length))
    loss = float("nan")

    def timed() -> dict[str, float]:
        nonlocal loss
        start = time.perf_counter()
        loss = float(training(ids[:, :-1].contiguous(), ids[:, 1:].contiguous(), counts)[0].mean())
        return {"seconds": time.perf_counter() - start}

    return {"step": timed, "memory": lambda: {"peak_gb": peak_memory_gb("cpu"), "loss": loss}}


if __name__ == "__main__":
    serve(requests)
