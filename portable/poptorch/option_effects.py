"""What this runtime does with each option: honour it, have no use for it off-IPU, or refuse it.

An option is refused when ignoring it would change results (or promise something that does not happen). Every setter
of Options and its groups has an entry in EFFECTS; popart_keys says the same of PopART's session options. A test holds
EFFECTS complete. The functions take any object with the attributes of Options: this module is below options/.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from . import popart_keys
from .poptorch_core import createPoptorchError

HONOURED = "honoured"
WITHOUT_EFFECT = "no effect off-IPU"
REFUSED = "refused"  # for the values that `refuses` picks out; the others ask for nothing


@dataclass(frozen=True)
class Effect:
    """Fate of one option; `refuses(options)` tells whether training refuses the value that is set, `why` the reason."""

    kind: str
    refuses: Callable[[Any], bool] | None = None
    why: str = ""


def _honoured(*names: str) -> dict[str, Effect]:
    return dict.fromkeys(names, Effect(HONOURED))


def _without_effect(*names: str) -> dict[str, Effect]:
    return dict.fromkeys(names, Effect(WITHOUT_EFFECT))


EFFECTS: dict[str, Effect] = {
    **_honoured(
        "anchorTensor",
        "autoRoundNumIPUs",
        "broadcastBuffers",
        "connectionType",
        "deviceIterations",
        "enableProfiling",
        "enableSyntheticData",
        "inputReplicaGrouping",
        "logCycleCount",
        "outputMode",
        "randomSeed",
        "relaxOptimizerAttributesChecks",
        "replicationFactor",
        "setExecutionStrategy",
        "showCompilationProgressBar",  # without it there is no compilationTime(); a bar is not drawn in any case
        "updatableNamedBuffers",
        "useOfflineIpuTarget",
        "TensorLocations.setOptimizerLocation",  # off chip: on CUDA only
        "Training.gradientAccumulation",
        "Training.setAutomaticLossScaling",
        "Training.accumulationAndReplicationReductionType",
        "Training.setMeanAccumulationAndReplicationReductionStrategy",
        "Distributed.configureProcessId",
        "Distributed.disable",
        "Distributed.setEnvVarNames",
        "Jit.traceModel",  # only the value that changes nothing is accepted
        "Precision.enableFloatingPointExceptions",
        "Precision.enableStochasticRounding",
    ),
    **_without_effect(
        "appendToLocationExcludes",
        "disableModuleNamescope",
        "enableExecutableCaching",
        "enableStableNorm",  # torch's norms are the stable ones
        "logDir",
        "maxRepeatLogs",
        "modelName",
        "setAvailableMemoryProportion",
        "sourceLocationExcludes",
        "syncPattern",
        "useIpuId",
        "useIpuModel",
        "Training.setConvolutionDithering",
        "Precision.halfFloatCasting",
        "Precision.runningStatisticsAlwaysFloat",  # as the module has them; computed in float32 on a CPU
        "Precision.setPartialsType",  # products are accumulated in float32, which is never less exact
        "TensorLocations.numIOTiles",
        "TensorLocations.setAccumulatorLocation",
        "TensorLocations.setActivationLocation",
        "TensorLocations.setWeightLocation",
        "_Popart.setEngineOptions",
        "_Popart.setPatterns",
    ),
}


def _touched(options: Any) -> Iterable[str]:
    """Names under which the options that the program set stand in EFFECTS, e.g. "Training.gradientAccumulation"."""
    yield from options.touched
    for group in ("Training", "Distributed", "Jit", "Precision", "TensorLocations"):
        yield from (f"{group}.{name}" for name in getattr(options, group).touched)
    yield from (f"_Popart.{name}" for name in options._Popart.touched if name != "set")


def without_effect(options: Any) -> list[str]:
    """Sorted names of the options that the program set and that have no effect off-IPU."""
    names = [name for name in _touched(options) if EFFECTS[name].kind == WITHOUT_EFFECT]
    keys = options._Popart.keys_set - popart_keys.STORED_BY_SETTERS - popart_keys.REFUSED.keys()
    return sorted(names) + sorted(f"_Popart.set({key!r})" for key in keys)


def refuse_training(options: Any) -> None:
    """Raises poptorch.Error naming every option whose value is refused for training, with the remedy.

    Not only options that the program set: the number of processes may come from the environment. Forward-only programs
    need nothing of the other processes.
    """
    problems = {}
    for name, effect in EFFECTS.items():
        if effect.refuses is not None and effect.refuses(options):
            problems.setdefault(effect.why, f"{name}: {effect.why}")
    _raise(problems)


def refuse_keys(options: Any) -> None:
    """Raises poptorch.Error naming every PopART key whose value is refused, with the reason."""
    problems = {}
    for key in sorted(options._Popart.keys_set & popart_keys.REFUSED.keys()):
        refuses, why = popart_keys.REFUSED[key]
        if refuses(options._Popart.get(key)):
            problems[key] = f"_Popart.set({key!r}): {why}"
    _raise(problems)


def _raise(problems: dict[str, str]) -> None:
    if problems:
        raise createPoptorchError("These options cannot be honoured. " + "; ".join(problems.values()) + ".")
