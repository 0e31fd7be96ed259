"""PopART session options that programs set with `Options._Popart.set(key, value)`: their types and their fate here.

The keys are facts of the API. What is in neither STORED_BY_SETTERS nor REFUSED has no effect off-IPU: it steers memory,
scheduling or streams of the device.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

_NAMES = {
    "bool": """
        aliasZeroCopy auto_round_num_ipus automaticLossScalingSettings.enabled
        batchSerializationSettings.concatOnExecutionPhaseChange
        batchSerializationSettings.concatOnPipelineStageChange batchSerializationSettings.concatOnVirtualGraphChange
        broadcast_buffers compileEngine constantWeights decomposeGradSum delayVarUpdates
        disableGradAccumulationTensorStreams disableOptimizerStateTensorStreams dotOpNames
        enableDistributedReplicatedGraphs enableEngineCaching enableExplicitIR enableExplicitMainLoops
        enableFloatingPointChecks enableFullyConnectedPass enableGradientAccumulation enableInplaceAmbiguityChecking
        enableLoadAndOffloadRNGState enableMergeExchange enableNonStableSoftmax enableOutlining
        enableOutliningCopyCostPruning enablePipelining enablePrefetchDatastreams enableReplicatedGraphs
        enableSerializedMatmuls enableStableNorm enableStochasticRounding enableSupportedDataTypeCasting
        ensureFp32LossScaleTensor explicitRecomputation exportPoplarComputationGraph exportPoplarVertexGraph
        groupHostSync groupNormStridedChannelGrouping instrumentWithHardwareCycleCounter opxAliasChecking
        opxModifyChecking rearrangeAnchorsOnHost rearrangeStreamsOnHost
        replicatedCollectivesSettings.mergeAllReduceCollectives
        replicatedCollectivesSettings.prepareScheduleForMergingCollectives
        scheduleNonWeightUpdateGradientConsumersEarly separateCallOpPdfs separate_backward_phase
        serial_phases_execution strictOpVersions useHostCopyOps use_model
    """,
    "uint64": """
        accumulateOuterFragmentSettings.schedule accumulationFactor accumulation_and_replication_reduction_type
        automaticLossScalingSettings.updatePeriod batchSerializationSettings.factor compilationProgressTotal
        connection_type defaultBufferingDepth defaultPrefetchBufferingDepth device_iterations distributed_process_id
        executionPhaseSettings.phases executionPhaseSettings.stages execution_mode finalDotOp firstDotOp
        globalReplicaOffset globalReplicationFactor gradient_accumulation input_cgt input_group_size ipu_id
        ipu_version looseThresholdAtPeak max_repeat_logs mergeVarUpdateMemThreshold numIOTiles
        num_distributed_processes output_mode output_return_period random_seed replication_factor swapLimitScheduler
        sync_pattern tensors_liveness transitiveClosureOptimizationThreshold
    """,
    "enum": """
        accumulationAndReplicationReductionType autoRecomputation autodiffSettings.stitchStrategy
        automaticLossScalingSettings.gradientTensorTrackingMethod batchSerializationSettings.batchSchedule
        batchSerializationSettings.method batchSerializationSettings.transformContext
        meanAccumulationAndReplicationReductionStrategy mergeVarUpdate subgraphCopyingStrategy syntheticDataMode
        virtualGraphMode
    """,
    "double": """
        automaticLossScalingSettings.binEdgeLocation automaticLossScalingSettings.thresholdUpperCountProportion
        outlineSequenceBreakCost outlineThreshold timeLimitScheduler
    """,
    "string": """
        cachePath customCodeletCompileFlags kahnTieBreaker logDir log_dir model_name partialsTypeMatMuls
        saveInitializersToFile serializedPoprithmsShiftGraphsDir
    """,
    "container": """
        accumulateOuterFragmentSettings.excludedVirtualGraphs convolutionOptions customCodelets dotChecks
        engineOptions gclOptions hardwareInstrumentations lstmOptions matmulOptions reportOptions
        updatableNamedBuffers
    """,
}
TYPES: dict[str, str] = {key: kind for kind, names in _NAMES.items() for key in names.split()}


def fits(kind: str, value: Any) -> bool:
    """Whether `value` can be given to an option of that kind. Enums of popart are ints."""
    if kind == "bool":
        return isinstance(value, bool)
    if kind in ("uint64", "enum"):
        return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**64
    if kind == "double":
        return isinstance(value, float)
    if kind == "string":
        return isinstance(value, str)
    return isinstance(value, (list, tuple, set, dict))


# Honoured, or stored under these keys by setters of Options, whose fate is theirs too.
STORED_BY_SETTERS = frozenset(
    {
        "automaticLossScalingSettings.binEdgeLocation",
        "automaticLossScalingSettings.enabled",
        "automaticLossScalingSettings.thresholdUpperCountProportion",
        "automaticLossScalingSettings.updatePeriod",
        "enableFloatingPointChecks",
        "enableStochasticRounding",
        "instrumentWithHardwareCycleCounter",
        "syntheticDataMode",
        "updatableNamedBuffers",
    }
)

# The same thing has a setter of Options, whose value is the one in force here.
_HAS_SETTER = {
    "accumulationAndReplicationReductionType": "Training.accumulationAndReplicationReductionType",
    "accumulation_and_replication_reduction_type": "Training.accumulationAndReplicationReductionType",
    "accumulationFactor": "Training.gradientAccumulation",
    "broadcast_buffers": "broadcastBuffers",
    "connection_type": "connectionType",
    "device_iterations": "deviceIterations",
    "distributed_process_id": "Distributed.configureProcessId",
    "enableDistributedReplicatedGraphs": "Distributed.configureProcessId",
    "enableGradientAccumulation": "Training.gradientAccumulation",
    "enableReplicatedGraphs": "replicationFactor",
    "globalReplicaOffset": "Distributed.configureProcessId",
    "globalReplicationFactor": "Distributed.configureProcessId",
    "gradient_accumulation": "Training.gradientAccumulation",
    "input_cgt": "inputReplicaGrouping",
    "input_group_size": "inputReplicaGrouping",
    "meanAccumulationAndReplicationReductionStrategy": "Training.setMeanAccumulationAndReplicationReductionStrategy",
    "num_distributed_processes": "Distributed.configureProcessId",
    "output_mode": "outputMode",
    "output_return_period": "outputMode",
    "random_seed": "randomSeed",
    "replication_factor": "replicationFactor",
}

# key -> (which values, why and what to do instead)
REFUSED: dict[str, tuple[Callable[[Any], bool], str]] = {
    key: (lambda value: True, f"set it with Options().{setter}(), which this runtime reads")
    for key, setter in _HAS_SETTER.items()
}
REFUSED["compileEngine"] = (lambda value: not value, "a model that is not compiled cannot run")
