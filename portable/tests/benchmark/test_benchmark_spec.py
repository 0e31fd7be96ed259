"""What a spec file may say, and what is said of mistakes in it: with file and line, before anything starts."""

from __future__ import annotations

import pytest
from benchmark_session import PRINTING, SIMPLE, Runner

from examples_utils.benchmark import spec, yaml_lines


@pytest.fixture
def runner(tmp_path):
    made = Runner(tmp_path)
    made.script(PRINTING)
    return made


def refusal(runner, text, *flags):
    session = runner(text, *flags)
    assert session.status == 2, session.out + session.err
    assert not session.logs.exists() and "Traceback" not in session.err
    lines = session.err.splitlines()
    assert "nothing was started" in lines[0]
    return [line.strip().replace(str(runner.spec), "FILE") for line in lines[1:]]


ENTRY = "x:\n  cmd: python3 program.py\n"


@pytest.mark.parametrize(
    "text, message",
    [
        ("x: [1\ny: 2\n", "FILE:2: not valid YAML: expected ',' or ']'"),
        ("x:\n  cmd: *nothing\n", "FILE:2: not valid YAML: found undefined alias 'nothing'"),
        ("x:\n\tcmd: a\n", "FILE:2: not valid YAML: found character '\\t' that cannot start any token"),
        ("x:\n  cmd: a\x07b\n", "FILE:2: not valid YAML: special characters are not allowed"),
        ("", "FILE:1: the file must be a mapping of benchmarks"),
        ("- a\n", "FILE:1: the file must be a mapping of benchmarks"),
        ("a: &a\n  b: *a\n", "FILE:1: this contains itself, by its anchor"),
        ("x:\n  cmd: a\nx:\n  cmd: b\n", "FILE:3: 'x' is given already in line 1; remove one"),
        ("x:\n  cmd: a\n  env: {A: 1, A: 2}\n", "FILE:3: 'A' is given already in line 3; remove one"),
        ("1:\n  cmd: a\n", "FILE:1: the name 1 must be text; quote it"),
        ("x: program\n", "FILE:1: x: must be a mapping with `cmd:`, not 'program'"),
        (ENTRY + "  timeout: 0\n", "FILE:3: x: timeout: must be a number of seconds above 0, not 0"),
        (ENTRY + "  timeout: true\n", "FILE:3: x: timeout: must be a number of seconds above 0, not True"),
        (ENTRY + "  allow_wandb: maybe\n", "FILE:3: x: allow_wandb: must be true or false, not 'maybe'"),
        (
            "x:\n  notebook: {fil: a}\n",
            "FILE:2: x: notebook: must be the path of a notebook, or a mapping with `file:`",
        ),
        ("x:\n  cmd: ''\n", "FILE:2: x: cmd: the command is empty"),
        ("x:\n  cmd: [a]\n", "FILE:2: x: cmd: must be a command line, not a list"),
        ("x:\n  cmd: echo 'a\n", "FILE:2: x: cmd: No closing quotation"),
        ("x:\n  cmd: make && ls\n", "FILE:2: x: cmd: & is for a shell, and there is none"),
        ("x:\n  cmd: echo $(ls)\n", "FILE:2: x: cmd: ( ) is for a shell"),
        ("x:\n  cmd: echo `ls`\n", "FILE:2: x: cmd: ` is for a shell"),
        ("x:\n  cmd: A=1 program\n", "FILE:2: x: cmd: 'A=1' in front of a command needs a shell: give variables under"),
        (ENTRY + "  data: 3\n", "FILE:3: x: data: must be a mapping, not 3"),
        (ENTRY + "  data:\n    m: {skip: 1}\n", "FILE:4: x: data: m needs `regexp:`"),
        (ENTRY + "  data:\n    m: {regexp: '(a'}\n", "FILE:4: x: data: m: the regular expression '(a' cannot be used"),
        (ENTRY + "  data:\n    m:\n      regexp: (a)\n      skip: -1\n", "FILE:6: x: data: m: skip must be a whole"),
        (ENTRY + "  data:\n    m:\n      regexp: (a)\n      skip: true\n", "FILE:6: x: data: m: skip must be a whole"),
        (
            ENTRY + "  data:\n    m: {regexp: (a), reduction_type: max}\n",
            "FILE:4: x: data: m: reduction_type must be one",
        ),
        (ENTRY + "  derived:\n    d: {expr: 'm * 2'}\n", "FILE:4: x: derived: d: no metric 'm' before it"),
        (ENTRY + "  derived:\n    d: {expr: '2 +'}\n", "FILE:4: x: derived: d: '2 +' is no arithmetic"),
        (
            ENTRY + "  derived:\n    d: {expr: 'open(1)'}\n",
            "FILE:4: x: derived: d: 'open(1)' in 'open(1)' is not allowed",
        ),
        (ENTRY + "  derived:\n    d: 3\n", "FILE:4: x: derived: d needs `expr:`"),
        (ENTRY + "  output:\n    - [a, b]\n", "FILE:4: x: output: no metric 'b' in data or derived (there are none)"),
        (ENTRY + "  output:\n    - a\n", "FILE:4: x: output: each row is [shown name, metric]"),
        (ENTRY + "  env: [a]\n", "FILE:3: x: env: must be a mapping, not a list"),
        (ENTRY + "  env:\n    A:\n", "FILE:4: x: env: A needs a text"),
        (ENTRY + "  location: 3\n", "FILE:3: x: location: must be a text, not 3"),
        (ENTRY + "  location: nowhere\n", "FILE:3: x: there is no folder"),
        (ENTRY + "  pre_run_commands: make\n", "FILE:3: x: pre_run_commands: must be a list, not 'make'"),
        (ENTRY + "  pre_run_commands: [make | tee]\n", "FILE:3: x: pre_run_commands: | is for a shell"),
        (ENTRY + "  parameters: 3\n", "FILE:3: x: parameters: parameters must be a mapping or a list"),
        (ENTRY + "  parameters: {a: []}\n", "FILE:3: x: parameters: the parameter a needs a list of values"),
        (
            ENTRY + "  parameters: [[a, b], [1]]\n",
            "FILE:3: x: parameters: the row [1] does not have a value for each of",
        ),
        (
            ENTRY + "  parameters: [{a: [1, 2]}, {b: [1]}]\n",
            "FILE:3: x: parameters: zipped parameters need as many values",
        ),
        (ENTRY + "  parameters: {'a b': [1]}\n", "FILE:3: x: parameters: the parameter name 'a b' must be a word"),
        (ENTRY + "  parameters: {a: [1, 1]}\n", "FILE:3: two variants are called x_a_1; their logs would mix"),
        ("x:\n  cmd: echo {a}\n", "FILE:2: x: {a} is no parameter (there are none)"),
        ("x:\n  cmd: echo $NOT_SET_ANYWHERE\n", "FILE:2: x: the environment variable NOT_SET_ANYWHERE is not set"),
        ("x:\n  cmd: a\n  env: {A: '${NOT_SET_ANYWHERE}'}\n", "FILE:3: x: the environment variable NOT_SET_ANYWHERE"),
    ],
)
def test_refused_with_file_and_line(runner, text, message):
    lines = refusal(runner, text)
    assert any(line.startswith(message.rstrip("\n")) for line in lines), lines


def test_every_problem_is_told_at_once_and_one_in_a_template_once(runner):
    text = "common_options: &c\n  data:\n    m: {regexp: '('}\na:\n  <<: *c\n  cmd: x\nb:\n  <<: *c\n  cmd: y | z\n"
    lines = refusal(runner, text)
    assert [line.split(": ")[0] for line in lines] == ["FILE:3", "FILE:3", "FILE:3", "FILE:9"]


def test_a_problem_that_variants_share_is_told_once(runner):
    lines = refusal(runner, "x:\n  cmd: echo {a} $NOT_SET_ANYWHERE\n  parameters: {a: [1, 2, 3]}\n")
    assert len(lines) == 1 and lines[0].startswith("FILE:2: x: the environment variable NOT_SET_ANYWHERE")


def test_a_file_that_is_not_there_or_not_text(runner, tmp_path):
    assert refusal(runner, None) == [
        "FILE: cannot be read (No such file or directory); check the path given with --spec"
    ]
    runner.spec.write_bytes(b"a: 1\nb: \xff\n")
    assert refusal(runner, None) == ["FILE:2: not UTF-8 text"]


def test_benchmark_names(runner):
    text = SIMPLE + "slow_options: {cmd: a}\ntemplate:\n  env: {A: 1}\nlong_conv:\n  cmd: python3 program.py\n"
    assert refusal(runner, text, "--benchmark", "fats") == ["FILE: there is no benchmark fats; did you mean fast?"]
    (told,) = refusal(runner, text, "--benchmark", "nonsense")
    assert told == "FILE: there is no benchmark nonsense; there are fast, long_conv"
    assert "FILE:8: template is a template, which has nothing to run" in refusal(
        runner, text, "--benchmark", "template"
    )
    assert "FILE:7: slow_options is a template" in refusal(runner, text, "--benchmark", "slow_options")[0]
    assert refusal(runner, "a_options: {cmd: x}\n") == [
        "there is no benchmark to run: every entry is a template or needs --include-convergence"
    ]


def test_the_same_name_in_two_files(runner, tmp_path):
    runner.spec.write_text(SIMPLE)
    other = tmp_path / "other.yml"
    other.write_text("\n" + SIMPLE)
    from examples_utils.benchmark.command_line import main

    with pytest.raises(spec.SpecError, match=r"other.yml:2: fast is in .*benchmarks.yml:1 already; rename one"):
        spec.load([runner.spec, other])
    assert main(["benchmark", "--spec", str(runner.spec), str(other)]) == 2


def test_columns_and_log_folder(runner, tmp_path):
    assert refusal(runner, SIMPLE, "--csv-metrics", "speed") == [
        "--csv-metrics speed: no such metric in the benchmarks chosen, which have loss, throughput"
    ]
    (tmp_path / "file").write_text("")
    session = runner(SIMPLE, "--log-dir", str(tmp_path / "file" / "x"))
    assert session.status == 2 and "name another folder" in session.err


@pytest.mark.parametrize("flags", [["--timeout", "0"], ["--timeout", "x"], ["--logging", "LOUD"], ["--no-such-flag"]])
def test_wrong_flags(runner, flags):
    session = runner(SIMPLE, *flags)
    assert session.status == 2 and "Traceback" not in session.err and not session.logs.exists()


def test_merging_keeps_the_lines_of_the_template(tmp_path):
    path = tmp_path / "x.yml"
    path.write_text("a: &a\n  one: 1\n  two: 2\nb:\n  <<: *a\n  two: 3\n")
    read = yaml_lines.read(path)
    assert read == {"a": {"one": 1, "two": 2}, "b": {"one": 1, "two": 3}}
    assert read["b"].lines == {"one": 2, "two": 6} and read["b"].line == 5
