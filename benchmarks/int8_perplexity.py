"""What 8-bit weights cost in quality: perplexity of held-out text with float32, float16 and int8 decode steps.

    make demo && .venv/bin/python -m benchmarks.int8_perplexity
    .venv/bin/python -m benchmarks.int8_perplexity --json benchmarks/records/int8_perplexity_cpu.json

The model is the one that `make demo` trains, the text its held-out articles; each token is predicted by the step that
text_generate_gpt2.py makes, with the cache of that precision.
"""

from __future__ import annotations

import argparse
import math
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks import record  # noqa: E402
from corpora.program import ProgramParser  # noqa: E402

BATCH = 8  # samples side by side


def parse(argv: list[str]) -> argparse.Namespace:
    parser = ProgramParser("benchmarks/int8_perplexity.py", __doc__.split("\n")[0])
    parser.add_argument("--checkpoint", default="demo/checkpoints/epoch_0", help="default: %(default)s")
    parser.add_argument("--corpus", default="demo/corpus/wikicorpus_en_one_article_per_line.pkl")
    parser.add_argument("--max-len", type=int, default=128, help="T, as in run/demo.sh (default: 128)")
    parser.add_argument("--val-num", type=int, default=64, help="samples held out, as in run/demo.sh (default: 64)")
    parser.add_argument("--seed", type=int, default=1234, help="of the split (default: 1234)")
    record.add_json_flag(parser)
    return parser.parse_args(argv)


def losses(args: argparse.Namespace) -> dict[str, float]:
    """Nats a token by precision, over the same tokens."""
    import torch
    import torch.nn.functional as F

    import custom_ops
    from custom_ops.decode_blocks import PRECISIONS
    from data.loading.datasets import open_dataset
    from generation.native_steps import NativeSteps
    from model.checkpoint import load_pretrained

    custom_ops.load()
    gpt2 = load_pretrained(args.checkpoint).float().eval()
    real = gpt2.config.real_vocab_size
    _, held_out = open_dataset(
        args.corpus,
        max_len=args.max_len,
        stride=args.max_len,
        seed=args.seed,
        val_num=args.val_num,
        real_vocab_size=real,
        num_samples=1,
    )
    found = {}
    for precision in PRECISIONS:
        steps = _Eager(NativeSteps(gpt2, [gpt2.config.n_layer], precision))
        total, count = 0.0, 0
        for first in range(0, len(held_out), BATCH):
            inputs, labels = held_out.__getitems__(range(first, min(first + BATCH, len(held_out))))
            rows = inputs.shape[0]
            caches = steps.new_caches(rows, args.max_len)
            for position in range(args.max_len):
                start, one = torch.full((rows,), position, dtype=torch.int32), torch.ones(rows, dtype=torch.int32)
                logits = steps(inputs[:, position : position + 1], start, one, caches)  # (B, V)
                target = labels[:, position].long()
                total += float(F.cross_entropy(logits, target, ignore_index=-100, reduction="sum"))
                count += int((target != -100).sum())
        found[precision] = total / count
        print(f"{precision}: {found[precision]:.6f} nats a token over {count:,} tokens", flush=True)
    return found


class _Eager:
    """The steps of a NativeSteps by its operators themselves: outside an executor poptorch.custom_op gives zeros."""

    def __init__(self, steps: object) -> None:
        import torch

        self.steps, self.new_caches = steps, steps.new_caches
        self.operators = torch.ops.gpt2_decode

    def __call__(self, input_ids, start, count, caches):  # noqa: ANN001, ANN204
        steps, operators = self.steps, self.operators
        hidden = operators.EmbedTokens(input_ids, start, count, steps.embedding.wte, steps.embedding.wpe)
        for part, keys, values in zip(steps.blocks, caches, caches[len(steps.blocks) :]):
            hidden = operators.DecodeBlocks(
                hidden, start, count, part.weights, part.vectors, keys, values, **part.attributes
            )
        head = steps.head
        return operators.NextLogits(hidden, count, head.norm, head.norm_bias, head.weights, **head.attributes)


def torch_threads() -> int:
    """The threads the figures were computed with."""
    import torch

    return torch.get_num_threads()


def main(argv: list[str]) -> int:
    args = parse(argv)
    missing = [path for path in (args.checkpoint, args.corpus) if not Path(path).exists()]
    if missing:
        print(f"int8_perplexity: no {' and no '.join(missing)}; run `make demo` first", file=sys.stderr)
        return 2
    found = losses(args)
    perplexity = {precision: math.exp(loss) for precision, loss in found.items()}
    cost = {precision: value / perplexity["float32"] - 1 for precision, value in perplexity.items()}
    for precision, value in perplexity.items():
        print(f"{precision:<8} perplexity {value:10.4f}, {cost[precision]:+.4%}")
    if args.json:
        keys = ("checkpoint", "corpus", "max_len", "val_num", "seed")
        settings = {**{key: getattr(args, key) for key in keys}, "threads": torch_threads()}
        results = {"nats_a_token": found, "perplexity": perplexity, "cost": cost}
        record.write(args.json, record.head("int8_perplexity", argv), settings, results)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
