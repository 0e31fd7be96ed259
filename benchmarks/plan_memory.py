"""The memory that --compile-only plans, beside what each rank of a run really takes.

    python -m benchmarks.plan_memory
    python -m benchmarks.plan_memory --case narrow --updates 1            # a smoke run
    python -m benchmarks.plan_memory --json benchmarks/records/plan_memory_cpu.json
    python -m benchmarks.plan_memory --again benchmarks/records/plan_memory_cpu.json   # after a change of the plan

Each case is a training run on generated samples in as many processes as it says, of one thread each. When the first
call is over the kernel's record of a process's peak is set back, and the peak of the next call counts. Taken off is
what the same program has at its peak with a model of next to nothing in as many processes: interpreter and libraries,
which the plan leaves out. The ratio is planned / measured of what is left, rank by rank; `total` is that with the
program added to both. `build` is the peak until the first call was over, in which the whole model was made. Half's
products are what they are on this CPU, or what POPTORCH_PORTABLE_HALF says.

It needs Linux: /proc/self/clear_refs sets the record back.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shlex
import socket
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any, Mapping, Sequence
from unittest import mock

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks import record  # noqa: E402

MIB = 2**20
NARROW = {"n_embd": 512, "n_head": 8, "n_layer": 8}
# name -> (processes, what the model's configuration has instead of config/config.json's, flags)
CASES: dict[str, tuple[int, dict[str, Any], str]] = {
    "small": (1, {}, "--max-len 128"),
    "small recomputed": (1, {}, "--max-len 128 --recompute-checkpoint-every-layer"),
    "narrow": (1, NARROW, "--max-len 512"),
    "narrow recomputed": (
        1,
        NARROW,
        "--max-len 512 --recompute-checkpoint-every-layer",
    ),
    "narrow serialized": (
        1,
        NARROW,
        "--max-len 256 --enable-sequence-serialized --embedding-serialization-factor 4",
    ),
    "narrow without dropout": (1, NARROW, "--max-len 512 --dropout 0"),
    "narrow, untied": (1, {**NARROW, "tie_word_embeddings": False}, "--max-len 512"),
    "wide": (1, {"n_embd": 1024, "n_head": 16, "n_layer": 8, "vocab_size": 8192}, "--max-len 128 --batch-size 2"),
    "replicas": (2, NARROW, "--max-len 128 --replication-factor 2"),
    "replicas sharded": (
        2,
        NARROW,
        "--max-len 128 --replication-factor 2 --replicated-tensor-sharding",
    ),
    "pipeline": (2, NARROW, "--max-len 512 --layers-per-ipu 0 8 --ipus-per-replica 2 --gradient-accumulation 8"),
    "pipeline, untied": (
        2,
        {**NARROW, "tie_word_embeddings": False},
        "--max-len 512 --layers-per-ipu 0 8 --ipus-per-replica 2 --gradient-accumulation 8",
    ),
    "pipeline, blocks on both": (
        2,
        NARROW,
        "--max-len 512 --layers-per-ipu 3 5 --ipus-per-replica 2 --gradient-accumulation 9",
    ),
    "pipeline, two IPUs each": (2, NARROW, "--max-len 512 --layers-per-ipu 0 3 3 2 --gradient-accumulation 9"),
    "pipeline of four": (4, {}, "--max-len 256 --layers-per-ipu 0 4 4 4 --gradient-accumulation 9"),
    "pipeline of four, recomputed": (
        4,
        {},
        "--max-len 256 --layers-per-ipu 0 4 4 4 --gradient-accumulation 9 --recompute-checkpoint-every-layer",
    ),
    "two pipelines, sharded": (
        4,
        NARROW,
        "--max-len 256 --layers-per-ipu 0 8 --ipus-per-replica 2 --gradient-accumulation 5 --replication-factor 2 "
        "--replicated-tensor-sharding",
    ),
}
ACCUMULATION = 4
AS_ONE = "POPTORCH_PORTABLE_MICRO_BATCHES_AS_ONE"
NOTHING = {"n_embd": 64, "n_head": 1, "vocab_size": 1024}  # a model of next to nothing


def flags_of(config: Path, words: str, updates: int) -> list[str]:
    """The command line of a case."""
    common = f"--config {config} --device-iterations {updates} --num-workers 0 --train-path generated"
    given = shlex.split(f"{common} {words}")
    return given if "--gradient-accumulation" in given else [*given, "--gradient-accumulation", str(ACCUMULATION)]


def write_config(folder: Path, changes: dict[str, Any]) -> Path:
    """A configuration file like GPT-2 small's with these changes."""
    values = json.loads((ROOT / "config" / "config.json").read_text(encoding="utf-8"))
    values.update(changes, real_vocab_size=min(changes.get("vocab_size", values["vocab_size"]), 50257) - 1)
    path = folder / "config.json"
    path.write_text(json.dumps(values), encoding="utf-8")
    return path


def status(key: str) -> int:
    """Bytes of an entry of /proc/self/status."""
    text = Path("/proc/self/status").read_text(encoding="ascii")
    return int(re.search(rf"^{key}:\s+(\d+) kB", text, re.MULTILINE)[1]) * 1024


def work(argv: list[str]) -> dict[str, float]:
    """One process of a case: two calls; its peaks in bytes."""
    import torch

    torch.set_num_threads(1)
    from arguments import parse_train_args
    from training.run import TrainingRun

    run = TrainingRun(parse_train_args(argv))
    batches = iter(run.batches())
    call = next(batches)
    run.compile(call)
    run.executor(**call._asdict())
    build = status("VmHWM")
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    run.executor(**call._asdict())
    return {"build": build, "peak": status("VmHWM")}


def measure(argv: list[str], processes: int, as_one: str) -> list[dict[str, float]]:
    """The peaks of every rank of a run. RuntimeError if one of its processes fails."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = str(listener.getsockname()[1])
    common = {"OMP_NUM_THREADS": "1", "POPTORCH_LOG_LEVEL": "ERR", "POPTORCH_PORTABLE_DEVICE": "cpu"}
    common[AS_ONE] = as_one
    if processes > 1:
        common.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=port, WORLD_SIZE=str(processes))
    words = [sys.executable, "-m", "benchmarks.plan_memory", "--work", json.dumps(argv)]
    started = []
    for rank in range(processes):
        own = {"RANK": str(rank), "LOCAL_RANK": str(rank)} if processes > 1 else {}
        environment = {**os.environ, **common, **own}
        started.append(subprocess.Popen(words, cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True))
    answers = [process.communicate()[0].splitlines() for process in started]
    if any(process.returncode for process in started):
        raise RuntimeError(f"a process of the run failed, see above. HINT: its flags were {shlex.join(argv)}")
    return [json.loads(lines[-1]) for lines in answers]


def planned(argv: list[str], processes: int, as_one: str, in_16_bits: bool) -> list[float]:
    """What the plan says of each rank, the data included, in bytes. `in_16_bits`: the products of half."""
    from arguments import parse_train_args
    from model.layout import Layout
    from training.plan import data_bytes, plan_rows, rank_memory
    from training.plan_request import planned_config
    from training.stage_memory import CPU, CPU_IN_16_BITS

    args = parse_train_args(argv)
    config = planned_config(args)
    layout = Layout(processes, args.replication_factor, args.ipus_per_replica)
    with mock.patch.dict(os.environ, {AS_ONE: as_one}):
        rows = plan_rows(config, args, layout, CPU_IN_16_BITS if in_16_bits else CPU)
    parts = [rank_memory(rows, rank).total + data_bytes(args, layout) for rank in range(layout.ranks_a_replica)]
    return [parts[rank % layout.ranks_a_replica] for rank in range(processes)]


def compare(name: str, updates: int, as_one: str, in_16_bits: bool) -> list[dict[str, Any]]:
    """A row for each rank of a case. `as_one`: as the environment variable has it, empty for the runtime's choice."""
    processes, changes, words = CASES[name]
    with tempfile.TemporaryDirectory() as folder:
        argv = flags_of(write_config(Path(folder), changes), words, updates)
        peaks = measure(argv, processes, as_one)
        layers = changes.get("n_layer", 12) if "--layers-per-ipu" in words else 1
        small = write_config(Path(folder), {**NOTHING, "n_layer": layers})
        programs = measure(flags_of(small, words, updates), processes, as_one)
    rows = []
    for rank, (peak, program) in enumerate(zip(peaks, programs)):
        row = {"case": name, "rank": rank, "measured_mib": round((peak["peak"] - program["peak"]) / MIB)}
        row["program_mib"] = round(program["peak"] / MIB)
        row["build_mib"] = round((peak["build"] - program["build"]) / MIB)
        rows.append(row)
    return with_plan(rows, updates, as_one, in_16_bits)


def with_plan(rows: Sequence[Mapping[str, Any]], updates: int, as_one: str, in_16_bits: bool) -> list[dict[str, Any]]:
    """Rows of measured figures with what the plan says and the quotients."""
    result = []
    for row in rows:
        processes, changes, words = CASES[row["case"]]
        with tempfile.TemporaryDirectory() as folder:
            argv = flags_of(write_config(Path(folder), changes), words, updates)
            plan = planned(argv, processes, as_one, in_16_bits)[row["rank"]] / MIB
        own, program = row["measured_mib"], row["program_mib"]
        result.append(
            {
                **row,
                "planned_mib": round(plan),
                "ratio": round(plan / own, 3),
                "total": round((plan + program) / (own + program), 3),
            }
        )
    return result


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--case", action="append", choices=list(CASES), help="only this one; or several")
    parser.add_argument("--updates", type=int, default=2, help="weight updates of a call")
    parser.add_argument("--as-one", default="", metavar="N", help="micro-batches that run as one; the runtime's choice")
    record.add_json_flag(parser)
    parser.add_argument("--again", metavar="FILE", help="the figures measured there beside the plan of today")
    parser.add_argument("--work", metavar="FLAGS", help=argparse.SUPPRESS)
    args = parser.parse_args(argv)
    if args.work:
        print(json.dumps(work(json.loads(args.work))))
        return 0

    if args.updates < 1:
        parser.error("--updates must be at least 1")
    if not Path("/proc/self/clear_refs").exists():
        parser.error("needs Linux, whose /proc/self/clear_refs sets a process's peak back")
    from training.log.machine import products_in_16_bits

    settings = {"updates": args.updates, "accumulation": ACCUMULATION, "as_one": args.as_one, "cases": CASES}
    settings["in_16_bits"] = products_in_16_bits()
    head = record.head("plan_memory", argv)
    rows: list[dict[str, Any]] = []
    if args.again:
        written = json.loads(Path(args.again).read_text(encoding="utf-8"))
        head = {key: written[key] for key in written if key not in ("settings", "results")}
        settings = written["settings"]
        rows = with_plan(written["results"], settings["updates"], settings["as_one"], settings["in_16_bits"])
        show(rows)
    for name in [] if args.again else args.case or CASES:
        found = compare(name, args.updates, args.as_one, settings["in_16_bits"])
        show(found)
        rows += found
        if args.json:  # each as soon as it is there
            record.write(args.json, head, settings, rows)
    worst = max(rows, key=lambda row: abs(row["ratio"] - 1))
    print(f"farthest from 1: {worst['ratio']:.2f} ({worst['case']}, rank {worst['rank']})")
    if args.again and args.json:
        record.write(args.json, head, settings, rows)
    return 0


def show(rows: Sequence[Mapping[str, Any]]) -> None:
    """A line for each rank."""
    for row in rows:
        figures = f"planned {row['planned_mib']:,} MiB, measured {row['measured_mib']:,} MiB, ratio {row['ratio']:.2f}"
        both = f"with the program's {row['program_mib']:,} MiB {row['total']:.2f}"
        print(f"{row['case']}, rank {row['rank']}: {figures}; {both}", flush=True)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
