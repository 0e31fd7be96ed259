"""The flags of the benchmark runner beside those of test_benchmark_runs.py, and what a session leaves for others."""

from __future__ import annotations

import json
import os
import sys
from xml.etree import ElementTree

import pytest
from benchmark_session import Runner, program

STEPS = """
for value in (30, 5, 10, 20):
    print(f"throughput: {value} samples/sec")
    print(f"latency: {value} ms, loss: {value}.5,")
print("done")
print("done")
"""


@pytest.fixture
def runner(tmp_path):
    made = Runner(tmp_path)
    made.script(STEPS)
    return made


SHORT = "x:\n  cmd: python3 program.py\n  data: {loss: {regexp: 'loss: (.*),', reduction_type: final}}\n"


def test_the_spec_is_benchmarks_yml_here(runner, monkeypatch, capsys):
    from examples_utils.benchmark.command_line import main

    monkeypatch.chdir(runner.folder)
    runner.spec.write_text(SHORT)
    assert main(["benchmark", "--log-dir", "logs"]) == 0
    assert "PASSED benchmarks.yml::x\n" in capsys.readouterr().out


def test_of_a_folder_only_yaml_is_read(runner, capsys):
    from examples_utils.benchmark.command_line import main

    runner.spec.write_text(SHORT)
    files = [str(path) for path in sorted(runner.folder.iterdir())]
    assert len(files) == 2 and main(["benchmark", "--log-dir", str(runner.folder / "logs"), "--spec", *files]) == 0


def test_what_is_left_for_others_to_read(runner):
    text = SHORT + "y_conv: {cmd: \"python3 -c 'raise SystemExit(3)'\"}\n"
    session = runner(text, "--benchmark", "y_conv", "x", "--additional-metrics")
    assert [line for line in session.out.splitlines() if "::" in line] == [
        f"FAILED {runner.spec}::y_conv",
        f"PASSED {runner.spec}::x",
    ]
    result = json.loads(session.log("x", "variant_result.json"))
    assert result == session.results["x"] and result["spec"] == str(runner.spec)
    assert result["additional"]["exit_code"] == 0 and result["additional"]["cpu_seconds"] > 0
    root = ElementTree.parse(session.logs / "junit.xml").getroot()
    (outer,) = root
    assert (outer.get("tests"), outer.get("failures")) == ("2", "1")
    bad, good = outer
    assert (good.get("classname"), good.get("name"), good.find("failure")) == (str(runner.spec), "x", None)
    assert good.find("properties/property").attrib == {"name": "loss", "value": "20.5"}
    assert bad.find("failure").get("message") == "exit status 3"
    header = (session.logs / "benchmark_results.csv").read_text().splitlines()[0]
    assert header == "date,commit,hardware,benchmark,variant,status,seconds,exit_code,cpu_seconds,loss"


def test_xml_has_no_character_that_xml_forbids(runner):
    text = SHORT.replace("reduction_type: final", "reduction_type: value").replace("loss: (.*)", "end: (.)")
    runner.script(r"print('end: \x1b,')")
    session = runner(text)
    assert session.status == 0 and session.results["x"]["metrics"] == {"loss": "\x1b"}
    (found,) = ElementTree.parse(session.logs / "junit.xml").getroot().iter("property")
    assert found.get("value") == "?"


CUSTOM = """
from examples_utils.benchmarks.custom_metrics import register_custom_metric
register_custom_metric("lines", lambda stdout, stderr, exit_code: stdout.count("\\n") + exit_code)
register_custom_metric("nothing", lambda stdout, stderr, exit_code: None)
"""


def test_custom_metrics(runner):
    runner.script(CUSTOM, "metrics.py")
    flags = ("--custom-metrics-files", str(runner.folder / "metrics.py"), "--csv-metrics", "lines")
    session = runner(SHORT, *flags)
    assert session.status == 0 and session.results["x"]["metrics"] == {"loss": 20.5, "lines": 10.0}
    assert session.results["x"]["rules"] == {"loss": "final", "lines": "custom"}
    assert runner(SHORT).results["x"]["metrics"] == {"loss": 20.5}  # they are a session's
    runner.script(CUSTOM + "register_custom_metric('bad', lambda *of: float('inf'))\n", "metrics.py")
    assert runner(SHORT, *flags).results["x"]["problems"] == ["custom metric bad: ValueError: inf is not finite"]


@pytest.mark.parametrize(
    "text, message",
    [
        ("1 / 0\n", "ZeroDivisionError: division by zero"),
        ("pass\n", "it calls no register_custom_metric(name, function)"),
        (CUSTOM + "register_custom_metric('x', 3)\n", "TypeError: the metric x needs a function, not 3"),
    ],
)
def test_files_of_metrics_that_are_none(runner, text, message):
    runner.script(text, "metrics.py")
    session = runner(SHORT, "--custom-metrics-files", str(runner.folder / "metrics.py"))
    assert session.status == 2 and message in session.err and not session.logs.exists()


def test_a_requirements_file_of_the_session(runner, tmp_path, monkeypatch):
    """pip stands for itself: an interpreter that writes down what it was asked."""
    python = tmp_path / "python3"
    python.write_text('#!/bin/sh\necho "$@" >> asked.txt\n')
    python.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(python))
    (tmp_path / "mine.txt").write_text("")
    session = runner(
        "x: {cmd: python3 run, requirements_path: none.txt}\n", "--requirements-file", f"{tmp_path}/mine.txt"
    )
    assert session.status == 0
    assert (tmp_path / "asked.txt").read_text().splitlines()[0].endswith(f"-r {tmp_path}/mine.txt")
    session = runner(SHORT, "--requirements-file", "none.txt")
    assert session.status == 2 and "--requirements-file none.txt: there is no such file" in session.err


def test_gc_monitor_where_there_is_none_and_where_there_is_one(runner, caplog, monkeypatch):
    session = runner(SHORT, "--gc-monitor")
    assert session.status == 0 and not (session.logs / "x" / "gc_monitor.log").exists()
    assert "gc-monitor, of the Poplar SDK, is not on this machine" in caplog.text
    program(runner.folder / "bin", "gc-monitor", "echo IPU utilisation; exec sleep 600")
    monkeypatch.setenv("PATH", str(runner.folder / "bin"), prepend=os.pathsep)
    monitored = "until grep -q utilisation logs/x/gc_monitor.log; do sleep 0.01; done; echo 'loss: 20.5,'"
    runner.script(monitored, "program.sh")
    session = runner(SHORT.replace("python3 program.py", "sh program.sh"), "--gc-monitor")
    assert session.status == 0 and session.log("x", "gc_monitor.log") == "--- after 0 s\nIPU utilisation\n"


def test_folders_are_removed_after_a_variant(runner):
    (runner.folder / "kept").mkdir()
    (runner.folder / "link").symlink_to(runner.folder / "kept")
    runner.script("import os; os.makedirs('cache/deep'); print('loss: 1,')")
    session = runner(SHORT, "--remove-dirs-after", "cache", "link", "never_made")
    assert session.status == 0 and not (runner.folder / "cache").exists() and (runner.folder / "kept").is_dir()


@pytest.mark.parametrize("given", [".", "..", "/", "cache/../..", "logs"])
def test_folders_that_are_not_removed(runner, given):
    session = runner(SHORT, "--remove-dirs-after", given)
    assert session.status == 2 and f"--remove-dirs-after {given}: " in session.err and runner.spec.exists()


def test_the_smaller_of_two_timeouts_holds(runner):
    text = "x:\n  cmd: sleep 600\n  timeout: 0.5\n"
    assert runner(text, "--timeout", "500").results["x"]["problems"] == ["timed out after 0.5 s"]


@pytest.mark.parametrize(
    "flags, expected",
    [
        (["--no-such-flag"], ["--no-such-flag: unknown flag; see --help"]),
        (["--benchmrk", "x"], ["--benchmrk: unknown flag; did you mean --benchmark?",
          "x: belongs to no flag; see --help"]),
        (["--timeout", "-3", "--logging", "loud"], ["--timeout: -3.0 must be a number of seconds above 0",
          "--logging: 'LOUD' must be one of DEBUG, INFO, WARNING, ERROR, CRITICAL"]),
        (["--spec"], ["--spec: expected at least one argument"]),
    ],
)  # fmt: skip
def test_mistakes_are_told_without_the_usage(capsys, flags, expected):
    from examples_utils.benchmark.command_line import main

    with pytest.raises(SystemExit, match="2"):
        main(["benchmark", *flags])
    count = "1 problem" if len(expected) == 1 else f"{len(expected)} problems"
    assert capsys.readouterr().err.splitlines() == [
        f"examples_utils benchmark: {count}, nothing was started",
        *(f"  {line}" for line in expected),
    ]


def test_no_command_is_told_without_the_usage(capsys):
    from examples_utils.benchmark.command_line import main

    with pytest.raises(SystemExit, match="2"):
        main([])
    said = capsys.readouterr().err.splitlines()
    assert said[1:] == ["  the following arguments are required: benchmark"]
