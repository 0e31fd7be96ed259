"""The plan of --compile-only: the table, the bubble, and machines that are not here."""

import dataclasses
import re

import pytest
from tiny_run import flags, run_here, write_config

from arguments import parse_train_args
from model.config import GPT2Config, parameter_count
from model.layout import Layout
from model.pipeline import bubble
from training.log import machine
from training.plan import data_bytes, plan_lines, plan_rows, rank_memory
from training.plan_request import planned_layout
from training.stage_memory import CPU, CPU_BY_TORCH, CPU_IN_16_BITS, GPU, IPU

LINE = "--model gpt2 --max-len 1024 --layers-per-ipu 0 4 4 4 --gradient-accumulation 9 --device-iterations 2"


def planned(layout, device, line=LINE):
    """Arguments, configuration and lines."""
    replicas = f"--replication-factor {layout.replicas}"
    args = parse_train_args([*line.split(), *replicas.split()])
    config = dataclasses.replace(GPT2Config.from_json(args.config), n_positions=args.max_len)
    return args, config, plan_lines(config, args, layout, device)


def rows_of(lines):
    """The cells of the table, head included."""
    start = next(at for at, line in enumerate(lines) if line.lstrip().startswith("rank"))
    end = next(at for at, line in enumerate(lines) if line.startswith("memory in MiB"))
    return [re.split(r"\s{2,}", line.strip()) for line in lines[start:end]]


def number(cell):
    return float(cell.replace(",", "").rstrip("%"))


def test_a_process_an_ipu():
    args, config, lines = planned(Layout(8, 2, 4), CPU)
    head, *rows = rows_of(lines)
    assert head == "rank IPU stage layers parameters weights gradients optimizer".split() + [
        "in flight",
        "working",
        "total",
        "work",
    ]
    assert [row[:4] for row in rows] == [
        ["0", "0", "0+4", "tokens, head"],
        ["1", "1", "1", "positions, 0-3"],
        ["2", "2", "2", "4-7"],
        ["3", "3", "3", "8-11"],
    ]
    assert sum(number(row[4]) for row in rows) == parameter_count(config)
    assert all(abs(sum(map(number, row[5:10])) - number(row[10])) <= 3 for row in rows), "kinds add up"
    assert sum(number(row[-1]) for row in rows) == pytest.approx(100, abs=0.2)
    assert "8 processes: rank 4 r + i holds of replica r what rank i holds of the first" in lines
    assert lines[-2].startswith(f"bubble: {bubble(4, 9):.2%} = (4 - 1) / (9 + 4 - 1): 9 micro-batches through 4 ranks")
    # a token's forward pass: 77.2 million operations of the head, 12 x 17.3 million of the blocks
    assert lines[-1].startswith(
        "slowest: rank 0 with 27.1% of the work, evenly it were 25.0%; a replica is at best 2.84"
    )


def test_two_ipus_a_process_have_a_sum():
    args, config, lines = planned(Layout(2, 1, 4), CPU)
    _, *rows = rows_of(lines)
    assert [row[:2] for row in rows] == [["0", "0"], ["0", "1"], ["0", "all"], ["1", "2"], ["1", "3"], ["1", "all"]]
    for at in (4, 5, 6, 7, 8):  # "all" has no cells for stages and layers
        assert number(rows[2][at - 2]) == pytest.approx(number(rows[0][at]) + number(rows[1][at]), abs=1)
    assert number(rows[2][7]) == max(number(rows[0][9]), number(rows[1][9])), "one of its stages works at a time"
    assert "(2 - 1) / (9 + 2 - 1)" in lines[-2] and "at best" in lines[-1]


def test_one_process_computes_in_turn():
    _, _, lines = planned(Layout(1, 4, 4), CPU)
    assert lines[-1].startswith("bubble: none, the stages of a replica are computed in turn; by a process an IPU, 4 a")
    _, _, lines = planned(Layout(2, 4, 4), CPU)
    assert "2 processes: each holds 2 whole replicas" in lines
    _, _, lines = planned(Layout(1, 1, 1), CPU, "--model gpt2")
    assert lines[-1] == "bubble: none, the stages of a replica are computed in turn"


def test_the_pipeline_of_ipus_has_a_step_a_stage():
    _, _, lines = planned(Layout(1, 1, 4), IPU)
    _, *rows = rows_of(lines)
    assert len(rows) == 4, "each IPU has a memory of its own"
    on_chip = [sum(map(number, row[5:7])) + sum(map(number, row[8:10])) for row in rows]
    assert on_chip == pytest.approx([number(row[10]) for row in rows], abs=2), "the optimizer's state is off chip"
    assert "optimizer off chip, not in the total" in "\n".join(lines)
    assert "(5 - 1) / (9 + 5 - 1): 9 micro-batches through 5 stages" in lines[-2]
    _, _, lines = planned(Layout(1, 1, 4), IPU, LINE + " --optimizer-state-offchip False")
    _, *rows = rows_of(lines)
    assert all(abs(sum(map(number, row[5:10])) - number(row[10])) <= 3 for row in rows)


def test_a_thousand_gpus():
    layout = Layout(1024, 16, 64)
    args = parse_train_args("--max-len 1024 --replication-factor 16 --gradient-accumulation 512".split())
    args.layers_per_ipu, args.ipus_per_replica = [0] + [1] * 33 + [2] * 30, 64
    config = GPT2Config(n_positions=1024, n_layer=93, n_embd=12288, n_head=96)
    lines = plan_lines(config, args, layout, GPU)
    rows = rows_of(lines)[1:]
    assert len(rows) == 64 and rows[63][:4] == ["63", "63", "63", "91-92"]
    assert "1,024 processes: rank 64 r + i holds of replica r what rank i holds of the first" in lines


def test_what_ranks_hold_adds_up_to_what_one_process_holds():
    args, config, _ = planned(Layout(1, 1, 4), CPU)
    (alone,) = (rank_memory(plan_rows(config, args, Layout(1, 1, 4), CPU), 0),)
    ranks = [rank_memory(plan_rows(config, args, Layout(4, 1, 4), CPU), rank) for rank in range(4)]
    for kind in ("weights", "optimizer"):
        assert sum(getattr(memory, kind) for memory in ranks) == getattr(alone, kind)
    assert sum(memory.activations for memory in ranks) > alone.activations, "several micro-batches are in flight"
    assert data_bytes(args, Layout(4, 1, 4)) == 2 * 9 * 1024 * 8


def test_the_program_shows_the_plan_first_and_then_checks_the_rest(tmp_path):
    write_config(tmp_path)
    pipeline = {"layers_per_ipu": "auto", "ipus_per_replica": 2, "gradient_accumulation": 9}
    done = run_here(flags(tmp_path, compile_only=True, **pipeline))
    assert done.status == 0, done.err
    lines = done.out.splitlines()
    table, traced = (
        next(at for at, line in enumerate(lines) if line.startswith(word)) for word in ("rank", "token embedding -->")
    )
    assert table < traced and "calls in all" in lines[-1]
    assert any(line.startswith("--layers-per-ipu auto: ") for line in lines)


def test_machines_that_are_not_here_are_planned_and_nothing_else(tmp_path):
    write_config(tmp_path)
    asked = dict(compile_only=True, replication_factor=512, layers_per_ipu="0 2", gradient_accumulation=5)
    done = run_here(flags(tmp_path, plan_processes=1024, **asked))
    assert done.status == 0, done.err
    assert "1,024 processes: rank 2 r + i" in done.out and "calls in all" not in done.out
    done = run_here(flags(tmp_path, plan_device="ipu", **asked))
    assert done.status == 0 and "memory in MiB of each IPU" in done.out, done.err
    done = run_here(flags(tmp_path, plan_processes=3, **asked))
    assert done.status == 2 and "3 processes cannot share 512 replicas of 2 IPUs; start 1, 2, 4, 8, " in done.err


@pytest.mark.parametrize(
    "asked, flags, device",
    [
        ("float32", "avx512_bf16", CPU),
        ("bfloat16", "", CPU_BY_TORCH),
        ("", "fpu avx512_bf16 vme", CPU_IN_16_BITS),
        ("bfloat16", "avx512_bf16", CPU_IN_16_BITS),
        ("float16", "avx512_bf16 avx512_fp16", CPU_BY_TORCH),
        ("", "avx512_bf16 amx_bf16", CPU_BY_TORCH),
        ("", "avx2 avx_ne_convert", CPU_BY_TORCH),
        ("", "fpu avx2", CPU),
    ],
)
def test_a_cpu_is_planned_for_with_the_products_that_it_has(asked, flags, device, monkeypatch):
    monkeypatch.setenv("POPTORCH_PORTABLE_HALF", asked)
    monkeypatch.setenv("POPTORCH_PORTABLE_DEVICE", "cpu")
    monkeypatch.setattr(machine, "_flags", lambda: set(flags.split()))
    args = parse_train_args([*LINE.split(), "--compile-only", "--plan-processes", "1", "--plan-device", "cpu"])
    assert planned_layout(args)[1] == device
