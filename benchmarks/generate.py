"""Speed of text generation: this program next to transformers' generate() and llama.cpp, with the same weights.

    python -m benchmarks.generate                      # GPT-2 small, prompt 32, 128 new tokens, 2 threads
    python -m benchmarks.generate --model tiny --rounds 1     # a smoke run
    python -m benchmarks.generate --json benchmarks/records/generate_cpu.json
    python -m benchmarks.generate --device cuda        # ours by the model's modules, and transformers

Weights are random: speed does not depend on them, and the greedy texts of all float32 sides are compared. Each side
lives in a process of its own and they take turns, one text at a time. Reported are medians over the rounds of the
milliseconds from token to token, and of the ratios within a round. Also measured, of ours: the loop on the device and
batches of 8; a long prompt is what prefill.py measures. llama.cpp takes part where
`pip install -r requirements-benchmarks.txt -c constraints.txt` has been run.
"""

from __future__ import annotations

import argparse
import importlib.util
import statistics
import sys
import tempfile
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks import generate_sides, record  # noqa: E402
from benchmarks.side_process import SideProcess  # noqa: E402
from corpora.program import ProgramParser  # noqa: E402

# n_layer, n_embd, n_head, vocabulary
MODELS = {"tiny": (2, 64, 2, 50257), "gpt2": (12, 768, 12, 50257)}


def write_checkpoint(folder: Path, model: str) -> None:
    """Random weights, wide enough that greedy choices are not close calls."""
    import torch

    from model.checkpoint import save_pretrained
    from model.config import GPT2Config
    from model.gpt2 import GPT2LMHeadModel

    layers, width, heads, vocabulary = MODELS[model]
    config = GPT2Config(
        vocab_size=-(-vocabulary // 16) * 16,
        real_vocab_size=vocabulary,
        n_positions=1024,
        n_embd=width,
        n_layer=layers,
        n_head=heads,
        activation_function="gelu_new",
        bos_token_id=None,
        eos_token_id=None,
    )
    torch.manual_seed(0)
    gpt2 = GPT2LMHeadModel(config)
    for parameter in gpt2.parameters():
        parameter.data.mul_(3 if parameter.dim() > 1 else 1)
    save_pretrained(gpt2, folder)


def sides(args: argparse.Namespace) -> dict[str, dict[str, Any]]:
    """What takes part: name -> settings."""
    on_cpu = args.device == "cpu"
    chosen = {"transformers float32": ("transformers", "float32", "steps", 1)} if on_cpu else {}
    way = "steps" if on_cpu else "modules"
    for precision in ("float32", "float16", "int8") if on_cpu else ("float32", "float16"):
        chosen[f"ours {precision}"] = ("ours", precision, way, 1)
        if on_cpu and importlib.util.find_spec("xllamacpp"):
            chosen[f"llama.cpp {precision}"] = ("llama.cpp", precision, way, 1)
    chosen["ours float32, loop"] = ("ours", "float32", "loop", 1)
    chosen["ours float32, batch 8"] = ("ours", "float32", way, 8)
    if on_cpu:
        chosen["ours float32, modules"] = ("ours", "float32", "modules", 1)
    shared = {"tokens": args.tokens, "threads": args.threads}
    return {
        name: {"side": side, "precision": precision, "way": way, "batch": batch, **shared}
        for name, (side, precision, way, batch) in chosen.items()
        if not args.only or any(word in name for word in args.only)
    }


def measure(args: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """All rounds: milliseconds from token to token by side."""
    chosen = sides(args)
    for settings in chosen.values():
        settings["folder"] = str(folder)
        if settings["side"] == "llama.cpp":
            generate_sides.write_gguf(folder, settings["precision"])
    workers = {
        name: SideProcess(generate_sides.__file__, name, settings, args.device) for name, settings in chosen.items()
    }
    try:
        texts = {name: worker.ask("generate")["tokens"] for name, worker in workers.items()}  # the first one warms up
        rounds: list[dict[str, float]] = []
        for index in range(args.rounds):
            order = list(workers) if index % 2 == 0 else list(workers)[::-1]
            rounds.append({name: workers[name].ask("generate")["milliseconds"] for name in order})
            print(f"round {index + 1}: " + ", ".join(f"{name} {rounds[-1][name]:.2f}" for name in workers), flush=True)
    finally:
        for worker in workers.values():
            worker.close()
    return {"rounds": rounds, "texts": texts, **summary(list(workers), rounds)}


def summary(names: list[str], rounds: list[dict[str, float]]) -> dict[str, Any]:
    """Medians and ratios."""

    def ratio(other: str, own: str) -> float:
        return statistics.median(row[other] / row[own] for row in rounds)

    result: dict[str, Any] = {"milliseconds": {name: statistics.median(row[name] for row in rounds) for name in names}}
    pairs = [("transformers float32", "ours float32")]
    pairs += [(f"llama.cpp {precision}", f"ours {precision}") for precision in ("float32", "float16", "int8")]
    result["times_faster"] = {
        f"{own} than {other}": ratio(other, own) for other, own in pairs if other in names and own in names
    }
    if "ours float32, batch 8" in names and "ours float32" in names:
        result["batch_8_tokens_per_second_over_batch_1"] = 8 * ratio("ours float32", "ours float32, batch 8")
    return result


def report(results: dict[str, Any]) -> str:
    """The results as text."""
    lines = [f"{name:<24} {ms:8.2f} ms a token" for name, ms in results["milliseconds"].items()]
    lines += [f"{name}: {ratio:.2f} times as fast" for name, ratio in results["times_faster"].items()]
    texts = {name: text for name, text in results["texts"].items() if "float32" in name and text}
    first = next(iter(texts))
    for name, text in list(texts.items())[1:]:
        same = next((i for i, (a, b) in enumerate(zip(text, texts[first])) if a != b), len(text))
        lines.append(f"greedy text of {name}: {same} of {len(text)} tokens as {first}")
    if "batch_8_tokens_per_second_over_batch_1" in results:
        lines.append(f"batch 8: {results['batch_8_tokens_per_second_over_batch_1']:.2f} times the tokens/s of batch 1")
    return "\n".join(lines)


def parse(argv: list[str]) -> argparse.Namespace:
    parser = ProgramParser("benchmarks/generate.py", __doc__.split("\n")[0])
    parser.add_argument("--model", choices=MODELS, default="gpt2")
    parser.add_argument("--tokens", type=int, default=128, help="new tokens (default: 128)")
    parser.add_argument("--rounds", type=int, default=3, help="texts of each side (default: 3)")
    parser.add_argument("--threads", type=int, default=2, help="default: 2")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--only", nargs="*", metavar="WORD", help="sides with one of these words in their name")
    record.add_json_flag(parser)
    args = parser.parse_args(argv)
    wrong = [f"--{name} must be at least {low}" for name, low in (("tokens", 2), ("rounds", 1), ("threads", 1))
             if getattr(args, name) < low]  # fmt: skip
    if wrong:
        parser.error("; ".join(wrong))
    return args


def main(argv: list[str]) -> int:
    args = parse(argv)
    missing = [name for name in ("torch", "transformers") if importlib.util.find_spec(name) is None]
    if missing:
        print(f"generate: {' and '.join(missing)} not installed. Run `make setup-dev` first.", file=sys.stderr)
        return 2
    try:
        with tempfile.TemporaryDirectory() as folder:
            write_checkpoint(Path(folder), args.model)
            results = measure(args, Path(folder))
    except RuntimeError as error:
        print(f"generate: {error}", file=sys.stderr)
        return 1
    print(report(results))
    if args.json:
        results.pop("texts")
        keys = ("model", "tokens", "rounds", "threads", "device")
        head = record.head("generate", argv, ["xllamacpp"], args.device)
        record.write(args.json, head, {key: getattr(args, key) for key in keys}, results)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
