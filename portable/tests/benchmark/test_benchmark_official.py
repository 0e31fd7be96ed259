"""Spec files as Graphcore's runner takes them, with the figures that it gives."""

from __future__ import annotations

import logging
import os
import re
import shutil
from pathlib import Path

import pytest
from benchmark_session import Runner, program

from examples_utils.benchmark import launchers, spec, suite
from examples_utils.benchmark.entry import application_folder
from examples_utils.benchmark.expressions import Expression
from examples_utils.benchmark.metrics import Metric, collect, rules
from examples_utils.benchmark.tracking import without_wandb
from examples_utils.benchmark.variants import combinations, variant_name

EVERY_CONSTRUCT = Path(__file__).with_name("every_construct.yml")
PRINTING = """
import sys
print("words", sys.argv[1:])
for value in (30, 5, 10, 20):
    print(f"throughput: {value} samples/sec")
    print(f"latency: {value} ms, loss: {value}.5,")
print("throughput: 1000 samples/sec in the middle of a line", "precision: float16", "96 steps in all")
"""


@pytest.fixture
def runner(tmp_path):
    made = Runner(tmp_path)
    made.script(PRINTING)
    return made


@pytest.fixture
def application(runner, monkeypatch):
    """A folder with the spec of every construct, its program, and a mpirun that starts the program once."""
    shutil.copy(EVERY_CONSTRUCT, runner.spec)
    (runner.folder / "kernels").mkdir()
    program(runner.folder / "bin", "mpirun", 'while [ "$1" != python3 ]; do shift; done; exec "$@"')
    monkeypatch.setenv("PATH", str(runner.folder / "bin"), prepend=os.pathsep)
    monkeypatch.setenv("DATA_OF_A_TEST", "/data")
    return runner


# ---- Figures --------------------------------------------------------------------------------------------------------

LOG = "".join(f"throughput: {value}\nlatency: {value}\n" for value in (30, 5, 10, 20))


@pytest.mark.parametrize(
    "name, reduction, skip, expected, rule",
    [
        ("throughput", "mean", 1, 20.0, "mean without the 1 smallest"),
        ("latency", "mean", 1, 35 / 3, "mean without the 1 largest"),
        ("throughput", "mean", 0, 16.25, "mean"),
        ("throughput", "min", 3, 5.0, "min"),
        ("throughput", "final", 9, 20.0, "final"),
    ],
)
def test_what_skip_leaves_out(name, reduction, skip, expected, rule):
    metric = Metric(name, re.compile(f"{name}: (.*)"), skip, reduction)
    assert metric.read([LOG]) == pytest.approx(expected) and metric.rule == rule


def test_a_pattern_without_a_group_is_the_whole_match():
    assert Metric("m", re.compile(r"\d+(?= left)")).read(["3 left, 5 left"]) == 4.0


@pytest.mark.parametrize("text, expected", [("x: half", "half"), ("x: 1,024", 1024.0), ("x: a\nx: a", "a")])
def test_a_value_is_not_processed(text, expected):
    assert Metric("m", re.compile("x: (.*)"), 0, "value").read([text]) == expected


def test_values_that_differ_are_no_value():
    with pytest.raises(ValueError, match="is for one figure, but there are 2: a, b"):
        Metric("m", re.compile("x: (.*)"), 0, "value").read(["x: a\nx: b"])


def test_the_throughput_of_all_instances():
    data = [Metric(name, re.compile(f"{name}: (.*)")) for name in ("throughput", "latency")]
    derived = {"tokens": Expression("{throughput} * {bs}")}
    values, problems = collect(data, derived, [LOG], {"bs": "4"}, 2)
    assert values == {"throughput": 32.5, "latency": 16.25, "tokens": 130.0} and not problems
    assert rules(data, derived, 2) == {
        "throughput": "mean, times 2 instances",
        "latency": "mean",
        "tokens": "= {throughput} * {bs}",
    }


@pytest.mark.parametrize(
    "command, count",
    [
        ("mpirun --tag-output --np 4 --allow-run-as-root python3 x.py", 4),
        ("mpirun -np 3 python3 x.py", 3),
        ("/usr/bin/mpirun --np=2 python3 x.py", 2),
        ("poprun -vv --num-instances=8 --num-replicas=16 python3 x.py", 8),
        ("poprun --num-instances 2 python3 x.py --num-instances 5", 2),
        ("poprun --num-replicas 4 python3 x.py --num-instances 5", 1),
        ("python3 x.py --np 4", 1),
        ("mpirun --np many python3 x.py", 1),
        ("mpirun --np", 1),
    ],
)
def test_instances(command, count):
    assert launchers.instances(command.split()) == count


@pytest.mark.parametrize(
    "text, figures, expected",
    [
        ("{a} * {b}", {"a": 3.0, "b": "4"}, 12.0),
        ("a * b", {"a": 3.0, "b": "4"}, 12.0),
        ("{tokens/sec} / 2", {"tokens/sec": 5}, 2.5),
        ("-{a} ** 2", {"a": 3}, -9.0),
        ("16000 / {a}", {"a": 4}, 4000.0),
    ],
)
def test_expressions_name_figures_with_braces_or_without(text, figures, expected):
    assert Expression(text).names == set(figures) and Expression(text).value(figures) == expected


def test_an_expression_over_a_text():
    with pytest.raises(ValueError, match="b is 'large', no number"):
        Expression("{a} * {b}").value({"a": 1.0, "b": "large"})


# ---- Variants and words ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "parameters, expected",
    [
        ({"n": "1,2"}, [{"n": "1"}, {"n": "2"}]),
        ({"n": "1, 2", "m": "x,y"}, [{"n": n, "m": m} for n in "12" for m in "xy"]),
        ({"n": ["1,2", 3]}, [{"n": "1,2"}, {"n": 3}]),
        ({"n": "alone"}, [{"n": "alone"}]),
        ({"n": 384}, [{"n": 384}]),
        ({"n": "a,"}, [{"n": "a"}]),
        ({"n": ","}, [{"n": ","}]),
    ],
)
def test_texts_in_a_mapping_are_split_at_commas(parameters, expected):
    assert combinations(parameters) == expected


def test_rows_in_curly_brackets_are_columns_of_a_product(runner):
    runner.spec.write_text("x:\n  cmd: p\n  parameters:\n    - {phase, bs}\n    - {128, 3}\n    - {384, 2}\n")
    found = spec.load([runner.spec])["x"].parameters
    assert found == [{"phase": phase, "bs": bs} for phase in (128, 384) for bs in (3, 2)]


def test_names_sort_the_parameters():
    assert variant_name("b", {"z": 1, "a": 2}) == "b_a_2_z_1"


@pytest.mark.parametrize(
    "command, left",
    [
        ("p --a --wandb --b", "p --a --b"),
        ("p --wandb --wandb-project x --wandb_run_name=y --wandb-tags t u --b 1", "p --b 1"),
        ("p --enable-wandb true --trainer.wandb False --wandb.mode offline --b", "p --b"),
        ("p wandb.mode=offline b=2", "p b=2"),
        ("p --report-to wandb --b", "p --b"),
        ("p --report_to wandb tensorboard --logger=wandb", "p --report_to tensorboard"),
        ("p --logger csv --report-to", "p --logger csv --report-to"),
        ("p --no-wandb --disable_wandb --dir wandb /wandb=1/x", "p --no-wandb --disable_wandb --dir wandb /wandb=1/x"),
    ],
)  # fmt: skip
def test_every_word_of_wandb_goes_with_its_value(command, left):
    assert without_wandb(command.split()) == left.split()


# ---- Spec files -----------------------------------------------------------------------------------------------------


def prepared(files, environment, names=()):
    chosen = spec.select(spec.load(files), list(names), True)
    return {each.name: each for each in suite.prepare(chosen, suite.Settings(files[0].parent / "logs"), environment)}


def test_every_construct_loads(application):
    found = prepared([application.spec], dict(os.environ))
    assert list(found) == [
        *("comma_product_bs_1_size_base", "comma_product_bs_4_size_base", "comma_product_bs_1_size_large"),
        *("comma_product_bs_4_size_large", "rows_bs_3_input_-DATA_OF_A_TEST-a-128_size_128"),
        *("rows_bs_2_input_-DATA_OF_A_TEST-b-384_size_384", "instances_bs_2_replicas_1", "instances_bs_2_replicas_4"),
        *("many_hosts_bs_8", "tracked", "book", "trains_on_conv"),
    ]
    words = {name: each.words for name, each in found.items()}
    assert words["comma_product_bs_4_size_large"] == [
        *("python3", "program.py", "--config", "large_4", "--cache", "./cache/", "--end")
    ]
    assert words["rows_bs_3_input_-DATA_OF_A_TEST-a-128_size_128"][-1] == "--input=/data/a 128"
    assert words["tracked"] == ["python3", "program.py", "--wandb"] and "WANDB_MODE" not in found["tracked"].environment
    assert words["book"][-4:] == ["--to", "markdown", "--stdout", "notebook.ipynb"]
    hosts = found["many_hosts_bs_8"]
    assert hosts.words[4] == "$NOBODY_SETS_THESE_HOSTS" and hosts.environment["CACHE"].endswith("_USER/cache")
    assert hosts.instances == 2 and found["instances_bs_2_replicas_4"].instances == 4
    assert hosts.unset == ("NOBODY_SETS_THIS_USER", "NOBODY_SETS_THESE_HOSTS", "NOBODY_SETS_THIS_NETWORK")
    benchmark = found["tracked"].benchmark
    assert benchmark.requirements == application.folder / "kernels" / "none.txt"


def test_what_nobody_knows_is_one_warning(application, caplog):
    spec.load([application.spec])
    said = [record.getMessage() for record in caplog.records]
    assert len(said) == 1 and said[0].startswith("ignored in the spec:\n")
    lines = [line.strip().replace(str(application.spec), "FILE") for line in said[0].splitlines()[1:]]
    assert lines[0].startswith("FILE:51: unknown key 'owner'; known are allow_wandb, cmd, data,")
    assert lines[1:] == ["FILE:38: output: no metric 'perplexity' or parameter is called so"]


@pytest.mark.parametrize(
    "text, warning",
    [
        ("x:\n  cmd: python3 program.py\n  paramters: {}\n", "FILE:3: unknown key 'paramters'; did you mean par"),
        ("x:\n  cmd: python3 program.py 1\n  data:\n    m: {regexp: words, skp: 1, reduction_type: value}\n",
         "FILE:4: unknown key 'skp'; did you mean skip?"),
        ("x:\n  cmd: python3 program.py\n  requirements_path: none.txt\n", "FILE:3: x: there is no file"),
        ("x:\n  cmd: python3 program.py\n  required_apt_packages_path: a.txt\n", "FILE:3: system packages are left to"),
    ],
)  # fmt: skip
def test_a_warning_and_the_benchmark_runs(runner, caplog, text, warning):
    assert runner(text).status == 0
    (record,) = [record for record in caplog.records if record.levelno == logging.WARNING]
    assert warning in record.getMessage().replace(str(runner.spec), "FILE")


def test_figures_of_every_construct(application, caplog):
    names = ["instances", "comma_product_bs_4_size_large", "many_hosts"]
    session = application(None, "--no-setup", "--benchmark", *names)
    assert session.status == 1  # poprun is not here
    results = session.results
    assert list(results) == [f"instances_bs_2_replicas_{n}" for n in (1, 4)] + names[1:2] + ["many_hosts_bs_8"]
    one = {
        "throughput": 20.0,
        "latency": pytest.approx(35 / 3),
        "loss": 20.5,
        "best": 5.5,
        "precision": "float16",
        "steps": 96.0,
        "tokens": 80.0,
        "latency_s": pytest.approx(35 / 3000),
        "half": 10.0,
    }
    product = results["comma_product_bs_4_size_large"]
    assert product["metrics"] == one
    assert product["output"] == {"batch size": "4", "samples/sec": 20.0, "samples a second": 20.0, "replicas": "4"}
    assert product["notes"] == {"generated": True, "synthetic": False}
    assert product["rules"]["throughput"] == "mean without the 1 smallest"
    four = results["instances_bs_2_replicas_4"]
    assert four["metrics"] == {**one, "throughput": 80.0, "tokens": 160.0, "half": 40.0}
    assert four["rules"]["throughput"] == "mean without the 1 smallest, times 4 instances"
    assert results["many_hosts_bs_8"]["problems"] == [
        "poprun cannot be started (No such file or directory); "
        "not set: NOBODY_SETS_THIS_USER, NOBODY_SETS_THESE_HOSTS, NOBODY_SETS_THIS_NETWORK"
    ]
    assert session.log("comma_product_bs_4_size_large").startswith(
        "words ['--config', 'large_4', '--cache', './cache/', '"
    )


def test_a_variable_that_is_not_set_is_refused_where_the_launcher_is_here(application):
    program(application.folder / "bin", "poprun", "exit 0")
    session = application(None, "--no-setup", "--benchmark", "many_hosts")
    assert session.status == 2 and "the environment variable NOBODY_SETS_THIS_USER is not set" in session.err


def test_a_flag_says_whether_benchmarks_are_set_up(application, caplog, monkeypatch):
    chosen = ("--benchmark", "comma_product_bs_1_size_base")
    session = application(None, "--no-setup", *chosen)
    assert session.status == 0 and not caplog.records[1:]  # but for the one of the spec
    assert not (session.logs / "comma_product_bs_1_size_base" / "pre_run.log").exists()
    caplog.clear()
    session = application(None, *chosen)
    assert session.status == 0
    assert "words ['built']" in session.log("comma_product_bs_1_size_base", "pre_run.log")
    said = "\n".join(record.getMessage() for record in caplog.records)
    assert f"there is no file {application.folder}/requirements.txt; nothing is installed" in said
    assert f"xargs apt-get install -y < {application.folder}/required_apt_packages.txt" in said


def test_cd_in_pre_run_commands_holds_for_the_next(runner):
    (runner.folder / "kernels").mkdir()
    where = "'python3 -c \"import os; print(os.getcwd())\"'"
    text = f"x:\n  cmd: python3 program.py\n  pre_run_commands: [cd kernels, {where}]\n"
    assert runner(text).log("x", "pre_run.log").strip() == str(runner.folder / "kernels")
    session = runner(text.replace("cd kernels", "cd nowhere"))
    assert session.status == 1 and session.results["x"]["problems"] == [
        f"pre-run command cd nowhere: there is no folder {runner.folder}/nowhere"
    ]


def test_templates_of_two_files_share_a_name(runner):
    other = runner.folder / "other.yml"
    entry = "common_options: &c\n  data: {{m: {{regexp: '{0}'}}}}\n{1}: {{<<: *c, cmd: x}}\n"
    runner.spec.write_text(entry.format("first", "one"))
    other.write_text(entry.format("second", "two"))
    found = spec.load([runner.spec, other])
    patterns = {name: each.data[0].pattern.pattern for name, each in found.items()}
    assert patterns == {"common_options": "second", "one": "first", "two": "second"}


@pytest.mark.parametrize(
    "location",
    ["", "sub", "public_examples/vision/vit", "public_examples/vision/vit/sub", "vision/vit/sub/", "vision/cnns"],
)
def test_a_location_in_the_repository_of_the_applications(tmp_path, location):
    root = tmp_path / "checkout" / "vision" / "vit"
    (root / "sub").mkdir(parents=True)
    (root.parent / "cnns").mkdir()
    expected = root / "sub" if "sub" in location else root.parent / "cnns" if "cnns" in location else root
    assert application_folder(root, location) == expected


def test_a_location_that_is_nowhere_stays_below_the_spec(tmp_path):
    assert (
        application_folder(tmp_path, "public_examples/of_nobody/at_all")
        == tmp_path / "public_examples/of_nobody/at_all"
    )
