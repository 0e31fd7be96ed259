"""benchmarks.yml: every entry there, with the flags of the run scripts, and recorded figures that belong to entries."""

import json
import subprocess
from pathlib import Path

import pytest
from examples_utils.benchmark import metrics, spec, suite, variants
from test_run_scripts import INFERENCE, TRAINING

import arguments
from benchmarks import compare, untrained_checkpoint
from model.checkpoint import load_pretrained

ROOT = Path(__file__).resolve().parent.parent
ENTRIES = {name: entry for name, entry in spec.load([ROOT / "benchmarks.yml"]).items() if not entry.is_template}

# entry, run script, and what is different from it
PRETRAINING = [
    ("small_train_gen_pod16", "small", {}),
    ("small_train_gen_pod64", "small", {"replication_factor": 16, "gradient_accumulation": 512}),
    ("medium_train_gen_pod16", "medium", {}),
    ("medium_train_gen_pod64", "medium", {"replication_factor": 8, "gradient_accumulation": 1024}),
    ("large_sl512_train_gen_pod16", "large_512", {}),
    ("large_sl512_train_gen_pod64", "large_512", {"replication_factor": 8, "gradient_accumulation": 1024}),
    ("large_train_gen_pod16", "large_1024", {}),
]
INFERENCE_LAYERS = {
    "small": ("gpt2", [2, 10], 8),
    "medium": ("gpt2-medium", [1, 7, 8, 8], 4),
    "large": ("gpt2-large", [1, 5, 5, 5, 5, 5, 5, 5], 2),
    "xlarge": ("gpt2-xl", [1, 6, 6, 7, 7, 7, 7, 7], 2),
}


def flags(words, **how):
    return {name: value for name, value in vars(arguments.parse_train_args(words, **how)).items() if name != "notes"}


def words(name):
    """The flags of an entry, behind `python3 PROGRAM`."""
    return ENTRIES["pytorch_gpt2_" + name].words[2:]


@pytest.mark.parametrize(
    "name, script, changes", PRETRAINING, ids=lambda value: value if isinstance(value, str) else ""
)
def test_training_entries_are_the_run_scripts_with_one_epoch(name, script, changes):
    expected = flags([word.strip("'") for word in TRAINING[f"pretraining_{script}"].split()])
    assert flags(words(name)) == {**expected, "epochs": 1, **changes}


@pytest.mark.parametrize("size", INFERENCE_LAYERS)
def test_forward_only_entries(size):
    model, layers, replicas = INFERENCE_LAYERS[size]
    found = flags(words(f"{size}_infer_gen_pod16"), trains=False)
    expected = flags([word.strip("'") for word in INFERENCE.split()], trains=False)
    placed = {
        "layers_per_ipu": layers,
        "ipus_per_replica": len(layers),
        "matmul_proportion": [0.2] * len(layers),
        "replication_factor": replicas,
    }
    assert found == {**expected, "model": model, "config": found["config"], **placed}


@pytest.mark.parametrize("name", sorted(ENTRIES))
def test_every_entry_is_a_program_here_with_flags_that_it_has(name):
    entry = ENTRIES[name]
    program = entry.words[1]
    if program.startswith("benchmarks/"):
        assert (ROOT / program).is_file()
        return
    groups = arguments.GENERATE_GROUPS if program == "text_generate_gpt2.py" else arguments.TRAIN_GROUPS
    parser = arguments.Parser(program, "", groups)
    problems = parser.read(entry.words[2:])
    assert not problems.lines
    assert entry.description and entry.data and entry.output
    assert entry.requirements.is_file() and entry.pre_run[0] == ["make"]


@pytest.mark.parametrize("name", [n for n in sorted(ENTRIES) if ENTRIES[n].words[1] == "train_gpt2.py"])
def test_what_trains_is_accepted(name):
    arguments.parse_train_args(ENTRIES[name].words[2:])


def test_the_log_line_gives_the_figures():
    log = "".join(
        f"step {i} of epoch 0, loss: {9 - i}.0000, acc: 0.{i}000, lr: 1e-05, throughput: {10 * i}.50 samples/sec, "
        "1,000 tokens/sec, 41.0% of peak, 0:00:00 left\n"
        for i in (1, 2, 3)
    )
    log += "validation after step 3, held-out loss: 1.2345\n"
    values, problems = metrics.collect(ENTRIES["pytorch_gpt2_small_train_gen_cpu_2core"].data, {}, [log, ""])
    assert values == {"throughput": 25.5, "loss": 6.0, "accuracy": 0.3} and not problems


def test_the_other_programs_lines_give_the_figures():
    step = "Throughput: {} seq/s, Latency: {} s\n"
    log = step.format(1.0, 4.0) + step.format(2.5, 0.5) + step.format(3.5, 1.5)
    data = ENTRIES["pytorch_gpt2_small_infer_gen_cpu_2core"].data
    assert metrics.collect(data, {}, [log, ""]) == ({"throughput": 3.0, "latency": 1.0}, [])
    data = ENTRIES["pytorch_gpt2_small_text_gen_pod16"].data
    assert metrics.collect(data, {}, ["latency avg: 12.5 ms\n", ""]) == ({"latency": 12.5}, [])
    from benchmarks import train_step

    result = {
        "dropout": 0.0,
        "times_faster": 1.25,
        "tokens_per_second": {"ours": 1234.5, "transformers": 987.6},
        "share_of_ceiling": {"ours": 0.7, "transformers": 0.5},
        "peak_memory_gb": {"ours": 3.5, "transformers": 4.0},
    }
    data = ENTRIES["pytorch_gpt2_small_vs_transformers_cpu_2core"].data
    found = metrics.collect(data, {}, [train_step.table([result]), ""])
    assert found == ({"ours": 1234.5, "transformers": 987.6, "ratio": 1.25}, [])


def test_bench_compare_runs_every_entry_of_a_cpu():
    done = subprocess.run(["make", "-n", "bench-compare"], cwd=str(ROOT), capture_output=True, text=True, check=True)
    words = done.stdout.split(" --benchmark ")[1].split("--log-dir")[0].replace("\\", " ").split()
    assert sorted(words) == sorted(name for name in ENTRIES if name.endswith("_cpu_2core"))


def test_all_of_them_can_be_prepared(tmp_path):
    chosen = spec.select(ENTRIES, [], False)
    prepared = suite.prepare(chosen, suite.Settings(tmp_path, compile_only=True), {})
    assert len(prepared) == len(ENTRIES) and all(variant.words[-1] == "--compile-only" for variant in prepared)


def test_untrained_weights_are_made_once_and_can_be_loaded(tmp_path):
    folder = tmp_path / "checkpoint"
    assert untrained_checkpoint.main(["--model", "gpt2-tiny", str(folder)]) == 0
    written = (folder / "model.safetensors").stat().st_mtime_ns
    assert untrained_checkpoint.main(["--model", "gpt2-tiny", str(folder)]) == 0
    assert (folder / "model.safetensors").stat().st_mtime_ns == written
    assert load_pretrained(str(folder)).config.real_vocab_size == 50257


# ---- Records --------------------------------------------------------------------


def test_records_belong_to_entries_and_say_where_they_are_from():
    records = json.loads(compare.RECORD.read_text())
    assert records
    for record in records:
        known = {metric.name for metric in ENTRIES[record["variant"]].data}
        assert set(record["metrics"]) <= known and record["hardware"] and record["commit"] and record["date"] >= "2026"
    recorded = {record["variant"] for record in records}
    assert not [name for name in recorded if "pod" in name or "h200" in name], (
        "benchmarks.yml says that none is recorded"
    )


def results(folder, profile=False, **metrics_by_variant):
    document = {
        "date": "2030-01-02T03:04:05Z",
        "commit": "c" * 40,
        "machine": {"hardware": "here"},
        "versions": {},
        "arguments": {"profile": profile},
        "benchmarks": [
            {"variant": variant, "status": "success" if found else "failure", "metrics": found}
            for variant, found in metrics_by_variant.items()
        ],
    }
    path = folder / "benchmark_results.json"
    path.write_text(json.dumps(document))
    return path


@pytest.fixture
def record(tmp_path, monkeypatch):
    monkeypatch.setattr(compare, "RECORD", tmp_path / "records" / "benchmarks_yml.json")
    monkeypatch.setattr(compare, "RECORDS", tmp_path / "records")
    (tmp_path / "records").mkdir()
    old = {"commit": "a" * 40, "variant": "x", "versions": {}}
    rows = [
        {**old, "date": "2029-01-01", "hardware": "here", "metrics": {"throughput": 4.0}},
        {**old, "date": "2028-01-01", "hardware": "here", "metrics": {"throughput": 1.0}},
        {**old, "date": "2029-12-01", "hardware": "elsewhere", "metrics": {"throughput": 2.0}},
    ]
    compare.RECORD.write_text(json.dumps(rows))
    other = {"date": "2029-02-02", "hardware": "there", "results": [{"dropout": 0.1, "times_faster": 1.25}]}
    (tmp_path / "records" / "other_cpu.json").write_text(json.dumps(other))
    return tmp_path


def test_a_result_beside_its_record_and_the_alternatives(record, capsys):
    assert compare.main([str(results(record, x={"throughput": 6.0}, y={"throughput": 1.0}, z={}))]) == 0
    lines = [" ".join(line.split()) for line in capsys.readouterr().out.splitlines()]
    assert lines[1:] == [
        "x",
        "recorded 2029-01-01, this hardware, commit aaaaaaaaaaaa",
        "throughput 4 6 1.50 x",
        "y",
        "throughput no record 1",
        "beside the alternatives, measured in one run with them (above 1 ours is faster):",
        "other_cpu dropout 0.1 1.25 x 2029-02-02, there",
    ]


def test_figures_by_other_rules_are_told(record, capsys):
    rows = json.loads(compare.RECORD.read_text())
    for row in rows:
        row["rules"] = {"throughput": "mean after the first 1"}
    compare.RECORD.write_text(json.dumps(rows))
    path = results(record, x={"throughput": 6.0})
    document = json.loads(path.read_text())
    document["benchmarks"][0]["rules"] = {"throughput": "mean without the 1 smallest"}
    path.write_text(json.dumps(document))
    assert compare.main([str(path), "--record"]) == 0
    told = "by other rules: recorded mean after the first 1, now mean without the 1 smallest"
    assert told in capsys.readouterr().out
    assert json.loads(compare.RECORD.read_text())[-1]["rules"] == {"throughput": "mean without the 1 smallest"}


def test_recording(record):
    assert compare.main([str(results(record, x={"throughput": 6.0}, z={})), "--record"]) == 0
    rows = json.loads(compare.RECORD.read_text())
    assert len(rows) == 4 and rows[-1] == {
        "date": "2030-01-02", "hardware": "here", "commit": "c" * 40, "versions": {}, "variant": "x",
        "metrics": {"throughput": 6.0},
    }  # fmt: skip


def test_what_cannot_be_compared(record, capsys):
    assert compare.main([str(record / "none.json")]) == 2
    assert compare.main([str(results(record, profile=True, x={"throughput": 6.0}))]) == 2
    (record / "x.json").write_text("{}")
    assert compare.main([str(record / "x.json")]) == 2
    err = capsys.readouterr().err
    assert "No such file" in err and "run it without --profile" in err and "'arguments' is missing" in err
    assert compare.main([str(results(record, z={}))]) == 1


def test_names_are_unique_and_safe():
    names = [
        variants.variant_name(name, parameters) for name, entry in ENTRIES.items() for parameters in entry.parameters
    ]
    assert len(set(names)) == len(names)
