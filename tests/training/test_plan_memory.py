"""The plan's memory beside what processes took when they were measured (benchmarks/plan_memory.py)."""

import json
from pathlib import Path

import pytest

from benchmarks import plan_memory

RECORDS = sorted((Path(plan_memory.ROOT) / "benchmarks" / "records").glob("plan_memory*.json"))


@pytest.mark.parametrize("path", RECORDS, ids=lambda path: path.stem)
def test_the_plan_is_within_15_percent_of_every_rank_that_was_measured(path):
    written = json.loads(path.read_text())
    settings = written["settings"]
    for name, case in settings["cases"].items():
        assert plan_memory.CASES[name] == (case[0], *case[1:]), "measured with other flags: measure again"
    rows = plan_memory.with_plan(written["results"], settings["updates"], settings["as_one"], settings["in_16_bits"])
    assert len(rows) >= 2
    found = {f"{row['case']}, rank {row['rank']}": row["ratio"] for row in rows}
    assert {name: ratio for name, ratio in found.items() if abs(ratio - 1) > 0.15} == {}


def test_the_figures_of_a_process_are_read():
    assert 1 << 20 < plan_memory.status("VmRSS") <= plan_memory.status("VmHWM") < 1 << 40


def test_a_command_line_has_what_its_case_asks_for(tmp_path):
    config = plan_memory.write_config(tmp_path, plan_memory.NOTHING)
    assert json.loads(config.read_text())["real_vocab_size"] == 1023
    argv = plan_memory.flags_of(config, "--max-len 8 --gradient-accumulation 9", 2)
    assert argv.count("--gradient-accumulation") == 1 and argv[argv.index("--device-iterations") + 1] == "2"
    assert plan_memory.planned(argv, 1, "", in_16_bits=False)[0] > 0
