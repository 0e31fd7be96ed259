"""What optimizer states in 8 bits cost in quality: the demo's model trained with AdamW8bit and with AdamW.

    make demo && .venv/bin/python -m benchmarks.eight_bit_curves               # 3 seeds, 200 updates, twice each
    .venv/bin/python -m benchmarks.eight_bit_curves --json benchmarks/records/eight_bit_curves_cpu.json

Each run is train_gpt2.py with the demo's flags on the demo's corpus, one weight update a call; only --optimizer
differs. Printed are the held-out losses after the last update, and how far those of one optimizer lie apart by seed.
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks import record  # noqa: E402
from benchmarks.half_curves import FLAGS, held_out_loss, parsed, parser_of, train  # noqa: E402

OPTIMIZERS = ("AdamW", "AdamW8bit")


def main(argv: list[str]) -> int:
    args = parsed(parser_of("eight_bit_curves", __doc__), argv)
    results = []
    for seed in args.seeds:
        try:
            losses = {name: held_out_loss(train(args, seed, name, ["--optimizer", name])) for name in OPTIMIZERS}
        except RuntimeError as error:
            print(f"eight_bit_curves: {error}", file=sys.stderr)
            return 1
        difference = losses["AdamW8bit"] - losses["AdamW"]
        results.append({"seed": seed, "held_out_loss": losses, "difference": difference})
        shown = ", ".join(f"{loss:.4f} with {name}" for name, loss in losses.items())
        print(f"seed {seed}: held-out loss {shown}, {difference:+.4f}", flush=True)
    if len(results) > 1:
        of_adamw = [result["held_out_loss"]["AdamW"] for result in results]
        print(f"AdamW's losses by seed are {max(of_adamw) - min(of_adamw):.4f} apart")
    if args.json:
        settings = {"steps": args.steps, "threads": args.threads, "flags": " ".join(FLAGS)}
        record.write(args.json, record.head("eight_bit_curves", argv), settings, results)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
