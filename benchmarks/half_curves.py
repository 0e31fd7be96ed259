"""What products of half in bfloat16 cost in quality: the demo's model trained with them and in float32.

    make demo && .venv/bin/python -m benchmarks.half_curves                    # 3 seeds, 200 updates, twice each
    .venv/bin/python -m benchmarks.half_curves --json benchmarks/records/half_curves_cpu.json
    .venv/bin/python -m benchmarks.half_curves --precisions float32 --threads 1 --folder demo/half_curves_1

The last one, beside the float32 of the first, tells how far sums in another order alone move the losses.

Each run is train_gpt2.py with the demo's flags on the demo's corpus, one weight update a call; only
POPTORCH_PORTABLE_HALF differs, and a CPU without units for bfloat16 emulates them exactly. Printed are the held-out
losses after the last update; the curves of the first seed are drawn over each other.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from pathlib import Path
from typing import Mapping, Sequence

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks import record  # noqa: E402
from benchmarks.flags import below_one  # noqa: E402
from corpora.program import ProgramParser  # noqa: E402

ROOT = Path(__file__).resolve().parents[1]
PRECISIONS, VARIABLE = ("float32", "bfloat16"), "POPTORCH_PORTABLE_HALF"
# Those of run/demo.sh, but for the calls: one update each.
FLAGS = """--model gpt2-tiny --max-len 128 --stride 128 --val-num 64 --optimizer AdamW --learning-rate 0.003
    --weight-decay 0.01 --loss-scaling 1024 --lr-schedule cosine --lr-warmup 0.1 --batch-size 8
    --gradient-accumulation 1 --device-iterations 1 --num-workers 0 --log-steps 10 --overwrite""".split()


def parser_of(program: str, text: str) -> ProgramParser:
    """The flags of benchmarks that train the demo's model in two ways."""
    parser = ProgramParser(f"benchmarks/{program}.py", text.split("\n")[0])
    parser.add_argument("--corpus", default="demo/corpus/wikicorpus_en_one_article_per_line.pkl")
    parser.add_argument("--steps", type=int, default=200, help="weight updates of a run (default: 200)")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1234, 1235, 1236], help="of a run each")
    parser.add_argument("--threads", type=int, default=2, help="CPU threads (default: 2)")
    parser.add_argument("--folder", type=Path, default=Path("demo") / program, help="of the runs: %(default)s")
    record.add_json_flag(parser)
    return parser


def parsed(parser: ProgramParser, argv: list[str]) -> argparse.Namespace:
    """What they say. Exit status 2 for what cannot be done."""
    args = parser.parse_args(argv)
    problems = below_one(args, ("steps", "threads"))
    if not Path(args.corpus).is_file():
        problems.append(f"--corpus {args.corpus}: no such file; `make demo` makes it")
    if problems:
        parser.error("; ".join(problems))
    return args


def train(
    args: argparse.Namespace, seed: int, name: str, words: Sequence[str] = (), variables: Mapping[str, str] = {}
) -> Path:
    """The folder of a run with further flags or environment variables, which is made now. RuntimeError if it fails."""
    folder = args.folder / f"seed_{seed}" / name
    run = ["--train-path", args.corpus, "--seed", str(seed), "--training-steps", str(args.steps)]
    run += ["--eval-steps", str(max(1, args.steps // 4)), "--lr-decay-steps", str(args.steps)]
    done = subprocess.run(
        [sys.executable, str(ROOT / "train_gpt2.py"), *FLAGS, *run, *words, "--save-model-path", str(folder)],
        env={**os.environ, "OMP_NUM_THREADS": str(args.threads), **variables},
        capture_output=True,
        text=True,
    )
    if done.returncode:
        raise RuntimeError(f"the run with {name} and seed {seed} failed:\n{done.stdout[-500:]}{done.stderr[-2000:]}")
    return folder


def held_out_loss(folder: Path) -> float:
    """After the last update, in nats a token."""
    from training.log.curves import CURVES_FILE, read_rows

    found = [row["validation_loss"] for row in read_rows(folder / CURVES_FILE) if row["validation_loss"] is not None]
    return found[-1]


def main(argv: list[str]) -> int:
    parser = parser_of("half_curves", __doc__)
    parser.add_argument("--picture", type=Path, default=Path("docs/half_curves.png"), help="default: %(default)s")
    parser.add_argument("--precisions", nargs="+", choices=PRECISIONS, default=PRECISIONS, help="default: both")
    args = parsed(parser, argv)
    from training.log.curves import CURVES_FILE, draw

    results = []
    for seed in args.seeds:
        try:
            folders = {name: train(args, seed, name, variables={VARIABLE: name}) for name in args.precisions}
        except RuntimeError as error:
            print(f"half_curves: {error}", file=sys.stderr)
            return 1
        losses = {precision: held_out_loss(folder) for precision, folder in folders.items()}
        results.append({"seed": seed, "held_out_loss": losses})
        shown = ", ".join(f"{loss:.4f} with products in {precision}" for precision, loss in losses.items())
        if len(losses) == len(PRECISIONS):
            results[-1]["difference"] = losses["bfloat16"] - losses["float32"]
            shown += f", {results[-1]['difference']:+.4f}"
            if seed == args.seeds[0]:
                draw([folder / CURVES_FILE for folder in folders.values()], args.picture)
                shown += f"\ncurves: {args.picture}"
        print(f"seed {seed}: held-out loss {shown}", flush=True)
    if args.json:
        settings = {"steps": args.steps, "threads": args.threads, "flags": " ".join(FLAGS)}
        record.write(args.json, record.head("half_curves", argv), settings, results)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
