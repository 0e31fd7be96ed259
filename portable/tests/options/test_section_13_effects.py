"""The fate of every option and of every PopART key: honoured, named once as without effect, or refused (section 13)."""

from __future__ import annotations

import json
import logging
import pathlib

import pytest
import torch
from option_examples import EXAMPLES, accessor
from programs import train

import poptorch
from poptorch import enums, inferenceModel, notices, option_effects, popart_keys, trainingModel
from poptorch.options.executor_options import Options
from poptorch.poptorch_core import Error


@pytest.fixture(autouse=True)
def bare_environment(monkeypatch):
    for name in ("POPTORCH_DEFAULT_OPTIONS", "OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_RANK"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def lines():
    """Messages logged during the test."""
    records: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: records.append(record.getMessage())
    notices.logger.addHandler(handler)
    level = notices.logger.level
    yield records
    notices.logger.setLevel(level)
    notices.logger.removeHandler(handler)


@pytest.mark.parametrize("name", sorted(option_effects.EFFECTS))
def test_nothing_is_swallowed(name):
    options = Options()
    accessor(options, name)(*EXAMPLES[name])
    effect = option_effects.EFFECTS[name]
    reported = option_effects.without_effect(options)
    assert reported == ([name] if effect.kind == option_effects.WITHOUT_EFFECT else [])
    if effect.kind == option_effects.REFUSED and not name.endswith("setEnvVarNames"):  # its variables are not set
        with pytest.raises(Error, match=effect.why.split(":")[0]):
            trainingModel(torch.nn.Linear(1, 1), options)
    options.validate()


def test_a_process_of_several_runs_forward_alone_and_must_meet_the_others_to_train(monkeypatch):
    monkeypatch.setenv("OMPI_COMM_WORLD_SIZE", "2")
    monkeypatch.setenv("OMPI_COMM_WORLD_RANK", "1")
    monkeypatch.delenv("MASTER_ADDR", raising=False)
    model = torch.nn.Linear(1, 1)
    assert torch.equal(inferenceModel(model, Options())(torch.ones(3, 1)), model(torch.ones(3, 1)))
    with pytest.raises(Error, match="process 1 of 2, but MASTER_ADDR"):
        train(lambda m, x: poptorch.identity_loss((m.w * x).sum(), "sum"), torch.ones(1))


def test_refusals_are_told_together():
    options = Options()
    options._Popart.set("globalReplicationFactor", 2)
    options._Popart.set("compileEngine", False)
    with pytest.raises(Error) as caught:
        options.validate()
    assert "globalReplicationFactor" in str(caught.value) and "compileEngine" in str(caught.value)


def example_of(kind: str):
    return {"bool": True, "uint64": 3, "enum": 1, "double": 0.5, "string": "x", "container": ["x"]}[kind]


@pytest.mark.parametrize("key", sorted(popart_keys.TYPES))
def test_every_popart_key_is_reported_or_refused_or_a_setters(key):
    options = Options()
    options._Popart.set(key, example_of(popart_keys.TYPES[key]))
    options._Popart.check_keys()
    reported = f"_Popart.set({key!r})" in option_effects.without_effect(options)
    assert reported != (key in popart_keys.REFUSED or key in popart_keys.STORED_BY_SETTERS)
    if key in popart_keys.REFUSED and key != "compileEngine":
        with pytest.raises(Error, match=key.replace(".", r"\.")):
            options.validate()


def test_section13_popart_keys_are_checked_at_validation_only():
    for key, kind in popart_keys.TYPES.items():
        for other in {"bool", "uint64", "container", "string", "double"} - {kind}:
            if (kind, other) == ("enum", "uint64"):
                continue
            options = Options()
            options._Popart.set(key, example_of(other))  # no complaint yet
            with pytest.raises(Error, match="expects a value of type"):
                options.validate()
    options = Options()
    options._Popart.set("noSuchOption", 1)
    with pytest.raises(Error, match="unknown option 'noSuchOption'"):
        options.validate()
    options = Options()
    options._Popart.set("compileEngine", False)
    with pytest.raises(Error, match="compileEngine"):
        options.validate()


def test_section13_number_of_popart_keys():
    counts = {"bool": 54, "uint64": 36, "container": 11, "string": 9, "enum": 12, "double": 5}
    kinds = list(popart_keys.TYPES.values())
    assert {kind: kinds.count(kind) for kind in counts} == counts and len(kinds) == sum(counts.values())


def test_options_without_effect_are_named_once_in_one_line(lines):
    options = Options().syncPattern(enums.SyncPattern.SinglePipeline).modelName("named-once").deviceIterations(2)
    options._Popart.set("saveInitializersToFile", "weights.bin")
    options._Popart.setPatterns({"TiedGather": True})
    names = ["_Popart.setPatterns", "modelName", "syncPattern", "_Popart.set('saveInitializersToFile')"]
    notices._said.clear()
    notices.setLogLevel("INFO")
    assert notices.report_without_effect(options) == names
    assert notices.report_without_effect(options.clone()) == names
    assert len(lines) == 1 and all(name in lines[0] for name in names) and "deviceIterations" not in lines[0]
    assert notices.report_without_effect(Options()) == [] and len(lines) == 1


def test_what_every_start_would_say_is_one_short_line(lines, monkeypatch):
    """Options without effect, half on a CPU, AdamW's bias: told when compiled, and not again by a second executor."""
    monkeypatch.setenv("POPTORCH_PORTABLE_DEVICE", "cpu")
    notices._said.clear()
    notices._differences.clear()
    options = Options().syncPattern(enums.SyncPattern.SinglePipeline).modelName("short").logDir("here")

    class Model(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = torch.nn.Linear(2, 1).half()

        def forward(self, x):
            return poptorch.identity_loss(self.layer(x).float(), reduction="mean")

    model = Model()
    optimizer = poptorch.optim.AdamW(model.parameters(), bias_correction=False)
    executor = trainingModel(model, options, optimizer)
    executor.compile(torch.ones(1, 2).half())
    (line,) = lines
    assert line.startswith("3 options have no effect off-IPU; AdamW corrects the bias all the same; Half is slow")
    assert "\n" not in line and "POPTORCH_LOG_LEVEL=INFO" in line
    inferenceModel(model, options.clone()).compile(torch.ones(1, 2).half())
    other = Options().modelName("short").useIpuId(3)
    inferenceModel(model, other).compile(torch.ones(1, 2).half())
    assert lines[1:] == ["useIpuId has no effect off-IPU (POPTORCH_LOG_LEVEL=INFO: more)"]


def test_half_float_casting_is_deprecated(lines):
    notices._said.clear()
    for _ in range(2):
        Options().Precision.halfFloatCasting(enums.HalfFloatCastingBehavior.HalfUpcastToFloat)
    assert lines == ["Precision.halfFloatCasting is deprecated and has no effect."]


def test_environment_variables_without_effect_are_named_once(lines, monkeypatch):
    variables = json.loads(pathlib.Path(__file__).parents[1].joinpath("poptorch_api.json").read_text())[
        "environment_variables"
    ]
    elsewhere = {"POPLAR_ENGINE_OPTIONS", "POPTORCH_DEFAULT_OPTIONS", "POPTORCH_LOG_LEVEL"}
    assert set(notices.VARIABLES_WITHOUT_EFFECT) == {name for name in variables if " " not in name} - elsewhere
    for name in notices.VARIABLES_WITHOUT_EFFECT:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("POPTORCH_CACHE_DIR", "cache")
    notices._said.clear()
    for _ in range(2):
        inferenceModel(torch.nn.Linear(1, 1))
    assert lines == ["These environment variables have no effect off-IPU: POPTORCH_CACHE_DIR."]
