"""Error classes, enumerations, notices and log levels."""

from __future__ import annotations

import ast
import enum
import logging
import os
import pathlib
import pickle
import subprocess
import sys

import pytest

from poptorch import enums, notices
from poptorch.poptorch_core import Error, RecoverableError, UnrecoverableError, createPoptorchError

# Facts of the published API 3.4.
ENUMS = {
    "AutoStage": {"SameAsIpu": 0, "AutoIncrement": 1},
    "CommGroupType": {"All": 0, "Consecutive": 1, "Orthogonal": 2, "NoGrouping": 3},
    "ConnectionType": {"Always": 0, "OnDemand": 1, "Never": 2},
    "DataLoaderMode": {"Sync": 0, "Async": 1, "AsyncRebatched": 2},
    "HalfFloatCastingBehavior": {"FloatDowncastToHalf": 0, "HalfUpcastToFloat": 1, "Default": 2},
    "Liveness": {
        "AlwaysLive": 0,
        "OffChipAfterFwd": 1,
        "OffChipAfterFwdNoOverlap": 2,
        "OffChipAfterEachPhase": 3,
    },
    "MatMulSerializationMode": {
        "InputChannels": "input_channels",
        "ReducingDim": "reducing_dim",
        "OutputChannels": "output_channels",
        "Disabled": "none",
    },
    "MeanReductionStrategy": {"Running": 0, "Post": 1, "PostAndLoss": 2},
    "MultiConvPlanType": {"Parallel": 0, "Serial": 1},
    "OutputMode": {"Final": 0, "EveryN": 1, "All": 2, "Sum": 3, "Default": 4},
    "OverlapMode": {
        "NoOverlap": "no_overlap",
        "OverlapAccumulationLoop": "overlap_accumulation_loop",
        "OverlapDeviceIterationLoop": "overlap_device_iteration_loop",
    },
    "ReductionType": {"Sum": 0, "Mean": 1, "NoReduction": 2},
    "SharingStrategy": {"SharedMemory": 0, "FileSystem": 1, "Fork": 2, "ForkServer": 3},
    "SyncPattern": {"Full": 0, "SinglePipeline": 1, "ReplicaAndLadder": 2},
    "VariableRetrievalMode": {"OnePerGroup": 0, "AllReplicas": 2},
}


def test_enumerations_are_those_of_the_api():
    found = {
        name: {member.name: member.value for member in kind}
        for name, kind in vars(enums).items()
        if isinstance(kind, type) and issubclass(kind, enum.Enum)
    }
    assert found == ENUMS


def test_section1_error_is_an_exception_with_type_message_and_location():
    error = createPoptorchError("went wrong")
    assert type(error) is Error and isinstance(error, Exception) and not isinstance(error, RuntimeError)
    assert (error.type, error.message, error.location) == ("poptorch_py_error", "went wrong", "")
    assert str(error) == "'poptorch_py_error': went wrong"
    assert str(Error("m", type="popart", location="here")) == "'popart': m"


def test_section1_recoverable_and_unrecoverable_errors():
    error = RecoverableError("lost", "poplar_recoverable_runtime_error", "run", "IPU_RESET")
    assert isinstance(error, Error) and error.recovery_action == "IPU_RESET"
    assert issubclass(UnrecoverableError, Error) and not issubclass(UnrecoverableError, RecoverableError)
    for original in (error, UnrecoverableError("gone", "kind", "there")):
        again = pickle.loads(pickle.dumps(original))
        assert type(again) is type(original) and vars(again) == vars(original) and str(again) == str(original)


@pytest.fixture
def restored_level():
    level = notices.logger.level
    yield
    notices.logger.setLevel(level)


def test_log_levels(restored_level, capsys):
    logger = logging.getLogger("poptorch")
    for given, expected in {"ERR": "error", "off": None, "WARN": "warning", 1: "debug", 3: "warning", 6: None}.items():
        notices.setLogLevel(given)
        for name in ("debug", "info", "warning", "error"):
            getattr(logger, name)("said at %s", name)
        said = [line.split()[-1] for line in capsys.readouterr().err.splitlines()]
        order = ["debug", "info", "warning", "error"]
        assert said == (order[order.index(expected) :] if expected else [])
    for wrong in ("LOUD", 5, -1, None):
        with pytest.raises(ValueError, match="not one of TRACE, DEBUG, INFO, WARN, ERR, OFF"):
            notices.setLogLevel(wrong)


def test_a_notice_is_said_once(restored_level, capsys):
    notices.setLogLevel("WARN")
    notices._said.discard("a key")
    assert notices.once("a key", "first") is True
    assert notices.once("a key", "second") is False
    err = capsys.readouterr().err
    assert err.count("\n") == 1 and err.rstrip().endswith("first") and "[poptorch] [WARNING]" in err


# Forks of one process that has imported torch; poptorch reads the variable in each.
LEVELS = """
import os, sys, torch
for value in sys.argv[1:]:
    if os.fork() == 0:
        os.environ["POPTORCH_LOG_LEVEL"] = value
        from poptorch import notices
        print(notices.logger.level, flush=True)
        os._exit(0)
    assert os.wait()[1] == 0
"""


def test_the_environment_sets_the_level():
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-c", LEVELS, "ERR", "info", "noise"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    assert [int(line) for line in done.stdout.split()] == [logging.ERROR, logging.INFO, logging.WARN]
    (said,) = done.stderr.splitlines()
    assert "POPTORCH_LOG_LEVEL" in said and "noise" in said


def test_checks_of_the_contract_survive_optimised_python():
    """`python -O` drops assert statements: what the contract promises is raised by checks.require."""
    invariants = {"engine/updating/optimizer.py"}  # of the runtime itself
    package = pathlib.Path(notices.__file__).parent
    found = {
        str(path.relative_to(package))
        for path in package.rglob("*.py")
        if any(isinstance(node, ast.Assert) for node in ast.walk(ast.parse(path.read_text())))
    }
    assert found == invariants
