"""TFRecord files written and read by data/ and by the tfrecord package, on one core, from and to the page cache.

    python -m benchmarks.tfrecord [--samples N] [--rounds R] [--json FILE]

A sample is a record of 1,025 ids. Both sides take turns; reported are medians over the rounds and the median of the
ratios within a round. Ours verifies both checksums of a record and hands out int32 rows of a batch; the package
verifies none and hands out an int64 array a record. `random` is a permutation of the
samples, which the package cannot read.
"""

from __future__ import annotations

import argparse
import importlib.util
import io
import os
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, Callable

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from corpora.program import ProgramParser  # noqa: E402

os.environ.setdefault("OMP_NUM_THREADS", "1")

from benchmarks import record  # noqa: E402

if TYPE_CHECKING:
    import numpy as np

T = 1024
VOCABULARY = 50257
BATCH = 512  # samples asked for at once


def make_corpus(path: Path, samples: int) -> None:
    """Articles of one window each, whose ids have frequencies of 1 / rank as text has: about 2.2 bytes an id."""
    import numpy as np  # here and below: --help need not wait for it

    from data.articles.pickle_file import write_articles

    rng = np.random.default_rng(0)
    with path.open("wb") as file:
        ranks = (np.floor(VOCABULARY ** rng.random(T + 1)).astype(np.int64) - 1 for _ in range(samples))
        write_articles(file, ranks, VOCABULARY - 1)


def sides(folder: Path, samples: int) -> dict[str, dict[str, Callable[[], Any]]]:
    """What is measured, and for each the calls that do it for all samples."""
    import numpy as np
    from tfrecord.reader import tfrecord_loader
    from tfrecord.writer import TFRecordWriter

    from data.articles.corpus import open_corpus
    from data.tfrecord.files import TFRecordFiles
    from data.write_into_tfrecord import write_corpus

    source, ours, theirs = folder / "corpus.pkl", folder / "ours", folder / "theirs.tfrecord"
    make_corpus(source, samples)
    corpus = open_corpus(source, VOCABULARY)

    def write_ours() -> None:
        write_corpus(source, ours, T + 1, T, 1, io.StringIO())

    def write_theirs() -> None:
        writer = TFRecordWriter(str(theirs))
        for first in range(0, samples * (T + 1), T + 1):
            writer.write({"input_ids": (corpus.tokens[first : first + T + 1], "int")})
        writer.close()
        os.sync()  # ours does as well, for its files

    write_ours()
    write_theirs()
    files = TFRecordFiles(sorted(ours.glob("*.tfrecord")), T, VOCABULARY)
    assert next(ours.glob("*.tfrecord")).read_bytes() == theirs.read_bytes(), "the two sides write the same file"
    rows = np.empty((BATCH, T + 1), np.int32)
    orders = {"sequential": np.arange(samples), "random": np.random.default_rng(1).permutation(samples)}

    def read_ours(order: np.ndarray) -> None:
        for first in range(0, samples, BATCH):
            batch = order[first : first + BATCH]
            files.read(batch, rows[: len(batch)])

    def read_theirs() -> None:
        for _ in tfrecord_loader(str(theirs), None, {"input_ids": "int"}):
            pass

    return {
        "write": {"ours": write_ours, "tfrecord": write_theirs},
        "read sequential": {"ours": lambda: read_ours(orders["sequential"]), "tfrecord": read_theirs},
        "read random": {"ours": lambda: read_ours(orders["random"])},
    }


def measure(args: argparse.Namespace) -> dict[str, dict[str, Any]]:
    """Samples a second of each side, and the ratio of the first to the second."""
    results: dict[str, dict[str, Any]] = {}
    with tempfile.TemporaryDirectory() as folder:
        for what, calls in sides(Path(folder), args.samples).items():
            rounds: list[dict[str, float]] = []
            for index in range(args.rounds):
                row: dict[str, float] = {}
                for side in list(calls) if index % 2 == 0 else list(calls)[::-1]:
                    begin = time.perf_counter()
                    calls[side]()
                    row[side] = args.samples / (time.perf_counter() - begin)
                rounds.append(row)
            results[what] = {
                "samples_per_second": {side: statistics.median(row[side] for row in rounds) for side in calls},
                "rounds": rounds,
            }
            if len(calls) == 2:
                results[what]["times_faster"] = statistics.median(row["ours"] / row["tfrecord"] for row in rounds)
    return results


def table(results: dict[str, dict[str, Any]]) -> str:
    """The results as aligned text."""
    lines = [f"{'':<16} {'ours':>12} {'tfrecord':>12} {'ratio':>6}   samples of {T + 1:,} ids a second"]
    for what, result in results.items():
        rates = result["samples_per_second"]
        theirs = f"{rates['tfrecord']:12,.0f} {result['times_faster']:6.1f}" if "tfrecord" in rates else ""
        lines.append(f"{what:<16} {rates['ours']:12,.0f} {theirs}")
    return "\n".join(lines)


def main(argv: list[str]) -> int:
    parser = ProgramParser("benchmarks/tfrecord.py", __doc__)
    parser.add_argument("--samples", type=int, default=16_384, help="records in the file (default: 16384, 38 MB)")
    parser.add_argument("--rounds", type=int, default=5, help="measurements of each side (default: 5)")
    record.add_json_flag(parser)
    args = parser.parse_args(argv)
    if args.samples < 1 or args.rounds < 1:
        parser.error("--samples and --rounds must be at least 1")
    missing = [name for name in ("torch", "tfrecord") if importlib.util.find_spec(name) is None]
    if missing:
        print(f"tfrecord: {' and '.join(missing)} not installed. Run `make setup-dev` first.", file=sys.stderr)
        return 2
    results = measure(args)
    print(table(results))
    if args.json:
        head = record.head("tfrecord", argv, ["tfrecord"])
        record.write(args.json, head, {"samples": args.samples, "rounds": args.rounds}, results)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
