"""--profile: the plan's numbers beside what is measured, or in place of it, and what each program leaves."""

import dataclasses
import json
import re
import shlex

import pytest
import tiny_checkpoint
from tiny_run import NO_DROPOUT, ROOT, flags, run_here, write_config, write_corpus

import inference_gpt2
import text_generate_gpt2
from arguments import parse_train_args
from model.balance import ipu_operations
from model.config import GPT2Config
from model.layout import Layout
from model.pipeline import bubble, pipeline_stages
from tasks import evaluation
from training import estimate
from training.as_one import micro_batches_as_one
from training.stage_memory import CPU, GPU, IPU, stage_memory

LINE = "--model gpt2 --max-len 1024 --layers-per-ipu 0 4 4 4 --gradient-accumulation 64 --replication-factor 4"


def estimated(line, device):
    args = parse_train_args(line.split())
    config = dataclasses.replace(GPT2Config.from_json(args.config), n_positions=args.max_len)
    layout = Layout(1, args.replication_factor, args.ipus_per_replica)
    return args, config, layout, estimate.estimate(config, args, layout, device)


@pytest.mark.parametrize("device", [CPU, IPU])
@pytest.mark.parametrize("more", ["", " --recompute-checkpoint-every-layer True"])
def test_it_is_the_plan(device, more):
    args, config, layout, found = estimated(LINE + more, device)
    stages = pipeline_stages(args.layers_per_ipu)
    assert [row["stage"] for row in found["stages"]] == [stage.index for stage in stages]
    assert sum(row["work"] for row in found["stages"]) == pytest.approx(1)
    as_one = micro_batches_as_one(config, args, layout, device)
    assert as_one == (8 if more and device is CPU else 1)  # of 4 x 64, some 100 MiB each
    for row, stage in zip(found["stages"], stages):
        memory = stage_memory(stage, stages, config, args, layout, device, as_one)
        # as the plan's table has it: without what is off chip
        assert sum(row["memory"].values()) == memory.total - (memory.optimizer if device is IPU else 0)
        assert (row["memory"]["recomputed"] > 0) == (bool(more) and bool(stage.layers))
    told = [text for text in found["assumptions"] if "off chip and not in the totals" in text]
    size = sum(stage_memory(stage, stages, config, args, layout, device).optimizer for stage in stages) / 2**20
    assert len(told) == (device is IPU) and all(f"state, {size:,.0f} MiB of a replica" in text for text in told)
    assert found.get("bubble") == (bubble(5, 64) if device is IPU else None)
    rows, events = found["timeline"]["rows"], found["timeline"]["events"]
    assert [row["name"] for row in rows] == ["IPU 0", "IPU 1", "IPU 2", "IPU 3"]
    assert {event["row"] for event in events} == {0, 1, 2, 3}
    passes = "8 passes of 8 micro-batches" if as_one > 1 else "24 of its 64 micro-batches"
    assert passes in found["timeline"]["of"] and len(found["assumptions"]) >= 2
    assert any("8 micro-batches run as one" in text for text in found["assumptions"]) == (as_one > 1)


@pytest.mark.parametrize("device", [IPU, GPU])
def test_an_optimizer_elsewhere_is_in_no_total_of_a_plan(device):
    for more, there in (("--optimizer-state-offchip False", True), ("--optimizer-state-offchip True", False)):
        *_, found = estimated(f"{LINE} --compile-only {more}", device)
        assert all(("optimizer" in row["memory"]) == there for row in found["stages"])
        assert any("not in the totals" in text for text in found["assumptions"]) != there


def test_the_layouts_assumed_are_those_of_the_scripts():
    for name, _, layers, replicas, micro_batches, script in estimate.PUBLISHED:
        text = (ROOT / script).read_text(encoding="utf-8").replace("\\\n", " ")
        words = shlex.split(text[text.index("train_gpt2.py") :], comments=True)[1:-1]
        args = parse_train_args(words)
        assert args.model == name and args.max_len == estimate.PUBLISHED_LENGTH
        assert (args.layers_per_ipu, args.replication_factor) == (layers, replicas)
        assert args.gradient_accumulation == micro_batches
        assert args.recompute_checkpoint_layers == list(range(sum(layers)))


def test_the_plan_of_the_published_run_is_as_fast_as_its_bound():
    line = LINE.replace("64", "2048") + " --recompute-checkpoint-every-layer True"
    args, config, _, found = estimated(line, IPU)
    small, medium, mine = found["figures"]
    assert (small["published"], medium["published"]) == (261.3, 101.8)
    assert mine["estimated"] == small["estimated"]
    # 4 replicas, 250 TFLOP/s, the operations of a sample on the slowest IPU, and (5 - 1) / (2048 + 5 - 1) lost
    slowest = max(ipu_operations(config, 1024, [0, 4, 4, 4], range(12))) * 1024
    assert mine["estimated"] == pytest.approx(4 * 250e12 / slowest * 2048 / 2052)
    assert small["published"] < small["estimated"] and medium["published"] < medium["estimated"]
    assert "run/pretraining_small.sh, 0 4 4 4 on 4 replicas" in small["note"]
    low, high = re.match(r"([\d,.]+) to ([\d,.]+) if", mine["note"]).groups()
    assert 261.3 == pytest.approx(float(high), rel=1e-3) or 261.3 == pytest.approx(float(low), rel=1e-3)


@pytest.fixture
def folder(tmp_path):
    write_config(tmp_path, **NO_DROPOUT)
    write_corpus(tmp_path / "corpus.pkl", articles=24, length=40)
    return tmp_path


PIPELINE = {"layers_per_ipu": "0 2", "gradient_accumulation": 5, "device_iterations": 1}


def record(folder):
    found = json.loads((folder / "report.json").read_text(encoding="utf-8"))
    text = (folder / "report.html").read_text(encoding="utf-8")
    inside = re.search(r'<script type="application/json" id="report">(.*?)</script>', text, re.DOTALL).group(1)
    assert json.loads(inside) == found
    return found, text


def test_a_run_has_its_plan_beside_what_was_measured(folder):
    done = run_here(flags(folder, profile=folder, training_steps=3, **PIPELINE))
    assert done.status == 0, done.err
    profile = folder / "train_gpt2_profile"
    assert {path.name for path in profile.iterdir()} == {"estimate.json", "training"}
    assert json.loads((profile / "estimate.json").read_text())["kind"] == "training"  # not of the validation
    found, text = record(profile / "training")
    rows = {row["what"]: row for row in found["comparison"] if row["by"] == "program"}
    for stage in range(3):
        work = rows[f"stage {stage}: share of the work"]
        assert 0 <= work["estimated"] <= 1 and 0 < work["measured"] < 1
    blocks = rows["stage 1: optimizer"]  # two moments in half a parameter and what the program keeps beside
    assert blocks["measured"] == blocks["estimated"]
    assert "What the program&#x27;s estimate assumes" in text or "What the program's estimate assumes" in text
    assert "POD16" not in text  # this is no IPU


def test_a_plan_of_ipus_is_drawn_beside_published_figures(folder):
    asked = {"compile_only": True, "plan_device": "ipu", "profile": folder / "x_profile"}
    done = run_here(flags(folder, **asked, **PIPELINE))
    assert done.status == 0, done.err
    assert "memory in MiB of each IPU" in done.out and f"poptorch: report in {folder / 'x_profile'}" in done.err
    found, text = record(folder / "x_profile" / "training")
    assert found["ranks"] == [] and [row["name"] for row in found["estimate"]["timeline"]["rows"]] == ["IPU 0", "IPU 1"]
    assert {event["kind"] for event in found["estimate"]["timeline"]["events"]} == {"forward", "backward", "waiting"}
    assert "Compiled, not run" in text and "261.3" in text and "run/pretraining_medium.sh" in text


def test_a_folder_that_cannot_be_written_is_one_message(folder):
    (folder / "x_profile" / "estimate.json").mkdir(parents=True)
    done = run_here(flags(folder, profile=folder / "x_profile", **PIPELINE))
    assert done.status == 2 and "Traceback" not in done.err
    assert f"--profile {folder / 'x_profile'}: cannot be written (Is a directory); name another folder" in done.err


def test_the_forward_program_leaves_one(folder, capsys, monkeypatch):
    monkeypatch.chdir(ROOT)
    words = f"--model gpt2-tiny --max-len 16 --device-iterations 2 --batch-size 3 --profile {folder}"
    assert inference_gpt2.main(words.split()) == 0
    found, text = record(folder / "inference_gpt2_profile" / "inference")
    assert found["kind"] == "inference" and "Inference on" in text
    assert inference_gpt2.main([*words.split(), "--compile-only"]) == 0
    found, text = record(folder / "inference_gpt2_profile" / "inference_1")
    assert "Compiled, not run" in text
    capsys.readouterr()


def test_evaluation_and_generation_leave_one(folder, capsys):
    tiny_checkpoint.write(folder)
    words = ["--pretrained-checkpoint", str(folder / "checkpoint"), "--data-dir", str(folder / "data")]
    words += ["--protocols", "token", "--profile", str(folder)]
    assert evaluation.main("tasks/evaluate_wiki.py", "WIKITEXT103", words) == 0
    found, _ = record(folder / "evaluate_wiki_profile" / "inference")
    assert found["kind"] == "inference" and found["ranks"][0]["memory"]["stages"][0]["weights"] > 0
    words = ["--model-name-or-path", str(folder / "checkpoint"), "--prompt", "the river", "--output-len", "5"]
    assert text_generate_gpt2.main([*words, "--input-len", "8", "--profile", str(folder)]) == 0
    found, _ = record(folder / "text_generate_gpt2_profile" / "inference")
    assert sum(row["buffers"] for row in found["ranks"][0]["memory"]["stages"]) > 0  # keys and values
    assert capsys.readouterr().err.count("poptorch: report in ") == 2
