"""The curves of a run: a CSV file that grows with it, its picture, and the comparison with an earlier run's.

    python -m training.log.curves RUN [RUN ...] [--output PNG]

draws the picture of one run anew, or several runs over each other. Without matplotlib the figures of the runs are told
all the same; that is a failure only where --output asked for a picture.
"""

from __future__ import annotations

import bisect
import csv
import json
import math
import statistics
import sys
from pathlib import Path
from typing import Dict, Iterator, Optional, Sequence

from command_line.checks import give_up, installed, refuse
from command_line.interruption import interruptible
from corpora.atomic import atomic_file
from corpora.program import ProgramParser
from corpora.refusal import TooLate

PROGRAM = "training.log.curves"
CURVES_FILE = "curves.csv"
COLUMNS = (
    *("step", "epoch", "tokens", "loss", "accuracy", "learning_rate", "samples_per_second", "validation_loss"),
    *("loss_scale", "gradient_norm"),
)
INSTALL = "pip install -r requirements-plots.txt"
_POINTS = 4000  # of a curve in the picture; more cannot be told apart

Row = Dict[str, Optional[float]]


class CurveFile:
    """curves.csv: a row a logged step, written as it happens.

    A run that is resumed after `after_step` goes on with the file that is there, without the steps that it does again.
    A new run, with `after_step` 0, puts an earlier run's file aside as curves-1.csv, curves-2.csv, …

    `validated`: the steps whose held-out loss is in the file when the run begins.

    Raises OSError if it cannot be written, ValueError if the file there is something else.
    """

    def __init__(self, path: Path, after_step: int) -> None:
        if not after_step and path.exists():
            path.rename(_free_name(path))
        kept = [row for row in read_rows(path) if row["step"] <= after_step] if path.exists() else []
        self.validated = {int(row["step"]) for row in kept if row.get("validation_loss") is not None}
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


def lacks_validation(path: Path, step: int) -> bool:
    """Whether a curve file goes up to a step and has no held-out loss of it. False for what is no curve file."""
    try:
        rows = [row for row in read_rows(path) if row["step"] == step] if path.exists() else []
    except ValueError:
        return False
    return bool(rows) and all(row.get("validation_loss") is None for row in rows)


def held_out_losses(path: Path, until: int) -> list[float]:
    """The held-out losses after the steps from 1 to `until` of a curve file, in order; none of what is no such file."""
    try:
        rows = list(read_rows(path)) if path.exists() else []
    except ValueError:
        return []
    return [
        row["validation_loss"] for row in rows if row.get("validation_loss") is not None and 0 < row["step"] <= until
    ]


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

    def __init__(self, path: Path, approximate: str = "") -> None:
        """`approximate`: why this run's own losses are, which is then not comparable with one whose are not."""
        other = approximation(path)
        if bool(other) != bool(approximate):
            whose = "its" if other else "this run's"
            raise ValueError(
                f"{path}: {whose} losses are approximate ({other or approximate}) "
                "and the other's are not: they say nothing about each other"
            )
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
        # No "-0.0000": the file rounds what it holds.
        further, mean = (round(value, 4) + 0.0 for value in (loss - there, self._sum / self._count))
        share = round((loss - there) / there, 3) + 0.0
        return (
            f"reference curve {self._path}: loss {loss:.4f} after {at:,.0f} {unit}, {there:.4f} there "
            f"({further:+.4f}, {share:+.1%}); mean difference over {self._count:,} logged steps {mean:+.4f}"
        )


def summary_line(curve_file: Path) -> str:
    """What a run came to: steps, tokens, the median speed, the held-out loss before and after.

    Raises ValueError if it is no curve file.
    """
    step, tokens, speeds, held_out = 0, None, [], []
    for row in read_rows(curve_file):
        step, tokens = int(row["step"]), row.get("tokens") or tokens
        if row.get("samples_per_second") is not None:
            speeds.append(row["samples_per_second"])
        if row.get("validation_loss") is not None:
            held_out.append(row["validation_loss"])
    why = approximation(curve_file)
    parts = [f"APPROXIMATE ({why})"] * bool(why) + [f"{step:,} steps"] + ([f"{tokens:,.0f} tokens"] if tokens else [])
    length = _max_len(curve_file.with_name("run.json"))
    if speeds and length:
        parts.append(f"{statistics.median(speeds) * length:,.0f} tokens/sec")
    if held_out:
        parts.append(f"held-out loss {held_out[0]:.4f} before, {held_out[-1]:.4f} after")
    return ", ".join(parts)


def approximation(curve_file: Path) -> str:
    """Why the losses of a run are approximate, by the run.json beside its curves; empty: they are not, as far as known.

    Who prints a figure of a run asks first, and prints the answer with it.
    """
    try:
        return str(json.loads(curve_file.with_name("run.json").read_text(encoding="utf-8")).get("approximate", ""))
    except (OSError, ValueError, AttributeError):
        return ""


def _max_len(run_file: Path) -> int | None:
    """Tokens of a sample, as the run.json beside the curves says; None of a run in which that changed."""
    try:
        flags = json.loads(run_file.read_text(encoding="utf-8"))["flags"]
        return None if flags.get("sequence_warmup") else int(flags["max_len"])
    except (OSError, ValueError, KeyError, TypeError):
        return None


def draw(curve_files: Sequence[Path], picture: Path, lines: Sequence[tuple[str, float]] = ()) -> None:
    """The loss and throughput curves of runs over each other as a PNG, at most `_POINTS` points each.

    `lines`: names and losses of horizontal lines, what another model reaches. Raises ValueError for what is no curve
    file, ModuleNotFoundError without matplotlib, OSError if the picture cannot be written.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 7))
    FigureCanvasAgg(figure)
    above, below = figure.subplots(2, 1, sharex=True)
    names = _names(curve_files)
    for number, path in enumerate(curve_files):
        rows, run = _thinned(path), names[number] + ", " if len(names) > 1 else ""
        run += "APPROXIMATE, " * bool(approximation(path))
        for name, label in (("loss", "training"), ("validation_loss", "held out")):
            points = [(row["step"], row[name]) for row in rows if row[name] is not None]
            dots = "." if name == "validation_loss" or len(points) < 50 else None
            dashes = "--" if name == "validation_loss" else "-"
            color = "C1" if len(names) == 1 and name != "loss" else f"C{number}"
            if points:
                above.plot(*zip(*points), linestyle=dashes, marker=dots, color=color, label=run + label)
        speeds = [(row["step"], row["samples_per_second"]) for row in rows if row["samples_per_second"] is not None]
        if speeds:
            below.plot(*zip(*speeds), color=f"C{number}")
    for number, (name, loss) in enumerate(lines):
        above.axhline(loss, color="0.35", linestyle=(0, (1 + 2 * number, 2)), label=f"{name} ({loss:.4f})")
    above.set_ylabel("loss (nats a token)")
    if above.lines:
        above.legend()
    below.set_ylim(bottom=0)
    below.set_ylabel("samples a second")
    below.set_xlabel("step")
    for axes in (above, below):
        axes.grid(alpha=0.3)
    figure.tight_layout()
    with atomic_file(picture) as file:
        figure.savefig(file, format="png", dpi=120)


def _thinned(path: Path) -> list[Row]:
    """Every n-th row, and every one with a held-out loss."""
    stride = max(1, -(-sum(1 for _ in read_rows(path)) // _POINTS))
    return [row for i, row in enumerate(read_rows(path)) if i % stride == 0 or row["validation_loss"] is not None]


def _names(paths: Sequence[Path]) -> list[str]:
    """Names for the legend: the ends of the paths, as long as they must be to differ."""
    whole = [path.resolve() for path in paths]
    parts = [p.parent.parts if p.name == CURVES_FILE else (*p.parent.parts, p.stem) for p in whole]
    depth = next((n for n in range(1, 100) if len({part[-n:] for part in parts}) == len(set(whole))), 100)
    return ["/".join(part[-depth:]) for part in parts]


@interruptible
def main(argv: Sequence[str] | None = None) -> int:
    """Draws the curves of one run anew, or of several over each other, and prints a line for each.

    python -m training.log.curves RUN [RUN ...] [--output PNG] [--line NAME=LOSS ...]
    """
    parser = ProgramParser(PROGRAM, main.__doc__.split("\n")[0])
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="folder with a curves.csv, or such a file")
    parser.add_argument("--output", type=Path, metavar="PNG", help="the picture (of one run: its curves.png)")
    parser.add_argument("--line", action="append", default=[], metavar="NAME=LOSS", help="what another model reaches")
    args = parser.parse_args(argv)
    files = [path / CURVES_FILE if path.is_dir() else path for path in args.runs]
    output = args.output or (files[0].with_name("curves.png") if len(files) == 1 else None)
    problems = [] if output else ["--output: name the picture of several runs"]
    lines = []
    for text in args.line:
        name, _, loss = text.rpartition("=")
        try:
            lines.append((name, float(loss)))
        except ValueError:
            problems.append(f"--line {text}: give NAME=LOSS, as in unigram=7.54")
    told = []
    for path in files:
        try:
            told.append(f"{path}: {summary_line(path)}")
        except ValueError as error:
            problems.append(f"RUN {error}")
    if problems:
        refuse(PROGRAM, problems)
    print("\n".join(told), flush=True)
    if not installed("matplotlib"):
        print(f"{PROGRAM}: no picture {output}: matplotlib is not installed; {INSTALL}", file=sys.stderr)
        return 0 if args.output is None else 2  # the figures are all that was asked for, or they are not
    try:
        draw(files, output, lines)
    except OSError as error:
        told = f"{'no picture' if args.output is None else '--output'} {output}: cannot be written ({error.strerror})"
        give_up(PROGRAM, TooLate(f"{told}; the figures are those printed above"))
    print(f"curves: {output}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
