"""The runner of the tests with real libraries: environments made once, interpreters found, nothing passed in silence.

Interpreters are small scripts that write down how they were called, so nothing is installed.
"""

from __future__ import annotations

import pytest
from libraries import run

# Stands for a Python: says that it is 3.11, `-m venv DIR` puts a copy of it there, the rest is noted.
INTERPRETER = """#!/bin/sh
case "$*" in
    -c*) echo {version};;
    "-m venv"*) mkdir -p "$3/bin" && cp "$0" "$3/bin/python";;
    *) echo "$@" >> "{log}"; case "$*" in *"{failing}"*) exit 1;; esac;;
esac
"""


@pytest.fixture
def calls(tmp_path, monkeypatch):
    """calls() puts a Python on the PATH that fails at arguments with `failing` in them; its result gives all calls."""
    monkeypatch.setattr(run, "HERE", tmp_path)
    monkeypatch.setattr(run, "ENVIRONMENTS", tmp_path / "environments")
    monkeypatch.setattr(run, "GROUPS", (run.Group("old-library", python="3.5"),))
    (tmp_path / "old-library.txt").write_text("library==1.0\n")
    binaries = tmp_path / "bin"
    binaries.mkdir()
    monkeypatch.setenv("PATH", f"{binaries}:/bin:/usr/bin")
    log = tmp_path / "log"

    def install(version="3.5", failing="never"):
        path = binaries / "python3.5"
        path.write_text(INTERPRETER.format(version=version, log=log, failing=failing))
        path.chmod(0o755)
        return lambda: log.read_text().splitlines()

    return install


def test_an_environment_is_made_once_for_its_pins(calls, tmp_path, capsys):
    called = calls()
    assert run.main([]) == 0
    assert run.main(["old-library"]) == 0
    installed, tested, again = called()
    assert installed.startswith("-m pip install") and installed.endswith("old-library.txt")
    assert "-m pytest -m programs" in tested and tested.endswith("test_old_library.py") and again == tested
    (tmp_path / "old-library.txt").write_text("library==1.1\n")
    assert run.main([]) == 0
    assert sum("pip install" in line for line in called()) == 2
    assert capsys.readouterr().out.splitlines()[-1] == "old-library: passed"


def test_tests_that_fail_fail_the_command(calls, capsys):
    calls(failing="-m pytest")
    assert run.main([]) == 1
    assert capsys.readouterr().out.splitlines()[-1] == "old-library: FAILED: pytest ended with 1"


def test_an_environment_that_cannot_be_installed_is_a_failure_and_tried_again(calls, capsys):
    called = calls(failing="-m pip install")
    assert run.main([]) == 1
    assert "old-library: FAILED: no environment: `" in capsys.readouterr().out
    assert not any("-m pytest" in line for line in called())
    calls()
    assert run.main([]) == 0


@pytest.mark.parametrize("version", [None, "3.6"], ids=["missing", "another version"])
def test_a_python_that_is_not_there_is_a_skip_that_says_how_to_get_it(calls, version, capsys):
    if version:
        calls(version=version)
    assert run.main([]) == 0
    last = capsys.readouterr().out.splitlines()[-1]
    assert last.startswith("old-library: SKIPPED: its pins need Python 3.5") and "uv python install 3.5" in last


def test_a_group_that_is_not_there(calls, capsys):
    with pytest.raises(SystemExit) as stop:
        run.main(["other"])
    assert stop.value.code == 2
    assert "there is no group other: choose from old-library" in capsys.readouterr().err


def test_each_group_has_its_tests_and_pins():
    for group in run.GROUPS:
        assert group.tests.is_file()
        if group.own_environment:
            lines = [line for line in group.pins.read_text().splitlines() if not line.startswith("#")]
            assert lines and all("==" in line for line in lines)
