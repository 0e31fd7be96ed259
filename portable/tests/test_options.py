"""poptorch.Options: names, signatures, defaults, checks, freezing, text forms, and the fate of every option."""

from __future__ import annotations

import copy
import inspect
import json
import logging
import pickle

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from poptorch import enums, inferenceModel, notices, option_effects, popart_keys, trainingModel
from poptorch.options import ConfigFileError, Options, TensorLocationSettings, checked
from poptorch.poptorch_core import Error
from poptorch.strategies import PipelinedExecution, ShardedExecution

# Facts of the published API 3.4: accessor -> parameters.
SIGNATURES = {
    "anchorTensor": "(short_name, long_name, output_mode=None, output_return_period=1)",
    "appendToLocationExcludes": "(*excludes)",
    "autoRoundNumIPUs": "(auto_round_num_ipus=True)",
    "broadcastBuffers": "(broadcast_buffers=True)",
    "connectionType": "(connection_type)",
    "deviceIterations": "(device_iterations)",
    "disableModuleNamescope": "()",
    "enableExecutableCaching": "(path)",
    "enableProfiling": "(profile_dir=None)",
    "enableStableNorm": "(enabled)",
    "enableSyntheticData": "(enabled)",
    "inputReplicaGrouping": "(input_group_size, input_group_type)",
    "logCycleCount": "(log_cycle_count)",
    "logDir": "(log_dir)",
    "maxRepeatLogs": "(max_lines)",
    "modelName": "(name)",
    "outputMode": "(output_mode, output_return_period=None)",
    "randomSeed": "(random_seed)",
    "relaxOptimizerAttributesChecks": "(relax=True)",
    "replicationFactor": "(replication_factor)",
    "setAvailableMemoryProportion": "(available_memory_proportion)",
    "setExecutionStrategy": "(strategy)",
    "showCompilationProgressBar": "(show=True)",
    "sourceLocationExcludes": "(excludes)",
    "syncPattern": "(sync_pattern)",
    "updatableNamedBuffers": "(buffers)",
    "useIpuId": "(ipu_id)",
    "useIpuModel": "(use_model)",
    "useOfflineIpuTarget": "(ipu_version=2)",
    "Distributed.configureProcessId": "(process_id, num_processes)",
    "Distributed.disable": "()",
    "Distributed.setEnvVarNames": "(var_num_processes, var_process_id)",
    "Jit.traceModel": "(trace_model)",
    "_Popart.set": "(key, value)",
    "_Popart.setEngineOptions": "(engine_options)",
    "_Popart.setPatterns": "(patterns, level=2)",
    "Precision.enableFloatingPointExceptions": "(enabled)",
    "Precision.enableStochasticRounding": "(enabled)",
    "Precision.halfFloatCasting": "(half_float_casting)",
    "Precision.runningStatisticsAlwaysFloat": "(value)",
    "Precision.setPartialsType": "(dtype)",
    "TensorLocations.numIOTiles": "(num_tiles)",
    "TensorLocations.setAccumulatorLocation": "(location)",
    "TensorLocations.setActivationLocation": "(location)",
    "TensorLocations.setOptimizerLocation": "(location)",
    "TensorLocations.setWeightLocation": "(location)",
    "Training.accumulationAndReplicationReductionType": "(reduction_type)",
    "Training.gradientAccumulation": "(gradient_accumulation)",
    "Training.setAutomaticLossScaling": "(enabled)",
    "Training.setConvolutionDithering": "(enabled)",
    "Training.setMeanAccumulationAndReplicationReductionStrategy": "(mean_reduction_strategy)",
}
OTHER_METHODS = {
    "clone": "()",
    "defaultOutputMode": "()",
    "from_json": "(string)",
    "loadFromFile": "(filepath)",
    "toDict": "()",
    "_Popart.checkIsFrozen": "(option=None)",
}
# A value for every option, and the stored names in which it shows.
EXAMPLES = {
    "anchorTensor": ("grad", "Gradient___x"),
    "appendToLocationExcludes": ("/lib/",),
    "autoRoundNumIPUs": (),
    "broadcastBuffers": (False,),
    "connectionType": (enums.ConnectionType.OnDemand,),
    "deviceIterations": (3,),
    "disableModuleNamescope": (),
    "enableExecutableCaching": ("cache",),
    "enableProfiling": ("profile",),
    "enableStableNorm": (True,),
    "enableSyntheticData": (True,),
    "inputReplicaGrouping": (1, enums.CommGroupType.Orthogonal),
    "logCycleCount": (True,),
    "logDir": ("logs",),
    "maxRepeatLogs": (None,),
    "modelName": ("gpt",),
    "outputMode": (enums.OutputMode.Sum,),
    "randomSeed": (5,),
    "relaxOptimizerAttributesChecks": (),
    "replicationFactor": (2,),
    "setAvailableMemoryProportion": ({"IPU0": 0.25},),
    "setExecutionStrategy": (enums.AutoStage.AutoIncrement,),
    "showCompilationProgressBar": (False,),
    "sourceLocationExcludes": (["/lib/"],),
    "syncPattern": (enums.SyncPattern.ReplicaAndLadder,),
    "updatableNamedBuffers": (["buffer"],),
    "useIpuId": (1,),
    "useIpuModel": (True,),
    "useOfflineIpuTarget": (),
    "Distributed.configureProcessId": (1, 2),
    "Distributed.disable": (),
    "Distributed.setEnvVarNames": ("SOME_SIZE", "SOME_RANK"),
    "Jit.traceModel": (False,),
    "_Popart.set": ("outlineThreshold", 10.0),
    "_Popart.setEngineOptions": ({"debug.x": "true"},),
    "_Popart.setPatterns": ({"TiedGather": True},),
    "Precision.enableFloatingPointExceptions": (True,),
    "Precision.enableStochasticRounding": (True,),
    "Precision.halfFloatCasting": (enums.HalfFloatCastingBehavior.HalfUpcastToFloat,),
    "Precision.runningStatisticsAlwaysFloat": (False,),
    "Precision.setPartialsType": (torch.float16,),
    "TensorLocations.numIOTiles": (64,),
    "TensorLocations.setAccumulatorLocation": (TensorLocationSettings().useOnChipStorage(),),
    "TensorLocations.setActivationLocation": (TensorLocationSettings().useOnChipStorage(False),),
    "TensorLocations.setOptimizerLocation": (TensorLocationSettings().useReplicatedTensorSharding(),),
    "TensorLocations.setWeightLocation": (TensorLocationSettings().minElementsForOffChip(8),),
    "Training.accumulationAndReplicationReductionType": (enums.ReductionType.Sum,),
    "Training.gradientAccumulation": (4,),
    "Training.setAutomaticLossScaling": (True,),
    "Training.setConvolutionDithering": (True,),
    "Training.setMeanAccumulationAndReplicationReductionStrategy": (enums.MeanReductionStrategy.Running,),
}
GROUPS = ("Training", "Distributed", "Jit", "Precision", "TensorLocations", "_Popart")


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
    yield records
    notices.logger.removeHandler(handler)


def accessor(options: Options, name: str):
    for part in name.split("."):
        options = getattr(options, part)
    return options


def parameters(method) -> str:
    signature = inspect.signature(method)
    plain = [parameter.replace(annotation=inspect.Parameter.empty) for parameter in signature.parameters.values()]
    return str(signature.replace(parameters=plain, return_annotation=inspect.Signature.empty))


@pytest.mark.parametrize("name", sorted({**SIGNATURES, **OTHER_METHODS}))
def test_signature(name):
    assert parameters(accessor(Options(), name)) == {**SIGNATURES, **OTHER_METHODS}[name]


def test_section13_the_setters_are_those_of_the_api_and_each_has_a_fate():
    options = Options()
    found = {name for name in dir(options) if getattr(getattr(options, name, None), "is_option", False)}
    for group in GROUPS:
        part = getattr(options, group)
        found |= {f"{group}.{n}" for n in dir(part) if getattr(getattr(part, n, None), "is_option", False)}
    assert found == set(SIGNATURES)
    # the fate of _Popart.set depends on its key
    assert set(option_effects.EFFECTS) == set(SIGNATURES) - {"_Popart.set"}


def test_section13_defaults():
    options = Options()
    stored = {
        "replication_factor": 1,
        "input_group_size": 1,
        "input_cgt": enums.CommGroupType.Consecutive,
        "broadcast_buffers": True,
        "device_iterations": 1,
        "log_dir": ".",
        "max_repeat_logs": 4,
        "auto_round_num_ipus": False,
        "anchored_tensors": {},
        "output_mode": enums.OutputMode.Default,
        "output_return_period": 1,
        "connection_type": enums.ConnectionType.Always,
        "sync_pattern": enums.SyncPattern.Full,
        "available_memory_proportion": {},
    }
    assert {name: getattr(options, name) for name in stored} == stored
    training = options.Training
    assert training.gradient_accumulation == 1
    assert training.accumulation_and_replication_reduction_type is enums.ReductionType.Mean
    assert training.meanAccumulationAndReplicationReductionStrategy is enums.MeanReductionStrategy.Post
    distributed = options.Distributed
    assert (distributed.num_distributed_processes, distributed.distributed_process_id) == (1, 0)
    assert distributed.ipuof_configs == {}
    for name in ("model_name", "use_model", "ipu_id", "ipu_version", "random_seed"):
        assert not options.exists(name)
        with pytest.raises(AttributeError, match=name):
            getattr(options, name)
    assert options.defaultOutputMode() and not Options().outputMode(enums.OutputMode.All).defaultOutputMode()
    assert options.Precision.stochastic_rounding is False


@pytest.mark.parametrize("name", sorted(SIGNATURES))
def test_section13_setters_return_their_object_and_refuse_frozen_options(name):
    options = Options()
    owner = accessor(options, name.rpartition(".")[0]) if "." in name else options
    assert accessor(options, name)(*EXAMPLES[name]) is owner
    before = repr(options.toDict())
    options.freeze()
    with pytest.raises(AttributeError, match="Can't modify frozen Options"):
        accessor(options, name)(*EXAMPLES[name])
    assert repr(options.toDict()) == before
    clone = options.clone()
    accessor(clone, name)(*EXAMPLES[name])  # a copy is not frozen
    assert repr(clone.toDict()) == before


def test_section13_freezing_reaches_location_settings_and_copies_are_independent():
    location = TensorLocationSettings().useOnChipStorage(False)
    options = Options().deviceIterations(2)
    options.TensorLocations.setOptimizerLocation(location)
    options.Precision.enableStochasticRounding(True)
    options.freeze()
    with pytest.raises(AttributeError, match="Can't modify frozen Options"):
        location.useIOTilesToLoad()
    with pytest.raises(AttributeError, match="Can't modify frozen Options"):
        options.device_iterations = 4
    for copied in (options.clone(), copy.deepcopy(options)):
        copied.deviceIterations(5).Training.gradientAccumulation(6)
        copied.Precision.enableStochasticRounding(False)
        assert copied._Popart.get("enableStochasticRounding") is False
    assert options.device_iterations == 2 and options.Training.gradient_accumulation == 1
    assert options.Precision.stochastic_rounding is True
    assert pickle.loads(pickle.dumps(options)).toDict() == options.toDict()


def test_section13_assignment_is_type_checked():
    options = Options()
    options.set(device_iterations=3)
    options.replication_factor = 2
    assert (options.device_iterations, options.replication_factor) == (3, 2)
    for wrong in (2.0, "2", True, None):
        with pytest.raises(AssertionError, match="Unexpected type .* for option device_iterations. Expected .*int"):
            options.set(device_iterations=wrong)
    with pytest.raises(AssertionError, match="Unexpected type .* for option broadcast_buffers. Expected .*bool"):
        options.broadcast_buffers = 1
    with pytest.raises(AssertionError, match="Invalid option batch"):
        options.set(batch=3)
    with pytest.raises(AttributeError, match="Invalid option 'batch'"):
        options.batch = 3
    with pytest.raises(AttributeError, match="deviceIterations is a method"):
        options.deviceIterations = 3


@pytest.mark.parametrize(
    ("name", "args", "error"),
    [
        ("deviceIterations", (0,), AssertionError),
        ("deviceIterations", (2.0,), AssertionError),
        ("replicationFactor", (-1,), AssertionError),
        ("Training.gradientAccumulation", (0,), AssertionError),
        ("Training.gradientAccumulation", (True,), AssertionError),
        ("Training.accumulationAndReplicationReductionType", (enums.ReductionType.NoReduction,), ValueError),
        ("Training.accumulationAndReplicationReductionType", ("mean",), ValueError),
        ("Training.setMeanAccumulationAndReplicationReductionStrategy", (1,), AssertionError),
        ("TensorLocations.numIOTiles", (31,), AssertionError),
        ("TensorLocations.numIOTiles", (33,), AssertionError),
        ("TensorLocations.numIOTiles", (194,), AssertionError),
        ("TensorLocations.setWeightLocation", ("chip",), AssertionError),
        ("setAvailableMemoryProportion", ({"ipu0": 0.5},), AssertionError),
        ("setAvailableMemoryProportion", ({"IPU0": 1.5},), AssertionError),
        ("setAvailableMemoryProportion", ({"IPU0": -0.1},), AssertionError),
        ("setAvailableMemoryProportion", ({0: 0.5},), AssertionError),
        ("outputMode", (enums.OutputMode.EveryN,), AssertionError),
        ("outputMode", (3,), AssertionError),
        ("connectionType", (1,), AssertionError),
        ("syncPattern", ("full",), AssertionError),
        ("useIpuId", (-1,), AssertionError),
        ("randomSeed", ("5",), AssertionError),
        ("inputReplicaGrouping", (1, enums.CommGroupType.All), ValueError),
        ("inputReplicaGrouping", (2, enums.CommGroupType.Consecutive), ValueError),
        ("inputReplicaGrouping", (0, enums.CommGroupType.Consecutive), AssertionError),
        ("Jit.traceModel", (True,), ValueError),
        ("Precision.setPartialsType", (torch.int8,), ValueError),
        ("Precision.setPartialsType", (torch.bfloat16,), ValueError),
        ("Precision.enableStochasticRounding", (1,), AssertionError),
        ("setExecutionStrategy", ("pipelined",), AssertionError),
        ("Distributed.configureProcessId", (2, 2), AssertionError),
    ],
)
def test_section13_wrong_values(name, args, error):
    options = Options()
    before = options.toDict()
    with pytest.raises(error):
        accessor(options, name)(*args)
    assert options.toDict() == before


@settings(deadline=None, max_examples=60)
@given(replicas=st.integers(1, 12), size=st.integers(1, 14))
def test_section2_input_groups_divide_the_replicas(replicas, size):
    options = Options().replicationFactor(replicas)
    if size <= replicas and replicas % size == 0:
        options.inputReplicaGrouping(size, enums.CommGroupType.Orthogonal).deviceIterations(3)
        options.Training.gradientAccumulation(2)
        assert options.input_batch_multiplier == 3 * 2 * replicas // size
        options.validate()
        options.replicationFactor(replicas * size + 1)
        if size > 1:
            with pytest.raises(ValueError, match="group size"):
                options.validate()
    else:
        with pytest.raises(ValueError, match="group size"):
            options.inputReplicaGrouping(size, enums.CommGroupType.Orthogonal)


def test_section3_every_n_divides_the_device_iterations():
    options = Options().deviceIterations(6).outputMode(enums.OutputMode.EveryN, 3)
    options.validate()
    assert options.output_return_period == 3
    with pytest.raises(Error, match="multiple of output_return_period"):
        options.deviceIterations(4).validate()
    assert options.outputMode(enums.OutputMode.Sum).output_return_period == 1


def test_anchors_take_the_output_mode_unless_given_one():
    options = Options().outputMode(enums.OutputMode.Sum)
    options.anchorTensor("a", "long").anchorTensor("b", "longer", enums.OutputMode.EveryN, 2)
    assert options.anchored_tensors == {
        "a": ("long", enums.OutputMode.Sum, 1),
        "b": ("longer", enums.OutputMode.EveryN, 2),
    }
    with pytest.raises(AssertionError):
        options.anchorTensor("c", "long", enums.OutputMode.EveryN, None)


def test_random_seed_seeds_torch_on_the_host():
    options = Options().randomSeed(11)
    first = torch.rand(3)
    torch.manual_seed(11)
    assert torch.equal(first, torch.rand(3))
    assert options.exists("random_seed") and options.random_seed == 11


def test_section13_distributed_reads_the_environment(monkeypatch):
    monkeypatch.setenv("OMPI_COMM_WORLD_SIZE", "4")
    monkeypatch.setenv("OMPI_COMM_WORLD_RANK", "3")
    distributed = Options().Distributed
    assert (distributed.numProcesses, distributed.processId) == (4, 3)
    monkeypatch.setenv("MY_SIZE", "2")
    distributed.setEnvVarNames("MY_SIZE", "MY_RANK")
    assert (distributed.numProcesses, distributed.processId) == (2, 0)
    assert distributed.disable().numProcesses == 1
    monkeypatch.setenv("OMPI_COMM_WORLD_RANK", "x")
    with pytest.raises(ValueError, match="OMPI_COMM_WORLD_RANK"):
        Options()


def test_section13_strategy_or_auto_stage():
    options = Options()
    assert isinstance(options.execution_strategy, PipelinedExecution)
    assert options.execution_strategy.auto_stage is enums.AutoStage.SameAsIpu
    options.setExecutionStrategy(enums.AutoStage.AutoIncrement)
    assert options.execution_strategy.auto_stage is enums.AutoStage.AutoIncrement
    sharded = ShardedExecution("A")
    assert options.setExecutionStrategy(sharded).execution_strategy is sharded
    assert options.toDict()["execution_mode"] == 1


def test_to_dict_is_flat_plain_data():
    options = Options().outputMode(enums.OutputMode.All).setAvailableMemoryProportion({"IPU1": 0.5})
    options.Training.gradientAccumulation(8)
    options._Popart.set("outlineThreshold", 10.0)
    options.TensorLocations.setWeightLocation(TensorLocationSettings().useOnChipStorage(False))
    plain = options.toDict()
    assert plain["output_mode"] == 2 and plain["gradient_accumulation"] == 8
    assert plain["available_memory_proportion"] == {1: 0.5} and plain["outlineThreshold"] == 10.0
    assert plain["location_weight"] == {"onChip": False}
    json.dumps(plain)


# ---- text forms


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


# ---- the fate of each option


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


def test_a_process_of_several_runs_forward_only(monkeypatch):
    monkeypatch.setenv("OMPI_COMM_WORLD_SIZE", "2")
    monkeypatch.setenv("OMPI_COMM_WORLD_RANK", "1")
    model = torch.nn.Linear(1, 1)
    assert torch.equal(inferenceModel(model, Options())(torch.ones(3, 1)), model(torch.ones(3, 1)))
    with pytest.raises(Error, match="training as more than one process is not available yet"):
        trainingModel(model, Options())


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
    assert notices.report_without_effect(options) == names
    assert notices.report_without_effect(options.clone()) == names
    assert len(lines) == 1 and all(name in lines[0] for name in names) and "deviceIterations" not in lines[0]
    assert notices.report_without_effect(Options()) == [] and len(lines) == 1


def test_section13_other_objects_are_no_options():
    with pytest.raises(Error, match="Invalid type: 'options' is of type"):
        checked({"deviceIterations": 2})
    options = Options()
    assert checked(options) is options
