"""What the systems of docs/systems.md show on two cores and the text of `make demo`, a question a part: docs/seeds.md.

    make seeds                                  # all parts; 22 minutes of processor time (two cores, 2026-11-30)
    make seeds PARTS="speed warmup"             # these alone; the others' sections stay what they are
    python -m benchmarks.seeds --steps 16 --parts postln --folder /tmp/try --page /tmp/try.md --json /tmp/try.json

Every run is train_gpt2.py on the excerpt, an evaluation tasks/evaluate_wiki.py. A run that is finished is not made
again, an interrupted one goes on from its checkpoint; delete its folder, or all of demo/seeds, to make it anew. Where
the small scale does not show what was published, the sentence below the table says so.
"""

from __future__ import annotations

import argparse
import json
import sys
import textwrap
import time
from pathlib import Path
from typing import Any, Iterator

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks import record  # noqa: E402
from benchmarks.seeds_parts import PARTS  # noqa: E402
from benchmarks.seeds_runs import LENGTH, VOCABULARY, Runs, Settings  # noqa: E402
from corpora.program import ProgramParser, reported  # noqa: E402

LEAST_STEPS = 16  # the warm-up's short samples must be fewer tokens than the run has


def parse(argv: list[str]) -> argparse.Namespace:
    parser = ProgramParser("benchmarks/seeds.py", __doc__)
    parser.add_argument("--parts", nargs="+", choices=list(PARTS), default=list(PARTS), help="default: all")
    parser.add_argument("--steps", type=int, default=300, help="weight updates of a run (default: 300)")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1234, 1235], help="default: 1234 1235")
    parser.add_argument("--threads", type=int, default=2, help="CPU threads (default: 2)")
    parser.add_argument("--folder", type=Path, default=Path("demo/seeds"), help="of the runs: %(default)s")
    parser.add_argument("--page", type=Path, default=Path("docs/seeds.md"), help="the tables: %(default)s")
    parser.add_argument(
        "--json",
        type=lambda path: Path(record.writable(path)),
        default=Path("benchmarks/records/seeds_cpu.json"),
        help="%(default)s",
    )
    args = parser.parse_args(argv)
    problems = [f"--steps must be at least {LEAST_STEPS}"] if args.steps < LEAST_STEPS else []
    problems += ["--threads must be at least 1"] if args.threads < 1 else []
    if problems:
        parser.error("; ".join(problems))
    return args


def made(results: Any) -> Iterator[dict[str, Any]]:
    """The figures of every run in the results of a part."""
    if isinstance(results, dict) and "hardware" in results:
        yield results
    elif isinstance(results, (dict, list)):
        for each in results.values() if isinstance(results, dict) else results:
            yield from made(each)


def page(results: dict[str, Any]) -> str:
    """docs/seeds.md: a section for each part that was measured."""
    lines = [
        "# What the systems show at a small scale",
        "",
        "The published comparisons of [the systems beside GPT-2](systems.md), repeated with small models on the text "
        "of `make demo`. [Back to the front page](../README.md)",
        "",
        "`make seeds` wrote this page, from runs of the programs as anyone would start them, and "
        "[the figures](../benchmarks/records/seeds_cpu.json) beside it. The text is an excerpt of Wikipedia, in "
        f"a byte-level BPE of {VOCABULARY:,} entries that is trained on the same text; perplexities are of held-out "
        f"articles, a token of that vocabulary, in samples of {LENGTH} tokens where nothing else is said.",
    ]
    for name, part in PARTS.items():
        lines += ["", f"## {part.title}", ""]
        if name not in results:
            lines.append(f'Not measured yet: `make seeds PARTS="{name}"`.')
            continue
        lines += part.lines(results[name])
        runs = list(made(results[name]))
        dates, machines = (sorted({run[key] for run in runs}) for key in ("date", "hardware"))
        loads = [run["load"] for run in runs]
        lines += [
            "",
            f"{_took(runs)}, {', '.join(dates)}, {'; '.join(machines)}, load average "
            f"{min(loads):.1f} to {max(loads):.1f}.",
        ]
    if set(PARTS) <= set(results):
        once = list({json.dumps(run, sort_keys=True): run for run in made(results)}.values())
        note = "A run of two parts counts once. Minutes are the clock's, whatever else the machine did in them."
        lines += ["", "## What it takes", "", f"All parts: {_took(once)}. {note}"]
    return "\n".join(wrapped for line in lines for wrapped in _wrapped(line)) + "\n"


def _took(runs: list[dict[str, Any]]) -> str:
    """How many runs, and their minutes; those of the processors are of all cores together."""
    told = f"{len(runs)} runs, {sum(run['seconds'] for run in runs) / 60:.0f} minutes"
    if not all("processor_seconds" in run for run in runs):  # of an earlier version's record
        return told
    return f"{told}, {sum(run['processor_seconds'] for run in runs) / 60:.0f} minutes of processor time"


def _wrapped(line: str) -> list[str]:
    """A paragraph as lines; rows of a table and titles stay whole."""
    return [line] if not line or line[0] in "|#" else textwrap.wrap(line, 124, break_on_hyphens=False)


def measure(args: argparse.Namespace, argv: list[str]) -> None:
    """The parts that were asked for, one after the other; page and record are written after each."""
    runs, settings = Runs(args.folder, args.threads), Settings(args.steps, args.seeds)
    runs.prepare()
    results = json.loads(args.json.read_text(encoding="utf-8"))["results"] if args.json.is_file() else {}
    for name in args.parts:
        began = time.monotonic()
        print(f"{name}: {PARTS[name].title}", flush=True)
        results[name] = PARTS[name].measure(runs, settings)
        args.page.write_text(page(results), encoding="utf-8")
        about = {"steps": args.steps, "seeds": args.seeds, "threads": args.threads}
        record.write(args.json, record.head("seeds", argv), about, results)
        print("\n".join(PARTS[name].lines(results[name])), flush=True)
        print(f"{name}: {(time.monotonic() - began) / 60:.1f} minutes; {args.page}\n", flush=True)


def main(argv: list[str]) -> int:
    args = parse(argv)
    return reported("benchmarks/seeds.py", lambda: measure(args, argv))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
