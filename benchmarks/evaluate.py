"""WikiText's adjusted protocol: this program's scorer next to transformers' GPT-2 with logits for all positions.

    python -m benchmarks.evaluate                     # GPT-2 small's shape, T 1024, stride 32, 2 threads
    python -m benchmarks.evaluate --model tiny --rounds 1
    python -m benchmarks.evaluate --half              # --fp16 of tasks/evaluate_wiki.py, and float32 as a side, too
    python -m benchmarks.evaluate --json benchmarks/records/evaluate_cpu.json

Random weights and ids; the sides score the same windows of the same model in turn and must come to the same loss, in
half as far as its products are exact: how far the perplexity is off is told. The figure is scored tokens a second: a
window of T tokens counts its `stride` new ones. Medians over the rounds, and the medians of the ratios within a round.
"""

from __future__ import annotations

import argparse
import copy
import math
import statistics
import sys
import time
from pathlib import Path
from typing import Any, Callable, Iterable

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks import record, train_step  # noqa: E402
from corpora.program import ProgramParser  # noqa: E402

STRIDE = 32
OURS, FLOAT32, TRANSFORMERS = "ours", "ours in float32", "transformers"
# Relative, of a loss: float32 adds up in another order; half may have products of bfloat16, good to 1 part in 256.
TOLERANCE, HALF_TOLERANCE = 1e-4, 2**-8


def sides(args: argparse.Namespace) -> dict[str, Callable[[], float]]:
    """Each side's function from nothing to the summed loss of the round's windows."""
    import numpy as np
    import poptorch
    import torch
    import transformers

    from model.config import GPT2Config
    from model.gpt2 import GPT2LMHeadModel
    from model.scoring import Scorer
    from tasks.windows import SlidingWindows

    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    layers, width, heads, vocabulary = train_step.MODELS[args.model]
    padded = -(-vocabulary // 16) * 16
    gpt2 = GPT2LMHeadModel(GPT2Config(padded, args.length, width, layers, heads, real_vocab_size=vocabulary)).eval()
    sizes = dict(vocab_size=vocabulary, n_positions=args.length, n_embd=width, n_layer=layers, n_head=heads)
    config = transformers.GPT2Config(**sizes, use_cache=False)
    theirs = transformers.GPT2LMHeadModel(config).eval()
    state = dict(gpt2.state_dict())
    for name in ("transformer.wte.weight", "lm_head.weight"):
        state[name] = state[name][:vocabulary]
    theirs.load_state_dict(state)
    ids = np.random.default_rng(0).integers(0, vocabulary, args.length + args.windows * STRIDE + 1)
    cut = SlidingWindows(ids, args.length, STRIDE)
    items = cut[len(cut) - args.windows :]  # the first window scores all of its tokens; it is left out

    def ours(model: GPT2LMHeadModel) -> Callable[[], float]:
        scorer = Scorer(model, lambda: poptorch.Options().deviceIterations(args.windows), 1)
        return lambda: scorer.score(items, cut.length, cut.width).total()[0]

    def reference() -> float:
        total = 0.0
        with torch.inference_mode():
            for item in items:
                inputs = torch.from_numpy(item.ids)[None]
                labels = torch.full_like(inputs, -100)
                labels[0, item.positions] = torch.from_numpy(item.targets)
                loss = theirs(input_ids=inputs, labels=labels, shift_labels=labels).loss
                total += float(loss) * len(item.targets)
        return total

    if args.half:
        return {OURS: ours(copy.deepcopy(gpt2).half()), FLOAT32: ours(gpt2), TRANSFORMERS: reference}
    return {OURS: ours(gpt2), TRANSFORMERS: reference}


def measure(args: argparse.Namespace) -> dict[str, Any]:
    """Alternating rounds; RuntimeError if the sides' losses differ."""
    functions = sides(args)
    losses = {name: function() for name, function in functions.items()}  # warms up
    expected = losses[TRANSFORMERS]
    for name, loss in losses.items():
        tolerance = HALF_TOLERANCE if args.half and name == OURS else TOLERANCE
        if not abs(loss - expected) <= tolerance * expected:  # of NaN neither holds
            raise RuntimeError(f"the sides do not agree: {losses}")
    rounds = []
    for index in range(args.rounds):
        row = {}
        for name in functions if index % 2 == 0 else reversed(functions):
            start = time.perf_counter()
            functions[name]()
            row[name] = args.windows * STRIDE / (time.perf_counter() - start)
        rounds.append(row)
        print(f"  round {index + 1}: {_listed(row, functions)} scored tokens/s", flush=True)
    ratios = {name: statistics.median(row[OURS] / row[name] for row in rounds) for name in functions if name != OURS}
    return {
        "losses": losses,
        "rounds": rounds,
        "scored_tokens_per_second": {name: statistics.median(row[name] for row in rounds) for name in functions},
        "times_faster": ratios[TRANSFORMERS],
        "times_faster_than": ratios,
        # exp of the mean loss over the other side's
        "perplexity_off_by": {
            name: math.expm1((losses[OURS] - losses[name]) / (args.windows * STRIDE)) for name in ratios
        },
    }


def _listed(figures: dict[str, float], names: Iterable[str]) -> str:
    return ", ".join(f"{name} {figures[name]:.1f}" for name in names)


def main(argv: list[str]) -> int:
    parser = ProgramParser("benchmarks/evaluate.py", __doc__)
    parser.add_argument("--model", choices=sorted(train_step.MODELS), default="gpt2", help="size of the model")
    parser.add_argument("--length", type=int, default=1024, help="window T in tokens")
    parser.add_argument("--windows", type=int, default=2, help="windows in a round")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2, help="CPU threads of all sides")
    parser.add_argument("--half", action="store_true", help="ours with half weights, beside float32 and transformers'")
    record.add_json_flag(parser)
    args = parser.parse_args(argv)
    compared = "ours in half, ours in float32 and transformers" if args.half else "ours and transformers"
    print(f"{args.model}, T {args.length}, stride {STRIDE}, {args.windows} windows a round: {compared}")
    try:
        result = measure(args)
    except RuntimeError as error:
        print(f"evaluate: {error}", file=sys.stderr)
        return 1
    figures = result["scored_tokens_per_second"]
    print(f"scored tokens/s: {_listed(figures, figures)}")
    for name, ratio in result["times_faster_than"].items():
        off = result["perplexity_off_by"][name]
        print(f"beside {name}: {ratio:.2f} times as fast, perplexity {off:+.4%}")
    if args.json:
        settings = {key: getattr(args, key) for key in ("model", "length", "windows", "rounds", "threads", "half")}
        record.write(args.json, record.head("evaluate", argv), {**settings, "stride": STRIDE}, result)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
