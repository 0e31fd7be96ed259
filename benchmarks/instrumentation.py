"""What watching a run costs: train_gpt2.py's loop without a log, with one that is silent, and with every line on.

    python -m benchmarks.instrumentation                     # config_tiny.json, 1 x 32 tokens a step
    python -m benchmarks.instrumentation --json benchmarks/records/instrumentation_cpu.json

A step is a call of the training executor as in the loop: `bare` takes its loss and nothing more; `off` has the logger
with --log-steps so high that it says nothing; `progress` draws the progress line for every step and prints a line every
10, on something that says it is a terminal; `all` prints a line every step and keeps curves.csv, too. The sides take
turns, some steps at a time, in one process and with one executor. The model is the smallest that is trained here, so
that a step is short; with longer ones the share is smaller. Reported are medians over the rounds of the seconds a step,
and of the quotient within a round; and the logger by itself, which a busy machine disturbs less.

The runtime's own places where a report may look on cost something, too, when nobody does: they are timed by themselves,
as often as one micro-batch passes them. And the logger is given 10,000 steps with everything on, to see that its memory
does not grow.
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import importlib.util
import io
import itertools
import os
import statistics
import sys
import tempfile
import time
import tracemalloc
from pathlib import Path
from typing import Any, Callable

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks import record  # noqa: E402
from corpora.program import ProgramParser  # noqa: E402

SIDES = ("bare", "off", "progress", "all")
MEMORY_STEPS = 10_000


class Terminal(io.TextIOBase):
    """Says that it is a terminal and writes to a file that forgets, as a terminal would."""

    def __init__(self) -> None:
        self._sink = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115

    def isatty(self) -> bool:
        return True

    def write(self, text: str) -> int:
        return self._sink.write(text)

    def flush(self) -> None:
        self._sink.flush()


def flags(args: argparse.Namespace, *more: str) -> argparse.Namespace:
    """The program's flags for a step of this size."""
    from arguments import parse_train_args

    size = [
        "--batch-size",
        args.batch,
        "--max-len",
        args.length,
        "--device-iterations",
        1,
        "--gradient-accumulation",
        1,
    ]
    line = ["--model", args.model, *size, "--num-workers", 0, "--training-steps", 10**6, "--epochs", 10**6, *more]
    return parse_train_args([str(word) for word in line])


def make_log(run: Any, args: argparse.Namespace) -> Any:
    """A logger for it, as main() makes one."""
    from training.log.run_log import RunLog

    return RunLog(args, run.model.gpt2.config, run.calls, 0, run.samples_a_call, run.optimizer)


def measure(args: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Alternating rounds of all sides."""
    import torch
    from poptorch.engine.running.probe import Probe

    from training.run import TrainingRun

    torch.set_num_threads(args.threads)
    with contextlib.redirect_stdout(io.StringIO()):
        run = TrainingRun(flags(args))
        call = next(run.batches())
        run.compile(call)
        terminal = Terminal()
        off = make_log(run, flags(args, "--log-steps", 10**6))
    with contextlib.redirect_stdout(terminal):
        progress = make_log(run, flags(args, "--log-steps", 10))
        everything = make_log(run, flags(args, "--save-model-path", folder))
    logs = {"bare": None, "off": off, "progress": progress, "all": everything}
    counts = dict.fromkeys(SIDES, 0)

    def steps(side: str, count: int) -> float:
        log = logs[side]
        if log is not None:
            log.clock.start()
        start = time.perf_counter()
        for _ in range(count):
            losses, accuracies = run.executor(**call._asdict())
            loss, accuracy = (float(out.float().mean()) for out in (losses, accuracies))
            counts[side] += 1
            if log is not None:
                log.step(counts[side], 0, loss, accuracy, 1e-5, False)
        return (time.perf_counter() - start) / count

    rounds = []
    with contextlib.redirect_stdout(terminal):
        steps("bare", args.steps)
        for index in range(args.rounds):
            order = SIDES[index % len(SIDES) :] + SIDES[: index % len(SIDES)]
            seconds = {side: steps(side, args.steps) for side in order}
            rounds.append({side: seconds[side] for side in SIDES})
    for row in rounds:
        print("  " + ", ".join(f"{side} {row[side] * 1e3:.2f} ms" for side in SIDES), flush=True)
    median = {side: statistics.median(row[side] for row in rounds) for side in SIDES}
    return {
        "seconds_a_step": median,
        "cost": {side: statistics.median(row[side] / row["bare"] - 1 for row in rounds) for side in SIDES[1:]},
        "logger_alone_microseconds": {side: logger_alone(logs[side], counts[side], terminal) for side in SIDES[1:]},
        "probe_microseconds": alone(micro_batch_probe(Probe()), terminal) * 1e6,
        "rounds": rounds,
    }


def logger_alone(log: Any, at: int, out: Any) -> float:
    """Microseconds of the logger a step, its lines included."""
    steps = itertools.count(at + 1)
    return alone(lambda: log.step(next(steps), 0, 1.0, 0.5, 1e-5, False), out) * 1e6


def micro_batch_probe(probe: Any) -> Callable[[], None]:
    """What the runner asks of a probe in a call of one micro-batch and one stage."""

    def ask() -> None:
        with probe.call():
            probe.micro_batch(0, 0, 1)
            with probe.forward(None, {}):
                pass
            with probe.backward():
                pass
            with probe.update():
                pass
            probe.iteration_done()

    return ask


def alone(function: Callable[[], None], out: Any, count: int = 2000) -> float:
    """Seconds of a function by itself: the median over five times `count` calls."""
    found = []
    with contextlib.redirect_stdout(out):
        for _ in range(5):
            start = time.perf_counter()
            for _ in range(count):
                function()
            found.append((time.perf_counter() - start) / count)
    return statistics.median(found)


def memory(args: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Bytes that Python holds after a tenth of the steps and after all of them, with everything logged."""
    from training.run import TrainingRun

    more = ["--save-model-path", folder]
    if importlib.util.find_spec("tensorboard") is not None:
        more += ["--log-dir", folder / "tensorboard"]
    with contextlib.redirect_stdout(Terminal()):
        run = TrainingRun(flags(args))
        log = make_log(run, flags(args, *more))
        tracemalloc.start()
        held = []
        for step in range(1, MEMORY_STEPS + 1):
            log.step(step, 0, 3.0 + 1.0 / step, 0.5, 1e-5, False)
            if step in (MEMORY_STEPS // 10, MEMORY_STEPS):
                for sink in log._sinks:
                    sink._writer.flush()  # what waits to be written is no growth
                gc.collect()
                held.append(tracemalloc.get_traced_memory()[0])
        tracemalloc.stop()
        log.close(in_haste=True)
    return {
        "steps": MEMORY_STEPS,
        "bytes_after_a_tenth": held[0],
        "bytes_after_all": held[1],
        "tensorboard": len(more) > 2,
    }


def parse(argv: list[str]) -> argparse.Namespace:
    parser = ProgramParser("benchmarks/instrumentation.py", __doc__)
    parser.add_argument("--model", default="gpt2-tiny", help="a model of train_gpt2.py")
    parser.add_argument("--batch", type=int, default=1, help="samples of a step")
    parser.add_argument("--length", type=int, default=32, help="tokens of a sample")
    parser.add_argument("--steps", type=int, default=20, help="steps of a side in a round")
    parser.add_argument("--rounds", type=int, default=16)
    parser.add_argument("--threads", type=int, default=2)
    record.add_json_flag(parser)
    args = parser.parse_args(argv)
    if min(args.batch, args.steps, args.rounds, args.threads) < 1 or args.length < 2:
        parser.error("--batch, --steps, --rounds and --threads must be at least 1, --length at least 2")
    return args


def main(argv: list[str]) -> int:
    args = parse(argv)
    if importlib.util.find_spec("torch") is None:
        print("instrumentation: torch is not installed. Run `make setup` first.", file=sys.stderr)
        return 2
    os.environ.setdefault("POPTORCH_LOG_LEVEL", "ERR")
    with tempfile.TemporaryDirectory() as scratch:
        results = measure(args, Path(scratch) / "measure")
        results["memory"] = memory(args, Path(scratch) / "memory")
    bare = results["seconds_a_step"]["bare"]
    print(f"{'side':<10} {'ms a step':>10} {'cost':>8} {'logger alone':>14}")
    for side in SIDES:
        cost = f"{results['cost'][side]:+8.2%}" if side != "bare" else ""
        own = f"{results['logger_alone_microseconds'][side]:9.1f} us" if side != "bare" else ""
        print(f"{side:<10} {results['seconds_a_step'][side] * 1e3:10.3f} {cost:>8} {own:>14}")
    probe = results["probe_microseconds"]
    print(f"the runtime's probe when nobody looks on: {probe:.2f} us a call, {probe * 1e-6 / bare:.4%} of a step")
    held = results["memory"]
    print(
        f"memory: {held['bytes_after_a_tenth']:,} bytes after {held['steps'] // 10:,} steps, "
        f"{held['bytes_after_all']:,} after {held['steps']:,}"
    )
    if args.json:
        keys = ("model", "batch", "length", "steps", "rounds", "threads")
        record.write(
            args.json, record.head("instrumentation", argv), {key: getattr(args, key) for key in keys}, results
        )
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
