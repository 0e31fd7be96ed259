"""Several checkpoints by one protocol, side by side: a table, and a picture if --png names a file.

    python tasks/compare.py CHECKPOINT CHECKPOINT … --valid-data FILE [--protocols adjusted] [--png FILE]

A checkpoint is a Hugging Face folder or of any other format that model.convert reads, such as GGUF or a run's folder.

Checkpoints of equal size named step_N are drawn over their steps, others over their parameters. Further flags are
those of evaluate_wiki.py; the first protocol named is the one compared (default: adjusted, or the task's first).
"""

from __future__ import annotations

import argparse
import math
import re
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, Sequence

if __package__ in (None, ""):  # started as a script: modules are found from the repository
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from command_line.checks import (  # noqa: E402
    give_up,
    installed,
    is_first_process,
    leave_to_first_process,
    not_installed,
    refuse,
)
from command_line.flags import PATH, Flag  # noqa: E402
from command_line.interruption import exit_status, interruptible  # noqa: E402
from corpora.atomic import atomic_file  # noqa: E402
from corpora.refusal import TooLate  # noqa: E402
from tasks.names import PROTOCOLS  # noqa: E402
from tasks.parsing import parse_evaluate_args  # noqa: E402

if TYPE_CHECKING:
    from model.non_finite import NonFiniteError

PROGRAM = "tasks/compare.py"
ABOUT = "Several GPT-2 checkpoints by one protocol, side by side. Name two or more, before the flags."
FLAGS = (Flag("--png", None, PATH, "a picture of the figures (needs requirements-plots.txt)"),)
UNREAD = ("json", "strict_lambada")
# What is compared: the first that a result has. Lower is better in all of them.
_MEASURES = ("adjusted ppl", "word ppl", "bits per byte", "bits per character", "ppl")


class Point(NamedTuple):
    """One checkpoint's figure."""

    checkpoint: str
    parameters: int  # real_parameter_count
    step: int | None  # of a folder named step_N
    value: float


def step_of(checkpoint: str) -> int | None:
    """The N of a folder named step_N."""
    match = re.fullmatch(r"step_(\d+)", Path(checkpoint).name)
    return int(match.group(1)) if match else None


def short_names(checkpoints: Sequence[str]) -> list[str]:
    """The ends of these paths, as long as they must be to differ."""
    parts = [Path(checkpoint).parts for checkpoint in checkpoints]
    for length in range(1, max(map(len, parts)) + 1):
        names = ["/".join(part[-length:]) for part in parts]
        if len(set(names)) == len(set(checkpoints)):
            break
    return names


def axis(points: Sequence[Point]) -> str:
    """What the points are drawn over: "step" or "parameters"."""
    same_size = len({point.parameters for point in points}) == 1
    return "step" if same_size and all(point.step is not None for point in points) else "parameters"


def table(points: Sequence[Point], measure: str) -> str:
    """A row for each checkpoint, the best first, and last those whose figure is not finite."""
    rows = [("checkpoint", "parameters", measure)]
    rows += [(p.checkpoint, f"{p.parameters:,}", f"{p.value:.4f}") for p in sorted(points, key=_place)]
    widths = [max(len(row[column]) for row in rows) for column in range(3)]
    return "\n".join(f"{a.ljust(widths[0])}  {b.rjust(widths[1])}  {c.rjust(widths[2])}" for a, b, c in rows)


def _place(point: Point) -> tuple[bool, float]:
    return not math.isfinite(point.value), point.value


def draw(points: Sequence[Point], measure: str, path: str) -> None:
    """A PNG of the points, by matplotlib. Raises TooLate if it cannot be written."""
    from matplotlib.figure import Figure

    over = axis(points)
    ordered = sorted(points, key=lambda point: getattr(point, over))
    figure = Figure(figsize=(7, 4.5))
    axes = figure.add_subplot()
    axes.plot([getattr(point, over) for point in ordered], [point.value for point in ordered], "o-")
    for point, name in zip(ordered, short_names([point.checkpoint for point in ordered])):
        place = (getattr(point, over), point.value)
        axes.annotate(name, place, xytext=(4, 4), textcoords="offset points", fontsize=8)
    axes.set(xlabel=over, ylabel=measure, xscale="log" if over == "parameters" else "linear")
    axes.grid(alpha=0.3)
    try:
        with atomic_file(path) as file:
            figure.savefig(file, format="png", dpi=120, bbox_inches="tight")
    except OSError as error:
        raise TooLate(f"--png {path}: cannot be written ({error.strerror}); the figures are those above") from error


def parse(words: Sequence[str], scratch: Path) -> list[argparse.Namespace]:
    """The flags of each checkpoint, all checked before the first is evaluated. SystemExit(2) if one cannot be used.

    What is of another format is converted into `scratch`; `shown` is what was named.
    """
    first_flag = next((i for i, word in enumerate(words) if word.startswith("-")), len(words))
    checkpoints, argv = words[:first_flag], words[first_flag:]
    if "-h" in argv or "--help" in argv:
        checkpoints = checkpoints or ["-"]
    elif len(checkpoints) < 2:
        refuse(PROGRAM, ["name two checkpoints or more, before the flags"])
    parsed = []
    for number, checkpoint in enumerate(checkpoints):
        all_words = [*argv, "--pretrained-checkpoint", _folder_of(checkpoint, scratch / str(number))]
        args = parse_evaluate_args(all_words, PROGRAM, "WIKITEXT103", ABOUT, {"comparison": FLAGS}, UNREAD)
        args.shown = checkpoint
        if args.png and not Path(args.png).resolve().parent.is_dir():
            refuse(PROGRAM, [f"--png {args.png}: its folder does not exist; create it first"])
        if args.png and not installed("matplotlib"):
            remedy = "pip install -r requirements-plots.txt, or leave the flag out"
            refuse(PROGRAM, [f"--png {args.png}: the picture needs matplotlib, which is not installed; {remedy}"])
        if args.all:
            refuse(PROGRAM, ["--all: one task is compared; name it with --task"])
        if args.record:
            refuse(PROGRAM, ["--record: is of the programs that evaluate one checkpoint; leave it out"])
        if args.protocols and len(args.protocols) > 1:
            args.notes.append(f"--protocols {' '.join(args.protocols)}: the first one is compared")
        known = PROTOCOLS[args.task]
        args.protocols = (args.protocols or ["adjusted" if "adjusted" in known else known[0]])[:1]
        parsed.append(args)
    return parsed


def _folder_of(checkpoint: str, scratch: Path) -> str:
    path = Path(checkpoint)
    if not path.exists() or (path / "config.json").is_file():
        return checkpoint
    try:
        from model.convert.conversion import as_folder

        return str(as_folder(path, scratch))
    except ModuleNotFoundError as error:
        refuse(PROGRAM, [not_installed(error)])
    except (ValueError, OSError) as error:
        refuse(PROGRAM, [str(error)])


def evaluate(parsed: Sequence[argparse.Namespace], points: list[Point], troubles: dict[str, NonFiniteError]) -> str:
    """Adds the checkpoints' figures to `points`, as they come, and to `troubles` why some are not finite.

    Returns what the figures measure.

    Raises ValueError for checkpoints and files that cannot be used.
    """
    from model.config import real_parameter_count
    from tasks.session import Session, run_all

    title, windows = "", []
    for args in parsed:
        session = Session(args)
        results = run_all(session.plan(), lambda: False)
        session.scorer.close()
        result = next(result for result in results if result.protocol == args.protocols[0])
        measure = next(name for name in _MEASURES if name in result.values)
        checkpoint = args.shown
        points.append(
            Point(checkpoint, real_parameter_count(session.config), step_of(checkpoint), result.values[measure])
        )
        if result.trouble is not None:
            troubles[checkpoint] = result.trouble
        windows.append(f"{result.window}")
        each = windows[0] if len(set(windows)) == 1 else f"{', '.join(windows)}: --seq-length N compares at one"
        title = f"{measure} ({result.protocol}, {Path(result.files[0]).name}, T {each})"
    return title


@interruptible
def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line (default: the program's own). Returns the exit status."""
    with tempfile.TemporaryDirectory() as scratch:
        return _compare(parse(list(sys.argv[1:] if argv is None else argv), Path(scratch)))


def _compare(parsed: Sequence[argparse.Namespace]) -> int:
    notes = dict.fromkeys(note for args in parsed for note in args.notes)  # the checkpoints have the same flags
    for line in notes if is_first_process() else ():
        print(line)
    points: list[Point] = []
    troubles: dict[str, NonFiniteError] = {}
    try:
        measure = evaluate(parsed, points, troubles)
        if is_first_process():
            print(table(points, measure))
            if parsed[0].png:
                draw(points, measure, parsed[0].png)
                print(f"wrote {parsed[0].png}")
    except KeyboardInterrupt as stop:
        print(table(points, "result"))
        print(f"{PROGRAM}: stopped, {len(points)} of {len(parsed)} checkpoints were evaluated", file=sys.stderr)
        return exit_status(stop)
    except ModuleNotFoundError as error:
        refuse(PROGRAM, [not_installed(error)])
    except ValueError as error:
        give_up(PROGRAM, error)
    except RuntimeError as error:
        if "HINT:" not in str(error):
            raise
        leave_to_first_process()
        print(f"{PROGRAM}: {error}", file=sys.stderr)
        return 1
    if troubles:
        leave_to_first_process()
    for checkpoint, trouble in troubles.items():
        print(f"{PROGRAM}: {checkpoint}: {trouble}", file=sys.stderr)
    return 1 if troubles else 0


if __name__ == "__main__":
    sys.exit(main())
