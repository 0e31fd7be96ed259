"""The curves of a run: a CSV file that grows with it, its picture, and the comparison with an earlier run's."""

from __future__ import annotations

import bisect
import csv
import math
from pathlib import Path
from typing import Dict, Iterator, Optional

COLUMNS = (
    *("step", "epoch", "tokens", "loss", "accuracy", "learning_rate", "samples_per_second", "validation_loss"),
    *("loss_scale", "gradient_norm"),
)
_POINTS = 4000  # of a curve in the picture; more cannot be told apart

Row = Dict[str, Optional[float]]


class CurveFile:
    """curves.csv: a row a logged step, written as it happens.

    A run that is resumed after `after_step` goes on with the file that is there, without the steps that it does again.
    A new run, with `after_step` 0, puts an earlier run's file aside as curves-1.csv, curves-2.csv, …

    Raises OSError if it cannot be written, ValueError if the file there is something else.
    """

    def __init__(self, path: Path, after_step: int) -> None:
        if not after_step and path.exists():
            path.rename(_free_name(path))
        kept = [row for row in read_rows(path) if row["step"] <= after_step] if path.exists() else []
        temporary = path.with_name(f".{path.name}.part")
        self._open(temporary, "w")
        self._writer.writerow(COLUMNS)
        for row in kept:
            self.add(row)
        self.close()
        temporary.replace(path)
        self._open(path, "a")

    def _open(self, path: Path, mode: str) -> None:
        self._file = path.open(mode, encoding="utf-8", newline="")
        self._writer = csv.writer(self._file, lineterminator="\n")

    def add(self, row: Row) -> None:
        """Appends a row; columns that it does not have stay empty."""
        values = (row.get(name) for name in COLUMNS)
        self._writer.writerow(["" if value is None else f"{value:.8g}" for value in values])
        self._file.flush()

    def close(self) -> None:
        """The file is complete."""
        self._file.close()


def _free_name(path: Path) -> Path:
    number = 1
    while path.with_name(f"{path.stem}-{number}{path.suffix}").exists():
        number += 1
    return path.with_name(f"{path.stem}-{number}{path.suffix}")


def read_rows(path: Path) -> Iterator[Row]:
    """The rows of a curve file, numbers or None. Raises ValueError naming file and line if it is none."""
    try:
        with path.open(encoding="utf-8", newline="") as file:
            reader = csv.DictReader(file)
            if not {"step", "loss"} <= set(reader.fieldnames or ()):
                raise ValueError(f"{path}:1: needs the columns step and loss, as curves.csv of a run has")
            for row in reader:
                try:
                    numbers = {k: float(v) if v else None for k, v in row.items() if k in COLUMNS}
                except ValueError as error:
                    raise ValueError(f"{path}:{reader.line_num}: {error}") from error
                if numbers["step"] is None:
                    raise ValueError(f"{path}:{reader.line_num}: no step")
                yield numbers
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise ValueError(f"{path}: cannot be read ({getattr(error, 'strerror', None) or error})") from error


class ReferenceCurve:
    """How a run's losses compare with those of a curve file, by tokens if it has them, else by steps.

    Between two points of the reference its loss is taken to be on the line between them.

    Raises ValueError if the file cannot be used.
    """

    def __init__(self, path: Path) -> None:
        rows = [row for row in read_rows(path) if row["loss"] is not None]
        if not rows:
            raise ValueError(f"{path}: has no loss in it")
        self.by = "tokens" if all(row.get("tokens") is not None for row in rows) else "step"
        points = sorted((row[self.by], row["loss"]) for row in rows)
        self._path = path
        self._at: list[float] = [at for at, _ in points]
        self._losses: list[float] = [loss for _, loss in points]
        self._count, self._sum = 0, 0.0
        self._last: tuple | None = None  # where, our loss, its loss

    def loss_at(self, at: float) -> float | None:
        """The reference's loss there; None outside of its range."""
        if not self._at[0] <= at <= self._at[-1]:
            return None
        i = bisect.bisect_left(self._at, at)
        if self._at[i] == at:
            return self._losses[i]
        share = (at - self._at[i - 1]) / (self._at[i] - self._at[i - 1])
        return self._losses[i - 1] + share * (self._losses[i] - self._losses[i - 1])

    def add(self, row: Row) -> None:
        """Compares one logged step."""
        at, loss = row[self.by], row["loss"]
        there = self.loss_at(at)
        if there is None or not math.isfinite(loss):
            return
        self._count, self._sum, self._last = self._count + 1, self._sum + loss - there, (at, loss, there)

    def line(self) -> str:
        """The comparison in a line."""
        if self._last is None:
            return f"reference curve {self._path}: this run and it have no {self.by} in common"
        at, loss, there = self._last
        unit = "tokens" if self.by == "tokens" else "steps"
        return (
            f"reference curve {self._path}: loss {loss:.4f} after {at:,.0f} {unit}, {there:.4f} there "
            f"({loss - there:+.4f}, {(loss - there) / there:+.1%}); mean difference over {self._count:,} logged steps "
            f"{self._sum / self._count:+.4f}"
        )


def draw(curve_file: Path, picture: Path) -> None:
    """The loss and throughput curves of a curve file as a PNG, at most `_POINTS` points each.

    Raises ModuleNotFoundError without matplotlib, OSError if it cannot be written.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    count = sum(1 for _ in read_rows(curve_file))
    stride = max(1, -(-count // _POINTS))
    rows = [row for i, row in enumerate(read_rows(curve_file)) if i % stride == 0 or row["validation_loss"] is not None]
    figure = Figure(figsize=(8, 7))
    FigureCanvasAgg(figure)
    above, below = figure.subplots(2, 1, sharex=True)
    for name, label in (("loss", "training"), ("validation_loss", "held out")):
        points = [(row["step"], row[name]) for row in rows if row[name] is not None]
        if points:
            above.plot(
                *zip(*points), label=label, marker="." if name == "validation_loss" or len(points) < 50 else None
            )
    above.set_ylabel("loss (nats a token)")
    if above.lines:
        above.legend()
    speeds = [(row["step"], row["samples_per_second"]) for row in rows if row["samples_per_second"] is not None]
    if speeds:
        below.plot(*zip(*speeds))
    below.set_ylim(bottom=0)
    below.set_ylabel("samples a second")
    below.set_xlabel("step")
    for axes in (above, below):
        axes.grid(alpha=0.3)
    figure.tight_layout()
    temporary = picture.with_name(f".{picture.name}.part")
    figure.savefig(str(temporary), format="png", dpi=120)
    temporary.replace(picture)
