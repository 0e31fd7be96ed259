"""poptorch.Options from the flags: everything that the reference sets, in one place."""

from __future__ import annotations

import argparse
import os

import popart
import popdist
import popdist.poptorch
import poptorch
import torch

from model.layout import fitting_processes, launched

# PopART session options of the reference application. They shape memory and speed on an IPU, not results.
_POPART_OPTIONS = {
    "disableGradAccumulationTensorStreams": True,
    "outlineThreshold": 10.0,
    "accumulateOuterFragmentSettings.excludedVirtualGraphs": ["0"],
    "decomposeGradSum": True,
    "scheduleNonWeightUpdateGradientConsumersEarly": True,
    "saveInitializersToFile": "weights.bin",
}
_POPART_PATTERNS = {"TiedGather": True, "TiedGatherAccumulate": True, "UpdateInplacePrioritiesForIpu": True}


_TOTAL_REPLICAS, _IPUS = "POPDIST_NUM_TOTAL_REPLICAS", "POPDIST_NUM_IPUS_PER_REPLICA"


def share_replicas(args: argparse.Namespace) -> None:
    """Training as one of several processes: they hold the replicas of --replication-factor together.

    Off-IPU there may be more processes than replicas; as many of them then hold one together, each some of its IPUs.
    poprun says how many replicas there are, which then counts in place of the flag; torchrun does not. Raises
    ValueError, naming the numbers that fit, where the processes cannot share them out, and RuntimeError with a HINT
    where they do not meet.
    """
    if not popdist.isPopdistEnvSet():
        return
    os.environ.setdefault(_TOTAL_REPLICAS, str(args.replication_factor))
    os.environ.setdefault(_IPUS, str(args.ipus_per_replica))
    _init()
    replicas = popdist.getNumTotalReplicas()
    if replicas != args.replication_factor:
        print(f"{replicas} replicas in all, as the launcher says, not --replication-factor's")
    args.replication_factor = replicas


def _init() -> None:
    try:
        popdist.init()
    except poptorch.Error as error:
        raise RuntimeError(
            f"{error.message}\nHINT: see that every process of the run was started and reaches MASTER_ADDR; if one has "
            "ended with an error of its own, correct that first"
        ) from error


def local_replicas(args: argparse.Namespace) -> int:
    """The replicas that this process holds of those that share_replicas found."""
    return popdist.getNumLocalReplicas() if popdist.isPopdistEnvSet() else args.replication_factor


def join_instances(args: argparse.Namespace) -> None:
    """Scoring as one of several processes: the replicas are this one's, as its launcher says; one if it does not.

    Raises RuntimeError with a HINT where several processes do not meet.
    """
    if popdist.isPopdistEnvSet():
        _init()
        replicas = popdist.getNumLocalReplicas()
        if replicas != args.replication_factor:
            print(f"{replicas} replicas in this process, as its launcher says, not --replication-factor's")
        args.replication_factor = replicas


def reads_samples() -> bool:
    """Whether a call takes this process's inputs: of those that hold a replica together it takes the first one's."""
    number, count = launched()
    return number % (count // instance()[1]) == 0


def instance() -> tuple[int, int]:
    """Which share of samples and replicas this process has, and how many there are: (0, 1) without a launcher.

    Processes that hold a replica together have the same one.
    """
    if popdist.isPopdistEnvSet():
        return popdist.getInstanceIndex(), popdist.getNumInstances()
    return 0, 1


def single_replica_options(ipus: int) -> poptorch.Options:
    """For a model on `ipus` IPUs that is not replicated: the processes of a run hold it together.

    Raises ValueError, naming the numbers that fit, where they cannot, RuntimeError with a HINT where they do not meet.
    """
    if not popdist.isPopdistEnvSet():
        return poptorch.Options()
    number, fitting = launched()[1], fitting_processes(1, ipus)
    if number not in fitting:
        raise ValueError(
            f"{number} processes cannot hold a model on {ipus} IPU{'s'[: ipus != 1]} together: start one of "
            f"{', '.join(map(str, fitting))}, or divide its layers by --layers-per-ipu"
        )
    os.environ[_TOTAL_REPLICAS], os.environ[_IPUS] = "1", str(ipus)
    _init()
    return popdist.poptorch.Options(ipus_per_replica=ipus)


def base_options(args: argparse.Namespace) -> poptorch.Options:
    """What training and forward-only programs share."""
    if popdist.isPopdistEnvSet():  # under poprun, which also says how many replicas there are
        options = popdist.poptorch.Options(ipus_per_replica=args.ipus_per_replica)
    else:
        options = poptorch.Options()
        options.replicationFactor(args.replication_factor)
    options.deviceIterations(args.device_iterations)
    options.autoRoundNumIPUs(True)
    options.randomSeed(args.seed)
    if args.matmul_proportion:
        options.setAvailableMemoryProportion({f"IPU{ipu}": share for ipu, share in enumerate(args.matmul_proportion)})
    if args.executable_cache_dir:
        options.enableExecutableCaching(args.executable_cache_dir)
    if args.profile:
        options.enableProfiling(args.profile)
    if args.enable_half_partials:
        options.Precision.setPartialsType(torch.float16)
    return options


def training_options(args: argparse.Namespace) -> poptorch.Options:
    """Options of the training model: the pipeline, accumulation, optimizer placement and PopART's settings."""
    options = base_options(args)
    options.Training.gradientAccumulation(args.gradient_accumulation)
    options.Training.accumulationAndReplicationReductionType(poptorch.ReductionType.Mean)
    options.outputMode(poptorch.OutputMode.Sum)
    options.setExecutionStrategy(poptorch.PipelinedExecution(poptorch.AutoStage.AutoIncrement))
    options.Precision.enableStochasticRounding(True)
    options.Training.setAutomaticLossScaling(args.auto_loss_scaling)
    location = poptorch.TensorLocationSettings()
    location.useOnChipStorage(not args.optimizer_state_offchip)
    location.useReplicatedTensorSharding(args.replicated_tensor_sharding)
    options.TensorLocations.setOptimizerLocation(location)
    for key, value in _POPART_OPTIONS.items():
        options._Popart.set(key, value)
    options._Popart.set(
        "accumulateOuterFragmentSettings.schedule",
        int(popart.AccumulateOuterFragmentSchedule.OverlapMemoryOptimized),
    )
    options._Popart.set("subgraphCopyingStrategy", int(popart.SubgraphCopyingStrategy.JustInTime))
    options._Popart.setPatterns(dict(_POPART_PATTERNS))
    if args.compile_only:
        options.useOfflineIpuTarget()
    return options


def forward_options(args: argparse.Namespace) -> poptorch.Options:
    """Options of a forward-only model: sharded, so that there is no minimum of device iterations."""
    options = base_options(args)
    options.setExecutionStrategy(poptorch.ShardedExecution(poptorch.AutoStage.AutoIncrement))
    return options
