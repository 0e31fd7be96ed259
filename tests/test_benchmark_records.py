"""benchmarks/record.py: what a benchmark leaves, and that all records in the tree have that form."""

import importlib.util
import json
from pathlib import Path

import pytest
import torch

from benchmarks import record
from corpora.program import ProgramParser

ROOT = Path(__file__).resolve().parent.parent
RECORDS = [path for path in sorted((ROOT / "benchmarks/records").glob("*.json")) if path.stem != "benchmarks_yml"]
HEAD = {"date", "hardware", "versions", "commit", "command"}


def test_a_record_says_where_when_and_how(tmp_path, capsys):
    head = record.head("train_step", ["--rounds", "3"], ["numpy", "no-such-library"])
    record.write(tmp_path / "x.json", head, {"model": "gpt2", "folder": tmp_path}, {"times_faster": 1.5})
    written = json.loads((tmp_path / "x.json").read_text())
    assert capsys.readouterr().out == f"written to {tmp_path / 'x.json'}\n"
    assert set(written) == HEAD | {"load", "settings", "results"}
    assert written["command"] == "python -m benchmarks.train_step --rounds 3"
    assert written["versions"]["torch"] == torch.__version__ and "numpy" in written["versions"]
    assert "no-such-library" not in written["versions"] and "cores" in written["hardware"]
    assert written["settings"]["model"] == "gpt2" and written["results"] == {"times_faster": 1.5}


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="a file that is always full")
def test_a_record_that_cannot_be_written_is_printed(capsys):
    """Its figures took long. It was a traceback, and an earlier record was cut to nothing."""
    head = record.head("gelu", [])
    with pytest.raises(SystemExit) as stop:
        record.write("/dev/full", head, {}, {"times_faster": 1.5})
    said = capsys.readouterr()
    assert stop.value.code == 2 and json.loads(said.out)["results"] == {"times_faster": 1.5}
    told = "/dev/full: cannot be written (No space left on device); what was to be in it is printed above\n"
    assert said.err == told


def test_a_file_that_cannot_be_written_is_told_before_anything_is_measured(tmp_path, capsys):
    parser = ProgramParser("benchmarks/some.py", None)
    record.add_json_flag(parser)
    assert parser.parse_args(["--json", str(tmp_path / "x.json")]).json == str(tmp_path / "x.json")
    for path, told in (
        (tmp_path, "is a folder; name a file"),
        (tmp_path / "no" / "x.json", "its folder does not exist"),
    ):
        with pytest.raises(SystemExit):
            parser.parse_args(["--json", str(path)])
        assert f"--json: {path}" in (said := capsys.readouterr().err) and told in said


def test_figures_against_an_alternative_are_found_wherever_they_are():
    results = {
        "read": {"times_faster": 2.0, "rounds": [{"ours": 1}]},
        "formats": {"times_faster": {"pkl": 3.0, "mmap": 4.0}},
        "cases": [{"dropout": 0.1, "times_faster": 5.0}, {"times_faster": 6.0}],
    }
    found = [("read", 2.0), ("formats pkl", 3.0), ("formats mmap", 4.0), ("cases dropout 0.1", 5.0), ("cases 1", 6.0)]
    assert list(record.speed_ups(results)) == found
    assert list(record.speed_ups([{"times_faster": 7.0}])) == [("0", 7.0)]


@pytest.mark.parametrize("path", RECORDS, ids=lambda path: path.stem)
def test_the_records_of_the_tree(path):
    written = json.loads(path.read_text())
    assert set(written) - {"load"} == HEAD | {"settings", "results"}
    program = written["command"].removeprefix("python -m benchmarks.").split()[0]
    assert importlib.util.find_spec(f"benchmarks.{program}") and path.stem.startswith(program)
