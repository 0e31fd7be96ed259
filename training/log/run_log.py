"""The log of a training run: the terminal, and as the flags ask curves.csv, run.json, TensorBoard and W&B.

A step's figures are floats that the loop has anyway; nothing here grows with the number of steps.
"""

from __future__ import annotations

import argparse
import datetime
import os
import sys
import time
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Iterator, Sequence

from command_line.checks import BadFlags
from corpora.strict_json import json_text
from model.config import GPT2Config
from model.layout import launched
from model.scoring import perplexity
from training.arithmetic import arithmetic
from training.log import machine
from training.log.clock import Clock, time_text
from training.log.curves import CURVES_FILE, INSTALL, CurveFile, ReferenceCurve, Row, draw
from training.log.gradient_norm import GradientNorm
from training.log.live_line import LiveLine
from training.log.loss_scale import FallingScale
from training.log.sinks import TensorBoard, WeightsAndBiases
from training.run_file import RUN_FILE, run_file
from training.save_folder import launch
from training.sequence_warmup import SequenceWarmup

_REDRAW = 0.1  # seconds between two drawings of the progress line
_SPEED_LINES = 60.0  # seconds between two lines that tell the speed
_LONG_CALL = 3600.0  # seconds; the runtime says what shorter ones take, after their first micro-batches
_MEASUREMENTS = 4  # of the peak of a CPU, a tenth of a second each


class RunLog:
    """The one logger of train_gpt2.py.

    Args:
        args: the flags. config: the model's. calls, first_step: the calls planned, and those done before this start.
        samples_a_call: samples of a call. optimizer: for the loss scale and the gradient norm.
        approximate: why losses are not those of the text; they are not told without that mark.

    Used in `with`; what ends it is noted. Of the processes of one run only the first writes files, sends figures and
    compares; what the others print goes nowhere (`first_speaks`). Raises BadFlags for flags about the log that cannot
    be followed.
    """

    def __init__(
        self,
        args: argparse.Namespace,
        config: GPT2Config,
        calls: int,
        first_step: int,
        samples_a_call: int,
        optimizer: Any,
        approximate: str = "",
    ) -> None:
        self.clock = Clock()
        self._args, self._calls, self._samples, self._optimizer = args, calls, samples_a_call, optimizer
        self.ended_early, self._approximate = False, approximate  # by --early-stopping; the loader
        index, processes = launched()
        # What is measured is the first process's to tell, and the others would take the processors that it is about.
        self._peak, self._measured = machine.device_peak(args.peak_tflops) if index == 0 else None, 1
        self._config, self._processes, self._lengths = config, processes, SequenceWarmup.of(args)
        self._writes = index == 0
        folder = args.save_model_path or args.log_dir
        self._folder = Path(folder) if folder and self._writes else None
        curve = args.reference_curve if self._writes else None
        self._reference = self._use(lambda path: ReferenceCurve(path, approximate), "--reference-curve", curve)
        self._curves: CurveFile | None = None
        self._sinks: list[TensorBoard | WeightsAndBiases] = []
        self._norm = GradientNorm(optimizer, args.device_iterations) if args.log_gradient_norm else None
        self._falling = FallingScale()
        self._row: Row = {"step": first_step}  # of the last logged step
        self._line, self._drawn, self._step = LiveLine(sys.stdout), 0.0, first_step
        self._said_speed: float | None = None  # when
        self._run = {
            "date": _now(),
            "started_from": self._started_from(first_step),
            "command": [sys.executable, *sys.argv],
            "flags": _plain(args),
            "launch": launch(),
            **({"approximate": approximate} if approximate else {}),
            **machine.describe(),
        }
        self._open_succeeded, self._unwritten = False, set()
        try:
            self._open(first_step)
        except ValueError as error:
            raise BadFlags(*error.args) from error
        self._open_succeeded = True
        self._say_peak()
        self._say_long_calls()

    def __enter__(self) -> RunLog:
        self._line.__enter__()
        return self

    def __exit__(self, kind: Any, error: Any, traceback: Any) -> None:
        self.close(in_haste=kind is KeyboardInterrupt)

    @property
    def _length(self) -> int:
        """Tokens of a sample in the last call, or in the first one."""
        return self._lengths.length(max(0, self._step - 1))

    @property
    def _flops_a_sample(self) -> float:
        """Of this process."""
        return machine.flops_per_token(self._config, self._length) * self._length / self._processes

    def _tokens(self, step: int) -> int:
        """Trained tokens after a step."""
        return self._lengths.tokens(step) * self._samples

    # -- what the loop tells ---------------------------------------------------------------------------------------

    def step(self, step: int, epoch: int, loss: float, accuracy: float, learning_rate: float, last: bool) -> None:
        """A call is done. Every --log-steps, and after the `last`, it is logged; a terminal shows each."""
        self.clock.count()
        self._step = step
        if step % self._args.log_steps and not last:
            self._draw(step, loss)
            return
        speed = self.clock.lap() * self._samples  # samples a second since the last line
        left = (self._calls - step) * self._samples / speed  # an average since the start keeps a slow first call
        share = self._share(speed)
        if share is None:
            share = self._share_of_a_higher_peak(speed)
        self._print(
            f"step {step} of epoch {epoch}, loss: {loss:.4f}, acc: {accuracy:.4f}, lr: {learning_rate:.4g}, "
            f"throughput: {speed:.{2 if speed >= 10 else 4}f} samples/sec"
        )
        self._say_speed(speed, share, left, last)
        calls = step - int(self._row["step"])
        self._row = {
            "step": step, "epoch": epoch, "tokens": self._tokens(step), "loss": loss,
            "accuracy": accuracy, "learning_rate": learning_rate, "samples_per_second": speed,
        }  # fmt: skip
        with self.clock.paused():
            self._record(step, calls, share)

    def validation(self, step: int, loss: float, parts: Sequence[tuple[str, float]] = ()) -> bool:
        """The held-out loss after a step, in nats a token, and its perplexity. Whether the log had none for it yet.

        `parts`: the names and losses of several data sets, whose mean `loss` is.
        """
        for name, own in parts:
            self._print(f"  {name}: held-out perplexity {perplexity(own):.2f}, held-out loss {own:.4f}")
        what = f", mean of {len(parts)} data sets" * bool(parts)
        what += f", APPROXIMATE ({self._approximate})" * bool(self._approximate)
        # The loss stands last: benchmarks read `loss: …,` of the training steps.
        shown = f"held-out perplexity: {perplexity(loss):.2f}, held-out loss: {loss:.4f}"
        self._print(f"validation after step {step}{what}, {shown}")
        if self._curves is not None and step in self._curves.validated:
            return False  # a resumed run begins with the validation that its checkpoint was followed by
        self._add({"step": step, "tokens": self._tokens(step), "validation_loss": loss})
        for sink in self._sinks:
            sink.record(step, {"validation/loss": loss, **{f"validation/{name}/loss": own for name, own in parts}})
        return True

    def checkpoints(self, names: list[str]) -> None:
        """The checkpoints of this run, oldest first, the one that is about to be written last: kept in run.json."""
        self._run["checkpoints"] = names
        if self._folder is not None:
            self._write_run()

    def numerics(self, chosen: dict[str, Any]) -> None:
        """What the runtime chose for the run, on which its last bits depend: kept in run.json."""
        if chosen and self._folder is not None and self._run.get("numerics") != chosen:
            self._run["numerics"] = chosen
            self._write_run()

    def lengths(self, samples_an_epoch: int, warmup_steps: int) -> None:
        """How long an epoch is, and in calls the warm-up of the learning rate: kept in run.json."""
        self._run.update(samples_an_epoch=samples_an_epoch, warmup_steps=warmup_steps)
        if self._folder is not None:
            self._write_run()

    def close(self, in_haste: bool = False) -> None:
        """The run ends: the picture of its curves, the comparison with --reference-curve, the end in run.json."""
        self._line.__exit__()
        for sink in self._sinks:
            sink.close()
        if self._curves is not None:
            with self._spared(self._folder / CURVES_FILE):
                self._curves.close()
            if not in_haste:
                self._picture()
        if self._reference is not None:
            print(self._reference.line(), flush=True)
        if self._folder is not None:
            end = {
                "date": _now(),
                "finished": self._step >= self._calls or self.ended_early,
                "step": self._step,
                "seconds_training": self.clock.seconds,
            }
            self._run["end"] = {**end, "last_logged": self._row, "memory_gb": machine.memory_gb()}
            self._write_run()

    # -- files -----------------------------------------------------------------------------------------------------

    def _started_from(self, first_step: int) -> str | None:
        """The checkpoint whose weights the run began with, at its first start; None if they were drawn."""
        source = self._args.pretrained_checkpoint
        return run_file(Path(source).resolve().parent).get("started_from") if first_step else source or None

    def _open(self, first_step: int) -> None:
        args = self._args
        if not self._writes:
            return
        if args.log_dir:
            self._sinks.append(TensorBoard(Path(args.log_dir), first_step))
        if args.use_wandb:
            model = Path(args.config).stem if "config" in args.typed else args.model
            self._sinks.append(WeightsAndBiases(f"{model}-{self._run['date']}", self._run["flags"]))
        if self._folder is not None:
            try:
                self._folder.mkdir(parents=True, exist_ok=True)
                self._curves = CurveFile(self._folder / CURVES_FILE, first_step)
                self._write_run()
            except (OSError, ValueError) as error:
                flag = "--save-model-path" if args.save_model_path else "--log-dir"
                raise ValueError(
                    f"{flag} {self._folder}: the log cannot be written there ({error}); name another folder"
                ) from error

    def _record(self, step: int, calls: int, share: float | None) -> None:
        """A logged step, `calls` after the one before it, to everything but the terminal."""
        row = self._row
        if self._norm is not None:
            row["gradient_norm"], row["loss_scale"] = self._norm.read(calls)
            fallen = self._falling.line(step, row["loss_scale"])
            if fallen is not None:
                self._print(fallen)
        elif hasattr(self._optimizer, "loss_scaling") and not self._args.auto_loss_scaling:
            row["loss_scale"] = float(self._optimizer.loss_scaling)
        self._add(row)
        if self._reference is not None:
            self._reference.add(row)
        if not self._sinks:
            return
        speed = row["samples_per_second"]
        figures: dict[str, float | None] = {
            "train/loss": row["loss"],
            "train/accuracy": row["accuracy"],
            "train/learning_rate": row["learning_rate"],
            "train/loss_scale": row.get("loss_scale"),
            "train/gradient_norm": row.get("gradient_norm"),
            "speed/samples_per_second": speed,
            "speed/tokens_per_second": speed * self._length,
            "speed/share_of_peak": share,
        }
        figures.update({f"memory/{place}_gb": value for place, value in machine.memory_gb().items()})
        for sink in self._sinks:
            sink.record(step, {name: value for name, value in figures.items() if value is not None})

    def _picture(self) -> None:
        picture = self._folder / "curves.png"
        try:
            draw([self._folder / CURVES_FILE], picture)
        except ModuleNotFoundError:
            print(f"no {picture}: matplotlib is not installed (`{INSTALL}`)", flush=True)
        except OSError as error:
            print(f"no {picture}: {error.strerror}", flush=True)
        else:
            print(f"curves: {picture}", flush=True)

    def _write_run(self) -> None:
        path = self._folder / RUN_FILE
        temporary = path.with_name(f".{RUN_FILE}.part")
        with self._spared(path):
            temporary.write_text(json_text(self._run, indent=2, default=str) + "\n", encoding="utf-8")
            os.replace(str(temporary), str(path))

    @contextmanager
    def _spared(self, path: Path) -> Iterator[None]:
        """A full disk costs a log, not the run: said once a file. At the start it is an error."""
        try:
            yield
        except OSError as error:
            if not self._open_succeeded:
                raise
            if path not in self._unwritten:
                self._print(f"{path}: cannot be written ({error.strerror}), the run goes on")
            self._unwritten.add(path)

    def _add(self, row: Row) -> None:
        if self._curves is not None:
            with self._spared(self._folder / CURVES_FILE):
                self._curves.add(row)

    def _use(self, reader: Any, flag: str, path: str | None) -> Any:
        if path is None:
            return None
        try:
            return reader(Path(path))
        except ValueError as error:
            raise BadFlags(f"{flag} {path}: {error}") from error

    # -- the terminal ----------------------------------------------------------------------------------------------

    def _say_peak(self) -> None:
        if self._peak is not None:
            per_token = self._flops_a_sample / self._length
            print(
                f"peak: {self._peak.flops / 1e12:,.3g} TFLOP/s ({self._peak.source}); a trained token takes "
                f"{per_token / 1e9:,.3g} GFLOP",
                flush=True,
            )

    def _say_long_calls(self) -> None:
        """What a call takes at least, if that is long: said before it begins, for it logs nothing until it ends."""
        if self._peak is None:
            return
        seconds = self._samples * self._flops_a_sample / self._peak.flops
        if seconds >= _LONG_CALL:
            size = f"{seconds / 86400:,.1f} days" if seconds >= 86400 else f"{seconds / 3600:.1f} hours"
            print(
                f"WARNING: at this peak a call takes {size}, in practice more, and logs nothing until it ends",
                arithmetic(self._args)[1],
                sep="\n",
                flush=True,
            )

    def _say_speed(self, samples_a_second: float, share: float | None, left: float, last: bool) -> None:
        """Below the first logged step and the `last`, and now and then between: the rest of what a reader wants."""
        now = time.monotonic()
        if self._said_speed is None or last or now - self._said_speed >= _SPEED_LINES:
            self._said_speed = now
            self._print(f"speed: {self._speed_text(samples_a_second, share, left)}")

    def _speed_text(self, samples_a_second: float, share: float | None, left: float) -> str:
        of_peak = f"{share:.1%} of peak, " if share is not None else ""
        if share is None and self._peak is not None and not self._peak.source.startswith("measured"):
            of_peak = "more than the peak, "  # which is therefore not the device's
        return f"{samples_a_second * self._length:,.0f} tokens/sec, {of_peak}{time_text(left)} left"

    def _share(self, samples_a_second: float) -> float | None:
        """The share of the peak that this speed is. None if there is no peak to compare with, or it is exceeded.

        Nothing does more than its peak: the device is another one than was measured, or faster than was stated, or a
        shared machine drifts.
        """
        if self._peak is None:
            return None
        share = samples_a_second * self._flops_a_sample / self._peak.flops
        return share if share <= 1.0 else None

    def _share_of_a_higher_peak(self, samples_a_second: float) -> float | None:
        """The share after measuring the CPU again, a few times in a run: it cannot do more than its peak."""
        if self._peak is not None and self._peak.source.startswith("measured") and self._measured < _MEASUREMENTS:
            with self.clock.paused():
                self._measured, before = self._measured + 1, self._peak
                self._peak = machine.measured_again(before)
                if self._peak.flops > before.flops:
                    self._say_peak()
        return self._share(samples_a_second)

    def _draw(self, step: int, loss: float) -> None:
        """The progress line of a step that is not logged, on a terminal."""
        now = time.perf_counter()
        if not self._line.live or now - self._drawn < _REDRAW:
            return
        self._drawn = now
        rate = self.clock.rate()
        speed = rate * self._samples
        text = f"step {step}/{self._calls} ({step / self._calls:.0%}), loss {loss:.4f}, " + self._speed_text(
            speed, self._share(speed), (self._calls - step) / rate
        )
        self._line.draw(text)

    def _print(self, line: str) -> None:
        self._line.clear()
        print(line, flush=True)


def _now() -> str:
    return datetime.datetime.now(datetime.timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ")


def _plain(args: argparse.Namespace) -> dict[str, Any]:
    """The flags as JSON takes them, in order, with which of them were typed."""
    values = {name: sorted(value) if isinstance(value, set) else value for name, value in sorted(vars(args).items())}
    values.pop("notes", None)
    return values
