"""A checkpoint of freshly initialised weights, for benchmarks whose speed does not depend on what was learnt.

    python benchmarks/untrained_checkpoint.py --model gpt2 benchmark_logs/untrained_gpt2

A folder that is there already is left as it is.
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from corpora.program import ProgramParser  # noqa: E402
from model.config import MODELS, GPT2Config  # noqa: E402


def main(argv: list[str]) -> int:
    parser = ProgramParser("benchmarks/untrained_checkpoint.py", __doc__)
    parser.add_argument("folder", type=Path, help="where the checkpoint goes")
    parser.add_argument("--model", choices=sorted(MODELS), default="gpt2", help="size of the model")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args(argv)
    if args.folder.exists():
        print(f"{args.folder} is there already")
        return 0
    import torch

    from model.checkpoint import save_pretrained, write_atomically
    from model.gpt2 import GPT2LMHeadModel

    torch.manual_seed(args.seed)
    with write_atomically(args.folder) as temporary:
        save_pretrained(GPT2LMHeadModel(GPT2Config.from_json(str(MODELS[args.model]))), temporary)
    print(f"written to {args.folder}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
