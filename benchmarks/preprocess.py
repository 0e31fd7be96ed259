"""Preprocessing speed and memory: extracted text to token ids in each format, against tiktoken in the same run.

    python -m benchmarks.preprocess --excerpt demo/extracted --json benchmarks/records/preprocess_cpu.json

Ours is `python -m data.prepare` as a user calls it: start, reading files, tokenizing, writing the output. tiktoken's
side has its text in memory already, with the vocabulary built, and its ids are thrown away: encode_ordinary_batch on
all cores and encode_to_numpy on one. The rounds alternate; memory is the sum over all processes of a run (PSS: pages
shared by several count once).

The text is made from a real excerpt: its articles with their lines in another order and 3 words in 100 made unlike any
other, so that a cache of words does not see the same ones again and again.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from benchmarks import record  # noqa: E402
from corpora.program import ProgramParser  # noqa: E402

FORMATS = ("pkl", "tfrecord", "mmap")
ARTICLE = re.compile(r"<doc .*?</doc>\n", re.DOTALL)
NEW_WORDS = 0.03


def make_text(excerpt: Path, folder: Path, megabytes: int) -> Path:
    """A folder of wiki_NN files of about that size, kept for the next run."""
    target = folder / f"extracted-{megabytes}"
    if target.is_dir():
        return target
    articles = [a for path in sorted(excerpt.rglob("wiki_*")) for a in ARTICLE.findall(path.read_text("utf-8"))]
    words = re.findall(r"\w+", "".join(articles))
    generator, work = random.Random(1), target.with_suffix(".part")
    for number in range(megabytes):
        held, size = [], 0
        while size < 1_000_000:
            lines = generator.choice(articles).split("\n")
            body = lines[3:-2]
            generator.shuffle(body)
            body = [" ".join(_renewed(line.split(" "), words, generator)) for line in body]
            held.append("\n".join(lines[:3] + body + lines[-2:]))
            size += len(held[-1].encode())
        path = work / f"{number // 100:02d}" / f"wiki_{number % 100:02d}"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("".join(held), encoding="utf-8")
    work.rename(target)
    return target


def _renewed(line: list[str], words: list[str], generator: random.Random) -> list[str]:
    return [word + generator.choice(words) if generator.random() < NEW_WORDS else word for word in line]


class MemoryWatch(threading.Thread):
    """The peak over time of the PSS of a process and its descendants, in bytes."""

    def __init__(self, pid: int) -> None:
        super().__init__(daemon=True)
        self.pid, self.peak, self._ended = pid, 0, threading.Event()

    def run(self) -> None:
        while not self._ended.wait(0.05):
            self.peak = max(self.peak, sum(map(_pss, _tree(self.pid))))

    def stop(self) -> int:
        """End watching; the peak."""
        self._ended.set()
        self.join()
        return self.peak


def _tree(pid: int) -> list[int]:
    found = [pid]
    for one in found:
        for path in Path(f"/proc/{one}/task").glob("*/children"):
            try:
                found += [int(child) for child in path.read_text().split()]
            except OSError:  # it has just ended
                continue
    return found


def _pss(pid: int) -> int:
    try:
        return int(re.search(r"\nPss: +(\d+) kB", Path(f"/proc/{pid}/smaps_rollup").read_text()).group(1)) * 1024
    except (OSError, AttributeError):
        return 0


def ours(text: Path, form: str, workers: int, work: Path) -> dict[str, float]:
    """Seconds and peak memory of `data.prepare` on the folder."""
    output = work / "output"
    shutil.rmtree(output, ignore_errors=True)
    command = [sys.executable, "-m", "data.prepare", "--input", str(text), "--output", str(output), "--format", form]
    command += ["--workers", str(workers), *(["--stride", "1024"] if form == "tfrecord" else [])]
    begin = time.perf_counter()
    process = subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True)
    watch = MemoryWatch(process.pid)
    watch.start()
    said = process.communicate()[1]
    seconds = time.perf_counter() - begin
    if process.returncode:
        raise RuntimeError(f"data.prepare failed:\n{said}")
    written = sum(path.stat().st_size for path in output.rglob("*") if path.is_file())
    return {"seconds": seconds, "peak_gb": watch.stop() / 1e9, "written_mb": written / 1e6}


def theirs(text: Path, threads: int) -> dict[str, float]:
    """Seconds of tiktoken's calls on the texts of the folder, in a process of its own."""
    command = [sys.executable, "-m", "benchmarks.preprocess", "--tiktoken", str(text), str(threads)]
    done = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(done.stdout)


def tiktoken_side(text: Path, threads: int) -> dict[str, float]:
    """What that process does."""
    import tiktoken

    from corpora.wikipedia import ArticleReader, wiki_files
    from tokenizer import EOT
    from tokenizer.bpe import byte_characters, published_files

    byte_of = {character: byte for byte, character in byte_characters().items()}
    entries = json.loads(published_files()[0].read_text("utf-8"))
    ranks = {bytes(byte_of[c] for c in token): i for token, i in entries.items() if token != EOT}
    # The expression that tiktoken itself uses for GPT-2.
    pattern = r"'(?:[sdmt]|ll|ve|re)| ?\p{L}++| ?\p{N}++| ?[^\s\p{L}\p{N}]++|\s++$|\s+(?!\S)|\s"
    encoding = tiktoken.Encoding("gpt2", pat_str=pattern, mergeable_ranks=ranks, special_tokens={EOT: 50256})
    texts = list(ArticleReader(wiki_files(text)))
    begin = time.perf_counter()
    tokens = sum(map(len, encoding.encode_ordinary_batch(texts, num_threads=threads)))
    batch = time.perf_counter() - begin
    sample = texts[:: max(1, len(texts) // 200)]
    begin = time.perf_counter()
    for one in sample:
        encoding.encode_to_numpy(one, disallowed_special=())
    numpy = time.perf_counter() - begin
    size = sum(len(one.encode()) for one in sample)
    return {"seconds": batch, "tokens": tokens, "numpy_mb_per_second": size / 1e6 / numpy}


def size_of(text: Path) -> float:
    """Megabytes in a folder."""
    return sum(path.stat().st_size for path in text.rglob("wiki_*")) / 1e6


def measure(args: argparse.Namespace, work: Path) -> dict[str, Any]:
    """Alternating rounds on the small text, then each format once on the large one."""
    small = make_text(args.excerpt, work, args.megabytes)
    megabytes = size_of(small)
    rounds: list[dict[str, float]] = []
    numpy: list[float] = []
    peaks: dict[str, list[float]] = {form: [] for form in FORMATS}
    for number in range(args.rounds):
        result = theirs(small, args.workers)
        numpy.append(result["numpy_mb_per_second"])
        row = {"tiktoken": megabytes / result["seconds"]}
        for form in FORMATS:
            result = ours(small, form, args.workers, work)
            row[form] = megabytes / result["seconds"]
            peaks[form].append(result["peak_gb"])
        rounds.append(row)
        print(f"  round {number + 1}: " + ", ".join(f"{k} {v:.1f} MB/s" for k, v in row.items()), flush=True)
    results: dict[str, Any] = {
        "megabytes": round(megabytes, 1),
        "rounds": rounds,
        "mb_per_second": {side: statistics.median(row[side] for row in rounds) for side in rounds[0]},
        "times_faster": {form: statistics.median(row[form] / row["tiktoken"] for row in rounds) for form in FORMATS},
        "tiktoken_encode_to_numpy_one_core_mb_per_second": statistics.median(numpy),
        "peak_gb": {form: max(values) for form, values in peaks.items()},
    }
    if args.large:
        large = make_text(args.excerpt, work, args.large)
        results["large"] = {"megabytes": round(size_of(large), 1)}
        for form in FORMATS:
            result = ours(large, form, args.workers, work)
            results["large"][form] = {
                "mb_per_second": size_of(large) / result["seconds"],
                "peak_gb": result["peak_gb"],
                "written_mb": result["written_mb"],
            }
            print(f"  {args.large} MB, {form}: {results['large'][form]}", flush=True)
    return results


def table(results: dict[str, Any]) -> str:
    """The results as aligned text."""
    lines = [f"{'':<10} {'MB/s':>7} {'ratio':>6} {'peak GB':>8}"]
    lines.append(f"{'tiktoken':<10} {results['mb_per_second']['tiktoken']:7.1f}")
    for form in FORMATS:
        lines.append(
            f"{form:<10} {results['mb_per_second'][form]:7.1f} {results['times_faster'][form]:6.2f} "
            f"{results['peak_gb'][form]:8.2f}"
        )
        if "large" in results:
            large = results["large"][form]
            lines.append(f"{'  large':<10} {large['mb_per_second']:7.1f} {'':6} {large['peak_gb']:8.2f}")
    return "\n".join(lines)


def main(argv: list[str]) -> int:
    if argv[:1] == ["--tiktoken"]:
        print(json.dumps(tiktoken_side(Path(argv[1]), int(argv[2]))))
        return 0
    parser = ProgramParser("benchmarks/preprocess.py", __doc__)
    parser.add_argument("--excerpt", type=Path, default=ROOT / "demo" / "extracted", help="what `make demo` extracts")
    parser.add_argument("--megabytes", type=int, default=50, help="of text in the rounds")
    parser.add_argument("--large", type=int, default=500, help="of text, once in each format; 0: not")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--workers", type=int, default=len(os.sched_getaffinity(0)), help="processes, threads")
    parser.add_argument("--work", type=Path, help="folder where the text is kept for the next run")
    record.add_json_flag(parser)
    args = parser.parse_args(argv)
    if not args.excerpt.is_dir():
        print(f"preprocess: --excerpt {args.excerpt}: no such folder; `make demo` makes it", file=sys.stderr)
        return 2
    with tempfile.TemporaryDirectory() as folder:
        results = measure(args, args.work or Path(folder))
    print(table(results))
    if args.json:
        from tokenizer import Tokenizer

        settings = {"workers": args.workers, "rounds": args.rounds, "native_encoder": Tokenizer.gpt2().is_native}
        record.write(args.json, record.head("preprocess", argv, ["tiktoken"]), settings, results)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
