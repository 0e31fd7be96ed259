"""How much memory the conversion of a checkpoint takes, format by format.

    python -m benchmarks.convert --model gpt2-xl --output benchmarks/records/convert_cpu.json

Makes a checkpoint of random weights in a temporary folder (--folder: on another disk; GPT-2 XL takes 6 GB, and the
results up to 13 GB beside it) and converts it in processes of their own. Each is asked every few milliseconds for its
anonymous memory (RssAnon of /proc/PID/status: what is not pages of mapped files); --limit-mb ends with status 1 if one
had more.
"""

from __future__ import annotations

import dataclasses
import json
import shutil
import struct
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks import record  # noqa: E402
from corpora.program import ProgramParser, reported  # noqa: E402
from model.config import MODELS, GPT2Config  # noqa: E402

ROOT = Path(__file__).resolve().parents[1]
PERIOD = 0.01  # seconds between two looks at a process
# What is converted, from the checkpoint or from an earlier result: name, IN, OUT, flags.
CASES = (
    ("huggingface to llm.c", "hf", "a.bin", ("--to", "llm.c")),
    ("llm.c to huggingface", "a.bin", "b", ("--to", "huggingface")),
    ("huggingface to gguf q8_0", "hf", "a.gguf", ("--to", "gguf", "--dtype", "q8_0")),
    ("gguf q8_0 to huggingface", "a.gguf", "c", ("--to", "huggingface")),
    ("huggingface to nanogpt", "hf", "a.pt", ("--to", "nanogpt")),
    ("nanogpt to huggingface", "a.pt", "d", ("--to", "huggingface")),
    ("huggingface to megatron", "hf", "e", ("--to", "megatron")),
    ("megatron to huggingface", "e", "f", ("--to", "huggingface")),
)


def write_checkpoint(config: GPT2Config, folder: Path, seed: int) -> int:
    """Random weights, a tensor at a time; the bytes of the weights."""
    import torch

    from model.checkpoint import config_text
    from model.gpt2 import GPT2LMHeadModel

    config = dataclasses.replace(config, vocab_size=config.real_vocab_size)
    folder.mkdir()
    (folder / "config.json").write_text(config_text(config, torch.float32), encoding="utf-8")
    with torch.device("meta"):
        shapes = {name: p.shape for name, p in GPT2LMHeadModel(config, initialize=False).named_parameters()}
    header, place = {}, 0
    for name, shape in shapes.items():
        header[name] = {"dtype": "F32", "shape": list(shape), "data_offsets": [place, place + 4 * shape.numel()]}
        place += 4 * shape.numel()
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    generator = torch.Generator().manual_seed(seed)
    with (folder / "model.safetensors").open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for shape in shapes.values():
            for rows in torch.empty(shape, device="meta").split(4096):
                file.write(torch.randn(rows.shape, generator=generator).mul_(0.02).numpy().tobytes())
    return place


def measured(command: list[str]) -> dict[str, float]:
    """Seconds, and the largest anonymous memory in MB. Raises RuntimeError with what the program says if it fails."""
    start, peak = time.perf_counter(), 0
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    status = Path(f"/proc/{process.pid}/status")
    while process.poll() is None:
        try:
            lines = status.read_text().splitlines()
        except OSError:  # it has just ended
            break
        peak = max([peak, *(int(line.split()[1]) for line in lines if line.startswith("RssAnon"))])
        time.sleep(PERIOD)
    said = process.communicate()[0]
    if process.returncode:
        raise RuntimeError(f"{' '.join(command)}: {said.strip()}")
    return {"seconds": round(time.perf_counter() - start, 1), "anonymous_mb": round(peak / 1000, 1)}


def main(argv: list[str]) -> int:
    parser = ProgramParser("benchmarks/convert.py", __doc__)
    parser.add_argument("--model", choices=sorted(MODELS), default="gpt2-xl", help="shape of the model (gpt2-xl)")
    parser.add_argument("--folder", type=Path, help="where the temporary folder is made (default: the system's)")
    parser.add_argument("--limit-mb", type=float, help="most anonymous memory, in MB")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, metavar="FILE", help="where the record goes")
    args = parser.parse_args(argv)
    results: dict[str, Any] = {}

    def work() -> None:
        config = GPT2Config.from_json(MODELS[args.model])
        with tempfile.TemporaryDirectory(dir=args.folder) as name:
            folder = Path(name)
            size = write_checkpoint(config, folder / "hf", args.seed)
            results["weights_mb"] = round(size / 1e6, 1)
            for case, source, output, flags in CASES:
                command = [sys.executable, "-m", "model.convert", str(folder / source), str(folder / output), *flags]
                results[case] = measured(command)
                print(f"{case}: {results[case]['anonymous_mb']:.0f} MB anonymous, {results[case]['seconds']:.0f} s")
                sys.stdout.flush()
                if source != "hf":  # both are done with
                    for path in (folder / source, folder / output):
                        shutil.rmtree(path) if path.is_dir() else path.unlink()

    status = reported("benchmarks/convert.py", work, goes_on=False)
    if status:
        return status
    if args.output is not None:
        settings = {"model": args.model, "seed": args.seed, "period": PERIOD}
        record.write(args.output, record.head("convert", argv), settings, results)
    most = max(result["anonymous_mb"] for result in results.values() if isinstance(result, dict))
    if args.limit_mb is not None and most > args.limit_mb:
        print(f"benchmarks/convert.py: {most:.0f} MB, above --limit-mb {args.limit_mb:.0f}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
