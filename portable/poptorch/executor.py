"""PoplarExecutor: compile on the first call, then run (spec sections 1, 2, 9 and 10)."""

from __future__ import annotations

import datetime
import os
import time
from typing import Any

import torch

from . import compilation, hosting, notices, optim, saving
from .device import policy as device_policy
from .engine.gradients import GradientAccumulator
from .engine.optimizer import DeviceOptimizer
from .engine.runner import Runner
from .engine.state import DeviceState
from .enums import ConnectionType, MeanReductionStrategy, OutputMode, ReductionType
from .options import Options, checked
from .poptorch_core import createPoptorchError

# In an optimizer's state: weights that the device holds in float32 while the program sees half ones.
MASTERS = "ipu_master_weights"
_NOT_COMPILED = "Model has not been compiled or has been destroyed."


class PoplarExecutor:
    """A model compiled for training or inference. Made by trainingModel and inferenceModel.

    Calling it runs deviceIterations x gradientAccumulation x replicationFactor micro-batches; spec section 2 says how the
    inputs are split and section 3 what comes back.
    """

    def __init__(
        self,
        model: torch.nn.Module,
        options: Options | None,
        training: bool,
        poptorch_version: str,
        optimizer: torch.optim.Optimizer | None = None,
        user_model: torch.nn.Module | None = None,
    ):
        options = checked(Options() if options is None else options)
        self._options = options.clone()
        options.freeze()
        self._options.freeze()
        self._training = training
        self._version = poptorch_version
        self._user_model = user_model if user_model is not None else model
        if not training and self._options.Training.gradient_accumulation != 1:
            raise createPoptorchError(
                "You must set poptorch.Options().Training.gradientAccumulation to 1 or leave it as its default (1) "
                "when running inference."
            )
        notices.report_without_effect(self._options)
        self._model = hosting.executor_copy(self._user_model)
        self._policy = device_policy.choose()
        self._optimizer = optimizer
        self._source: hosting.WeightSource | None = None
        if training:
            if optimizer is None:
                self._optimizer = torch.optim.SGD(self._user_model.parameters(), lr=0.01)
            self._source = hosting.wrap(self._user_model, self._fetch_weights, self)
        self._offline = self._options.connection_type is ConnectionType.Never
        self._compiled: compilation.Compiled | None = None
        self._state: DeviceState | None = None
        self._runner: Runner | None = None
        self._device_optimizer: DeviceOptimizer | None = None
        self._accumulator: GradientAccumulator | None = None
        self._attached = False
        self._seen_version = -1
        self._rng_state: list[torch.Tensor] | None = None
        self._kept_state: dict[str, Any] | None = None  # of a plain torch optimizer, while there is no device
        self._compile_seconds: float | None = None

    # -- what a program sees -------------------------------------------------------------------------------------

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Run one call, compiling first if need be."""
        self._check_can_run()
        if self._compiled is None:
            self._compile(args, kwargs)
        if not self._attached:
            self.attachToDevice()
        call = self._compiled.bind(self._model, args, kwargs)
        self._before_run()
        outputs = self._with_device_rng(lambda: self._runner.run(call.leaves))
        if self._training:
            self._source.changed()
        return self._compiled.outputs(outputs)

    def compile(self, *args: Any, **kwargs: Any) -> None:
        """Compile for inputs like these (whole batches). A second call only warns."""
        if self._compiled is not None:
            notices.logger.warning("Call to compile() ignored: the executable is already compiled")
            return
        self._compile(args, kwargs)

    def isCompiled(self) -> bool:
        """Whether the model has been compiled."""
        return self._compiled is not None

    def destroy(self) -> None:
        """Bring weights and optimizer state back, drop the program, give the user's model its class back.

        Without effect on a model that was never compiled.
        """
        if self._compiled is None:
            return
        if self._training:
            self._source.sync()
            self._unlink_optimizer()
            hosting.unwrap(self._user_model)
        self._drop_device()
        self._compiled = None

    def copyWeightsToHost(self) -> None:
        """Device -> host, now."""
        self._require_compiled()
        with hosting.plain(self._user_model):
            self._state.download(self._user_model)
        if self._source is not None:
            self._source.dirty = False

    def copyWeightsToHostIfNeeded(self) -> bool:
        """Device -> host if the device is newer; whether it was."""
        self._require_compiled()
        if self._source is None or not self._source.dirty:
            return False
        self._source.sync()
        return True

    def copyWeightsToDevice(self) -> None:
        """Host -> device, now; weights of the device that were not brought back are dropped."""
        self._require_compiled()
        if self._source is not None:
            self._source.dirty = False
        self._upload()
        if self._source is not None:
            self._source.version += 1  # inference executors of the same model must follow

    def load_state_dict(self, state_dict: dict[str, Any], strict: bool = True) -> Any:
        """Load into the user's model and, if it is attached, onto the device."""
        result = self._user_model.load_state_dict(state_dict, strict)
        if self._attached:
            self.copyWeightsToDevice()
        return result

    def setOptimizer(self, optimizer: torch.optim.Optimizer) -> None:
        """Use `optimizer`'s hyper-parameters from the next call on; the device keeps its momenta."""
        if not self._training:
            raise createPoptorchError("setOptimizer() is only for training models.")
        if self._device_optimizer is not None:
            self._device_optimizer.set_optimizer(optimizer)
            if optimizer is not self._optimizer:
                self._unlink_optimizer()
                self._optimizer = optimizer
                self._link_optimizer()
        self._optimizer = optimizer

    def isAttachedToDevice(self) -> bool:
        """Whether the program is on its device."""
        return self._attached

    def attachToDevice(self) -> None:
        """Put program, weights (as the host has them now) and optimizer state on the device."""
        self._require_compiled()
        if self._attached:
            raise createPoptorchError("Device is already attached")
        self._load_device()

    def detachFromDevice(self) -> None:
        """Bring weights, optimizer state and random state to the host and free the device."""
        self._require_compiled()
        if not self._attached:
            raise createPoptorchError("Device is not attached")
        if self._training:
            self._source.sync()
            self._unlink_optimizer()
        self._drop_device()

    def compilationTime(self) -> datetime.timedelta:
        """How long compilation took."""
        self._require_compiled()
        return datetime.timedelta(seconds=self._compile_seconds)

    def save(self, filename: str | os.PathLike, export_model: bool = True, save_rng_state: bool = True) -> None:
        """Write the executor (and with `export_model` the model, its options and optimizer) to a file.

        poptorch.load brings it back. A directory becomes directory/model.poptorch.
        """
        self._require_compiled()
        saving.save(self, filename, export_model, save_rng_state)

    @property
    def rng_state(self) -> list[int]:
        """The state of the device's random numbers: [seed, state …]."""
        self._require_compiled()
        values = [int(self._options.random_seed) if self._options.exists("random_seed") else 0]
        for state in self._rng_state:
            values.extend([state.numel(), *state.tolist()])
        return values

    @rng_state.setter
    def rng_state(self, state: list[int]) -> None:
        self._require_compiled()
        tensors, rest = [], list(state[1:])
        while rest:
            size = rest[0]
            tensors.append(torch.tensor(rest[1 : size + 1], dtype=torch.uint8))
            rest = rest[size + 1 :]
        if not tensors:
            raise createPoptorchError("rng_state needs a list that an executor's rng_state gave: [seed, state …].")
        self._rng_state = tensors + self._rng_state[len(tensors) :]

    @property
    def model(self) -> torch.nn.Module:
        """The user's model."""
        return self._user_model

    @property
    def options(self) -> Options:
        """The frozen options."""
        return self._options

    @property
    def program(self) -> Any:
        """The compiled program: its stages, their inputs and outputs (an addition of the portable runtime)."""
        self._require_compiled()
        return self._compiled.program

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_") or "_user_model" not in self.__dict__:
            raise AttributeError(name)
        return getattr(self._user_model, name)

    def __repr__(self) -> str:
        from .blocks import module_repr

        return module_repr(self._user_model)

    # -- compilation ---------------------------------------------------------------------------------------------

    def _require_compiled(self) -> None:
        if self._compiled is None:
            raise createPoptorchError(_NOT_COMPILED)

    def _check_can_run(self) -> None:
        assert not self._offline, (
            "Trying to run a model on an offline device (ConnectionType.Never): use "
            "options.connectionType(ConnectionType.Always) and no offline target to run it."
        )

    def _compile(self, args: tuple, kwargs: dict[str, Any]) -> None:
        start = time.perf_counter()
        self._options.validate()
        with hosting.plain(self._user_model):
            self._compiled = compilation.compile_model(
                self._model, args, kwargs, self._options, self._training, self._policy
            )
        self._compile_seconds = time.perf_counter() - start
        self._rng_state = self._initial_rng()
        if not self._offline:
            self._load_device()

    def _load_device(self) -> None:
        """Build state, optimizer and runner, and upload."""
        options, program = self._options, self._compiled.program
        with hosting.plain(self._user_model):
            self._state = DeviceState(program, self._user_model, self._policy, self._training)
        if self._training:
            self._load_optimizer()
        self._upload(self._restore_optimizer() if self._training else None)
        self._runner = Runner(
            program,
            self._state,
            self._compiled.counts,
            self._output_mode(),
            options.output_return_period,
            self._policy,
            self._device_optimizer,
            self._accumulator,
        )
        self._attached = True
        if self._training:
            self._link_optimizer()
            hosting.host(self._user_model, self._source)

    def _load_optimizer(self) -> None:
        options, state = self._options, self._state
        with hosting.plain(self._user_model):
            host = dict(self._user_model.named_parameters())
            named = {name: host[name] for name in state.parameters}
            self._device_optimizer = DeviceOptimizer(
                self._optimizer,
                named,
                state.parameters,
                param_dtypes={name: parameter.dtype for name, parameter in named.items()},
                stochastic_rounding=self._options.Precision.stochastic_rounding,
                generator=None,
            )
        training = options.Training
        dtypes = {name: self._device_optimizer.accum_dtype(name) for name in state.parameters}
        strategy = training.meanAccumulationAndReplicationReductionStrategy
        half = any(dtype == torch.float16 for dtype in dtypes.values())
        self._accumulator = GradientAccumulator(
            state.parameters,
            dtypes,
            self._compiled.counts.accumulation * self._compiled.counts.replicas,
            mean=training.accumulation_and_replication_reduction_type == ReductionType.Mean,
            running=half or strategy == MeanReductionStrategy.Running,
        )

    def _drop_device(self) -> None:
        if self._accumulator is not None:
            self._accumulator.release()
        self._state = self._runner = self._device_optimizer = self._accumulator = None
        self._attached = False

    def _output_mode(self) -> OutputMode:
        mode = self._options.output_mode
        if mode is OutputMode.Default:
            return OutputMode.Final if self._training else OutputMode.All
        return mode

    # -- weights -------------------------------------------------------------------------------------------------

    def _upload(self, masters: dict[str, torch.Tensor] | None = None) -> None:
        with hosting.plain(self._user_model):
            self._state.upload(self._user_model, masters)
        source = hosting.source_of(self._user_model)
        self._seen_version = source.version if source is not None else -1

    def _fetch_weights(self) -> None:
        """Called by the weight source when somebody reads the user's model."""
        if self._state is not None:
            with hosting.plain(self._user_model):
                self._state.download(self._user_model)

    def _before_run(self) -> None:
        """An inference executor follows the training executor that shares its model."""
        if self._training:
            return
        source = hosting.source_of(self._user_model)
        if source is not None and source.version != self._seen_version:
            source.sync()
            self._upload()

    # -- optimizer state -----------------------------------------------------------------------------------------

    def _read_optimizer(self) -> dict[str, Any]:
        """The optimizer's state on the device, and the weights where the device holds them more precisely."""
        state = self._device_optimizer.state_dict()
        with hosting.plain(self._user_model):
            masters = self._state.masters(self._user_model)
        return {**state, MASTERS: masters} if masters else state

    def _write_optimizer(self, state: dict[str, Any]) -> None:
        self._device_optimizer.load_state_dict(state)
        self._upload(state.get(MASTERS))

    def _restore_optimizer(self) -> dict[str, torch.Tensor] | None:
        """Continue from the state kept with the optimizer, if there is one; returns its weights."""
        if isinstance(self._optimizer, optim.Optimizer):
            saved = self._optimizer.get_state_dict()
        else:
            saved = self._kept_state
        if saved is None or saved.get("ipu_state") is None:
            return None
        self._device_optimizer.load_state_dict(saved)
        return saved.get(MASTERS)

    def _link_optimizer(self) -> None:
        if isinstance(self._optimizer, optim.Optimizer):
            self._optimizer._link_device(self._read_optimizer, self._write_optimizer)

    def _unlink_optimizer(self) -> None:
        """Leave the device's state with the optimizer object."""
        if self._device_optimizer is None:
            return
        if isinstance(self._optimizer, optim.Optimizer):
            self._optimizer._unlink_device()
        else:
            self._kept_state = self._read_optimizer()

    # -- random numbers ------------------------------------------------------------------------------------------

    def _initial_rng(self) -> list[torch.Tensor]:
        """States of the CPU's and the device's generators, from randomSeed or else from torch's own seed."""
        seeded = self._options.exists("random_seed")
        seed = int(self._options.random_seed) if seeded else int(torch.randint(2**31 - 1, ()))
        states = [torch.Generator().manual_seed(seed).get_state()]
        if self._policy.device.type == "cuda":
            states.append(torch.Generator(self._policy.device).manual_seed(seed).get_state())
        return states

    def _with_device_rng(self, function: Any) -> Any:
        """Run with this executor's random streams; the user's generators stay where they are."""
        cuda = self._policy.device.type == "cuda"
        before = torch.get_rng_state()
        before_cuda = torch.cuda.get_rng_state(self._policy.device) if cuda else None
        torch.set_rng_state(self._rng_state[0])
        if cuda:
            torch.cuda.set_rng_state(self._rng_state[1], self._policy.device)
        try:
            return function()
        finally:
            self._rng_state = [torch.get_rng_state()]
            torch.set_rng_state(before)
            if cuda:
                self._rng_state.append(torch.cuda.get_rng_state(self._policy.device))
                torch.cuda.set_rng_state(before_cuda, self._policy.device)
