"""From the flags to what the runtime is told: options, and the passes over the model."""

import popart
import poptorch
import pytest
import torch

from arguments import parse_train_args
from model.config import GPT2Config
from model.gpt2 import GPT2LMHeadModel
from model.ipu_options import forward_options, training_options
from training.run import place_model

# The flags of seed 003's run/pretraining_small.sh.
SMALL = (
    "--model gpt2 --max-len 1024 --optimizer AdamW --learning-rate 0.00015 --lr-schedule cosine --lr-warmup 0.01 "
    "--layers-per-ipu 0 4 4 4 --matmul-proportion 0.15 0.15 0.15 0.15 --ipus-per-replica 4 --replication-factor 4 "
    "--epochs 20 --gradient-accumulation 2048 --device-iterations 8 --batch-size 1 --enable-sequence-serialized True "
    "--remap-logit True --embedding-serialization-factor 4 --recompute-checkpoint-every-layer True "
    "--enable-half-partials True --train-path generated --replicated-tensor-sharding True --compile-only False"
)


def small(*more):
    return parse_train_args([*SMALL.split(), *more])


def test_training_options_of_the_small_model():
    options = training_options(small("--executable-cache-dir", "cache", "--seed", "7"))
    assert options.device_iterations == 8 and options.replication_factor == 4
    assert options.Training.gradient_accumulation == 2048
    assert options.Training.accumulation_and_replication_reduction_type == poptorch.ReductionType.Mean
    assert options.output_mode == poptorch.OutputMode.Sum
    assert options.auto_round_num_ipus and options.random_seed == 7
    assert options.Precision.stochastic_rounding
    assert list(options.available_memory_proportion.values()) == [0.15] * 4
    assert isinstance(options.execution_strategy, poptorch.PipelinedExecution)
    assert options.execution_strategy.auto_stage is poptorch.AutoStage.AutoIncrement
    location = options.TensorLocations.location_optimizer.toDict()
    assert location == {"onChip": 0, "useReplicatedTensorSharding": 1}
    expected = {
        "disableGradAccumulationTensorStreams": True,
        "outlineThreshold": 10.0,
        "accumulateOuterFragmentSettings.schedule": int(popart.AccumulateOuterFragmentSchedule.OverlapMemoryOptimized),
        "accumulateOuterFragmentSettings.excludedVirtualGraphs": ["0"],
        "subgraphCopyingStrategy": int(popart.SubgraphCopyingStrategy.JustInTime),
        "decomposeGradSum": True,
        "scheduleNonWeightUpdateGradientConsumersEarly": True,
        "saveInitializersToFile": "weights.bin",
        "partialsTypeMatMuls": "half",
        "enableEngineCaching": True,
        "cachePath": "cache",
    }
    assert {key: options._Popart.get(key) for key in expected} == expected
    patterns = options.toDict()["patterns"]
    assert all(patterns[name] for name in ("TiedGather", "TiedGatherAccumulate", "UpdateInplacePrioritiesForIpu"))


def test_optimizer_state_on_chip_and_whole():
    flags = ["--optimizer-state-offchip", "False", "--replicated-tensor-sharding", "False"]
    location = training_options(small(*flags)).TensorLocations.location_optimizer.toDict()
    assert location == {"onChip": 1, "useReplicatedTensorSharding": 0}


def test_compile_only_needs_no_device():
    options = training_options(small("--compile-only", "True"))
    assert options.connection_type is poptorch.ConnectionType.Never


def test_forward_options_have_no_pipeline_to_fill():
    options = forward_options(small())
    assert isinstance(options.execution_strategy, poptorch.ShardedExecution)
    assert options.Training.gradient_accumulation == 1


def compile_narrow(vocabulary, length, block):
    """The program of the small script's flags for a narrow model and sequences of `length`, the loss in blocks."""
    config = GPT2Config(
        vocab_size=vocabulary, real_vocab_size=vocabulary - 8, n_positions=length, n_embd=8, n_layer=12, n_head=1
    )
    args = small("--max-len", str(length), "--serialized-seq-len", str(block), "--gradient-accumulation", "9")
    args.device_iterations = args.replication_factor = 1
    model = place_model(GPT2LMHeadModel(config), args)
    executor = poptorch.trainingModel(model, training_options(args), torch.optim.SGD(model.parameters(), lr=0.1))
    ids = torch.ones(9, length, dtype=torch.int32)
    executor.compile(input_ids=ids, labels=ids)
    return executor.program


@pytest.fixture(scope="module")
def compiled():
    return compile_narrow(vocabulary=2048, length=16, block=4)


def test_every_layer_is_recomputed(compiled):
    segments = [segment for stage in compiled.stages for segment in stage.segments]
    assert sum(segment.recompute for segment in segments) == 12


def test_head_and_loss_are_serialised_and_the_remap_does_not_hold_the_logits(compiled):
    nodes = [node for stage in compiled.stages for segment in stage.segments for node in segment.module.graph.nodes]
    fused = [node for node in nodes if getattr(node.target, "__name__", "") == "linear_cross_entropy"]
    assert len(fused) == 4  # 16 positions in blocks of 4
    assert all(node.args[-1] == 4 for node in fused)  # --embedding-serialization-factor
    assert not [node for node in nodes if "cross_entropy_loss" in str(node.target)]


def test_the_remap_is_in_the_program_where_nothing_is_fused():
    program = compile_narrow(vocabulary=64, length=8, block=8)
    nodes = [node for stage in program.stages for part in stage.segments for node in part.module.graph.nodes]
    targets = " ".join(str(node.target) for node in nodes)
    assert "RemapCE" in targets and "serialized_matmul" in targets


def test_automatic_loss_scaling_starts_at_one():
    args = small("--auto-loss-scaling", "--loss-scaling", "1024")
    assert training_options(args).toDict()["automaticLossScalingSettings.enabled"] is True
    assert not training_options(small()).toDict()["automaticLossScalingSettings.enabled"]
