"""poptorch.Options: names, signatures, defaults, checks, freezing, text forms, and the fate of every option."""

from __future__ import annotations

import copy
import inspect
import json
import pickle

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from option_examples import EXAMPLES, GROUPS, OTHER_METHODS, SIGNATURES, accessor

import poptorch
from poptorch import enums, option_effects
from poptorch.options.executor_options import Options, TensorLocationSettings, checked
from poptorch.options.strategies import PipelinedExecution, ShardedExecution, Stage
from poptorch.poptorch_core import Error


@pytest.fixture(autouse=True)
def bare_environment(monkeypatch):
    for name in ("POPTORCH_DEFAULT_OPTIONS", "OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_RANK"):
        monkeypatch.delenv(name, raising=False)


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
    assert options.TensorLocations.location_weight["onChip"] is False
    with pytest.raises(KeyError, match="minElementsForOffChip"):
        options.TensorLocations.location_weight["minElementsForOffChip"]
    json.dumps(plain)


def test_section13_other_objects_are_no_options():
    with pytest.raises(Error, match="Invalid type: 'options' is of type"):
        checked({"deviceIterations": 2})
    options = Options()
    assert checked(options) is options


def test_an_executor_resolves_the_default_output_mode():
    options = Options().anchorTensor("a", "out")
    inference = poptorch.inferenceModel(torch.nn.Linear(2, 2), options)
    training = poptorch.trainingModel(torch.nn.Linear(2, 2), options)
    assert inference.options.output_mode is enums.OutputMode.All
    assert training.options.output_mode is enums.OutputMode.Final and not training.options.defaultOutputMode()
    assert training.options.anchored_tensors["a"] == ("out", enums.OutputMode.Final, 1)
    assert options.output_mode is enums.OutputMode.Default and options.defaultOutputMode()
    assert options.anchored_tensors["a"][1] is enums.OutputMode.Default


def test_an_anchor_without_a_mode_takes_that_of_the_outputs_though_it_is_set_later():
    options = Options().deviceIterations(4).anchorTensor("a", "out").outputMode(enums.OutputMode.EveryN, 2)
    found = poptorch.inferenceModel(torch.nn.Linear(2, 2), options).options
    assert found.output_mode is enums.OutputMode.EveryN
    assert found.anchored_tensors["a"] == ("out", enums.OutputMode.EveryN, 2)


def filled(reverse: bool) -> Options:
    """The same options, with the setters called in one order or the other."""
    options = Options()
    setters = [
        lambda: options.deviceIterations(4),
        lambda: options.setAvailableMemoryProportion({"IPU0": 0.5, "IPU1": 0.25}),
        lambda: options._Popart.set("outlineThreshold", 10.0),
        lambda: options._Popart.set("enableOutlining", False),
        lambda: options._Popart.setPatterns({"TiedGather": True, "Gelu": False}),
        lambda: options.setExecutionStrategy(PipelinedExecution(Stage("0").ipu(1), Stage("1"))),
        lambda: options.anchorTensor("a", "out"),
        lambda: options.TensorLocations.setWeightLocation(TensorLocationSettings().useOnChipStorage(False)),
    ]
    for setter in reversed(setters) if reverse else setters:
        setter()
    return options


def test_equal_options_print_alike():
    text = str(filled(False))
    assert text == str(filled(True)) == str(filled(False).clone()) and "0x" not in text
    assert text.startswith("Options(") and str(Options()) == str(Options()) != text


def test_what_is_set_shows_in_the_text():
    hidden, shown = [], 0
    for name in SIGNATURES:
        options = Options()
        accessor(options, name)(*EXAMPLES[name])
        if options.toDict() != Options().toDict():
            shown += 1
            hidden += [name] * (str(options) == str(Options()))
    assert hidden == [] and shown > 20


def test_a_few_lines_of_the_text():
    lines = str(filled(False)).splitlines()
    for line in (
        "device_iterations=4,",
        "output_mode=OutputMode.Default,",
        "Training.gradient_accumulation=1,",
        "execution_strategy=PipelinedExecution(Stage('0').ipu(1), Stage('1')),",
        "_Popart.outlineThreshold=10.0,",
        "_Popart.patterns={'Gelu': False, 'TiedGather': True},",
    ):
        assert f"    {line}" in lines
