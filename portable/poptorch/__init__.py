"""PopTorch's Python API on plain PyTorch: PopTorch programs run on CPUs and CUDA devices without a change."""

from __future__ import annotations

import builtins
import os

from . import openmp

os.environ.setdefault("RDMAV_FORK_SAFE", "1")  # as PopTorch does, for programs that look
os.environ.update(openmp.bounded_spin() | openmp.shared_threads())  # before torch brings the library that reads them

import torch

from . import (
    _impl,
    _poplar_executor,
    _utils,
    enums,
    ops,
    optim,
    options,
    popart_libraries,
    poptorch_core,
    profiling,
    testing,
)
from .engine.tracing import export as tracing
from .enums import (
    AutoStage,
    CommGroupType,
    ConnectionType,
    DataLoaderMode,
    HalfFloatCastingBehavior,
    Liveness,
    MatMulSerializationMode,
    MeanReductionStrategy,
    MultiConvPlanType,
    OutputMode,
    OverlapMode,
    ReductionType,
    SharingStrategy,
    SyncPattern,
    VariableRetrievalMode,
)
from .execution.compile_hooks import registerPostCompileHook, registerPreCompileHook
from .execution.executor import PoplarExecutor
from .execution.restoring import load
from .execution.saving import importPoptorchMetadataFromFile
from .execution.substitutions import _OverwriteContextManager
from .hardware import ipuHardwareIsAvailable, ipuHardwareVersion
from .loading.dataloader import AsynchronousDataAccessor, DataLoader
from .notices import logger, setLogLevel
from .operations.blocks import BeginBlock, Block, BlockFunction, BlockId, LegacyBeginBlockFn, module_repr, removeBlocks
from .ops import (
    CPU,
    Attribute,
    MultiConv,
    NameScope,
    attributes_lists,
    cond,
    ctc_beam_search_decoder,
    custom_op,
    dynamic_slice,
    dynamic_update,
    for_loop,
    fps,
    identity_loss,
    ipu_print_tensor,
    nearest,
    nop,
    recomputationCheckpoint,
    serializedMatMul,
    set_available_memory,
    set_overlap_for_input,
    set_overlap_for_output,
)
from .options import ConfigFileError, Options, TensorLocationSettings
from .options.strategies import (
    ParallelPhasedExecution,
    Phase,
    PipelinedExecution,
    SerialPhasedExecution,
    ShardedExecution,
    Stage,
)
from .poptorch_core import Error, RecoverableError, UnrecoverableError, createPoptorchError
from .structure import ICustomArgParser, registerCustomArgParser, registerGeometricCustomArgParsers

__version__ = "3.4.0"

popart_libraries.install()

__all__ = [
    "AsynchronousDataAccessor",
    "Attribute",
    "AutoStage",
    "BeginBlock",
    "Block",
    "BlockFunction",
    "BlockId",
    "CPU",
    "CommGroupType",
    "ConfigFileError",
    "ConnectionType",
    "DataLoader",
    "DataLoaderMode",
    "Error",
    "HalfFloatCastingBehavior",
    "ICustomArgParser",
    "LegacyBeginBlockFn",
    "Liveness",
    "MatMulSerializationMode",
    "MeanReductionStrategy",
    "MultiConv",
    "MultiConvPlanType",
    "NameScope",
    "Options",
    "OutputMode",
    "OverlapMode",
    "ParallelPhasedExecution",
    "Phase",
    "PipelinedExecution",
    "PoplarExecutor",
    "RecoverableError",
    "ReductionType",
    "SerialPhasedExecution",
    "ShardedExecution",
    "SharingStrategy",
    "Stage",
    "SyncPattern",
    "TensorLocationSettings",
    "UnrecoverableError",
    "VariableRetrievalMode",
    "_OverwriteContextManager",
    "_impl",
    "_poplar_executor",
    "_utils",
    "attributes_lists",
    "cond",
    "createPoptorchError",
    "ctc_beam_search_decoder",
    "custom_op",
    "dynamic_slice",
    "dynamic_update",
    "enums",
    "for_loop",
    "fps",
    "identity_loss",
    "importPoptorchMetadataFromFile",
    "inferenceModel",
    "ipuHardwareIsAvailable",
    "ipuHardwareVersion",
    "ipu_print_tensor",
    "isRunningOnIpu",
    "load",
    "logger",
    "module_repr",
    "nearest",
    "nop",
    "ops",
    "optim",
    "options",
    "poptorch_core",
    "print",
    "profiling",
    "recomputationCheckpoint",
    "registerCustomArgParser",
    "registerGeometricCustomArgParsers",
    "registerPostCompileHook",
    "registerPreCompileHook",
    "removeBlocks",
    "serializedMatMul",
    "setLogLevel",
    "set_available_memory",
    "set_overlap_for_input",
    "set_overlap_for_output",
    "testing",
    "trainingModel",
]


def trainingModel(
    model: torch.nn.Module | PoplarExecutor,
    options: Options | None = None,
    optimizer: torch.optim.Optimizer | None = None,
) -> PoplarExecutor:
    """An executor that trains `model`, or the user's model of an executor; by default with SGD of lr 0.01.

    The options are frozen. Raises RuntimeError if the model is wrapped for training already.
    """
    if isinstance(model, PoplarExecutor):
        model = model._user_model
    return PoplarExecutor(model, options, training=True, poptorch_version=__version__, optimizer=optimizer)


def inferenceModel(model: torch.nn.Module | PoplarExecutor, options: Options | None = None) -> PoplarExecutor:
    """An executor that runs `model` forward only, with the weights of its training executor if there is one."""
    user_model = None
    if isinstance(model, PoplarExecutor):
        model, user_model = model.model, model._user_model
    return PoplarExecutor(model, options, training=False, poptorch_version=__version__, user_model=user_model)


def isRunningOnIpu() -> bool:
    """True while a model is being traced, i.e. in the call of forward() that becomes the program."""
    return tracing.current() is not None


def print(m: torch.nn.Module) -> None:  # the API's name
    """Print module_repr(m)."""
    builtins.print(module_repr(m))
