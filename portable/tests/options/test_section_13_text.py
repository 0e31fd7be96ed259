"""Options from text: JSON, files, and POPTORCH_DEFAULT_OPTIONS (section 13)."""

from __future__ import annotations

import pytest

from poptorch import enums
from poptorch.options.executor_options import ConfigFileError, Options


@pytest.fixture(autouse=True)
def bare_environment(monkeypatch):
    for name in ("POPTORCH_DEFAULT_OPTIONS", "OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_RANK"):
        monkeypatch.delenv(name, raising=False)


def test_section13_from_json():
    options = Options().replicationFactor(4)
    options.from_json(
        '{"deviceIterations": 3, "Precision.enableStochasticRounding": true, "outputMode": "poptorch.OutputMode.Sum",'
        ' "inputReplicaGrouping": [2, "CommGroupType.Orthogonal"], "updatableNamedBuffers": ["a", "b"]}'
    )
    assert options.device_iterations == 3 and options.Precision.stochastic_rounding
    assert options.output_mode is enums.OutputMode.Sum and options.input_cgt is enums.CommGroupType.Orthogonal
    assert options.updatable_named_buffers == ["a", "b"]
    for bad in ('{"clone": 1}', '{"nothing": 1}', '{"Training.nothing": 1}', '{"__class__.x": 1}'):
        with pytest.raises(AttributeError):
            options.from_json(bad)
    for bad in ("[1]", "{", "3"):
        with pytest.raises(ValueError):
            options.from_json(bad)


def test_section13_load_from_file(tmp_path):
    path = tmp_path / "options.conf"
    path.write_text(
        "# a comment\n\ndeviceIterations(3)\n"
        "Training.gradientAccumulation(gradient_accumulation=4)\n"
        "outputMode(poptorch.OutputMode.EveryN, 3)\n"
        "replicationFactor(2).useIpuModel(True)\n"
        "Precision.setPartialsType(torch.half)\n"
        '_Popart.set("outlineThreshold", 10.0)\n'
        'setExecutionStrategy(poptorch.ShardedExecution(poptorch.Stage("A", "B").ipu(1), "C"))\n'
        "TensorLocations.setOptimizerLocation(poptorch.TensorLocationSettings().useOnChipStorage(False))\n"
    )
    options = Options().loadFromFile(str(path))
    assert (options.device_iterations, options.Training.gradient_accumulation) == (3, 4)
    assert (options.output_mode, options.output_return_period) == (enums.OutputMode.EveryN, 3)
    assert options.replication_factor == 2 and options.use_model is True
    assert options._Popart.get("partialsTypeMatMuls") == "half" and options._Popart.get("outlineThreshold") == 10.0
    assert options.execution_strategy.stages == [(["A", "B"], 1), (["C"], None)]
    assert options.TensorLocations.location_optimizer.toDict() == {"onChip": False}


@pytest.mark.parametrize(
    "line",
    [
        "deviceIterations(0)",
        "deviceIterations(",
        "deviceIterations = 3",
        "deviceIteration(3)",
        "nothing",
        "clone()",
        "freeze()",
        'deviceIterations(__import__("os").getpid())',
        'setExecutionStrategy(poptorch.Stage("A")._blocks.append("B"))',
        "deviceIterations(**{})",
        "outputMode(poptorch.OutputMode.Nothing)",
        "Training.Training.gradientAccumulation(2)",
    ],
)
def test_section13_a_bad_line_is_quoted(tmp_path, line):
    path = tmp_path / "options.conf"
    path.write_text(f"replicationFactor(2)\n{line}\n")
    with pytest.raises(ConfigFileError) as caught:
        Options().loadFromFile(str(path))
    assert repr(line) in str(caught.value) and f"{path}:2" in str(caught.value)


def test_section13_default_options_from_the_environment(tmp_path, monkeypatch):
    monkeypatch.setenv("POPTORCH_DEFAULT_OPTIONS", '{"deviceIterations": 7}')
    assert Options().device_iterations == 7
    path = tmp_path / "options.conf"
    path.write_text("deviceIterations(8)\n")
    monkeypatch.setenv("POPTORCH_DEFAULT_OPTIONS", str(path))
    assert Options().device_iterations == 8
    for bad in (str(tmp_path / "missing"), '{"x": 1}', '{"deviceIterations": 0}', "{"):
        monkeypatch.setenv("POPTORCH_DEFAULT_OPTIONS", bad)
        with pytest.raises(ConfigFileError, match="POPTORCH_DEFAULT_OPTIONS"):
            Options()
