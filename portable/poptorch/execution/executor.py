"""PoplarExecutor: compile on the first call, then run (spec sections 1, 2, 9 and 10)."""

from __future__ import annotations

import datetime
import os
from typing import Any

import torch

from .. import notices, optim
from ..checks import require
from ..engine import surroundings
from ..engine.processes import watch
from ..engine.running.timings import Latency, Timings
from ..operations.blocks import module_repr
from ..options.executor_options import Options
from ..poptorch_core import createPoptorchError
from . import hosting, introspection, saving
from .executor_state import NOT_COMPILED
from .library_names import LibraryNames
from .synthetic import replaced


def _refuse_backward(*args: Any, **kwargs: Any) -> None:
    raise createPoptorchError(
        "backward() cannot be called explicitly on outputs of a PopTorch model. If you're using a training model, the "
        "backward pass is performed automatically when invoking the model. If you're using an inference model, you "
        "should use a training model instead."
    )


class PoplarExecutor(LibraryNames):
    """A model compiled for training or inference. Made by trainingModel and inferenceModel.

    Calling it runs deviceIterations x gradientAccumulation x replicationFactor micro-batches; spec section 2 says how
    the inputs are split and section 3 what comes back.
    """

    # -- what a program sees -------------------------------------------------------------------------------------

    @surroundings.left_outside()
    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Run one call, compiling first if need be."""
        self._require_device()
        if self._compiled is None:
            self._compile(args, kwargs)
        if self._session is None:
            self.attachToDevice()
        with torch.inference_mode(False), self._probe.call():
            leaves = self._compiled.bind(self._model, args, kwargs)
            self._session.ready()
            self._follow()
            try:
                with self._random.active(), watch.call(self):
                    outputs = self._session.runner.run(replaced(leaves, self._options))
            finally:
                if self._training:
                    self._source.changed()  # an interrupted call may have stepped already
        self._session.tell(self._probe)
        for output in outputs:
            output.backward = _refuse_backward
            output.__getstate__ = dict  # none of this is saved with the tensor
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

        Without effect on a model that was never compiled. Of a replica over several processes each gets all weights, in
        a mapped file, and can compile the model again: all must call it.
        """
        if self._compiled is None:
            return
        if self._training:
            self._source.sync()
            self._gather(everywhere=True)
            self._unlink_optimizer()
            hosting.unwrap(self._user_model, self._model)
            self._source = None
        else:
            hosting.ungroup(self._user_model)
        self._drop_session()
        self._compiled = None

    def copyWeightsToHost(self) -> None:
        """Device -> host, now. Of a replica over several processes the first one gets everything: all must call."""
        self._require_session().download(whole=True)
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
        session = self._require_session()
        if self._source is not None:
            self._source.dirty = False
            self._source.version += 1  # inference executors of the same model must follow
        self._upload(session)

    def load_state_dict(self, state_dict: dict[str, Any], strict: bool = True) -> Any:
        """Load into the user's model and, if it is attached, onto the device."""
        result = self._user_model.load_state_dict(state_dict, strict)
        self._upload_if_attached()
        return result

    def setOptimizer(self, optimizer: torch.optim.Optimizer) -> None:
        """Use `optimizer`'s hyper-parameters from the next call on; the device keeps its momenta."""
        if not self._training:
            raise createPoptorchError("setOptimizer() is only for training models.")
        self._check_optimizer(optimizer)
        if self._compiled is not None:
            self._optimizer_attributes.check(optimizer)
        if self._session is not None:
            self._session.optimizer.set_optimizer(optimizer)
        if optimizer is not self._optimizer:
            if isinstance(self._optimizer, optim.Optimizer):
                self._unlink_optimizer()  # the old one keeps the state it has reached
            self._optimizer = optimizer
            if self._session is not None:
                self._link_optimizer()

    def isAttachedToDevice(self) -> bool:
        """Whether the program is on its device."""
        return self._session is not None

    def attachToDevice(self) -> None:
        """Put program, weights (as the host has them now) and optimizer state on the device."""
        self._require_compiled()
        self._require_device()
        if self._session is not None:
            raise createPoptorchError("Device is already attached")
        self._attach()

    def detachFromDevice(self) -> None:
        """Bring weights, optimizer state and random state to the host and free the device."""
        self._require_session()
        if self._training:
            self._source.sync()
            self._unlink_optimizer()
        self._drop_session()

    def copyNamedBuffersToDevice(self) -> None:
        """Host -> device for the buffers that Options.updatableNamedBuffers names, now."""
        session = self._require_session()
        names = self._options.updatable_named_buffers
        if not names:
            raise createPoptorchError(
                "copyNamedBuffersToDevice() needs the buffers' names: call Options.updatableNamedBuffers([...]) before "
                "the model is compiled."
            )
        session.upload_buffers(names)

    # -- measurements and introspection --------------------------------------------------------------------------

    def compilationTime(self) -> datetime.timedelta:
        """How long compilation took. poptorch.Error if it did not happen or the progress bar is disabled."""
        self._require_compiled()
        if not self._options.show_progress_bar:
            raise createPoptorchError(
                "The compilation time is only available with the progress bar: do not disable it with "
                "Options.showCompilationProgressBar(False)."
            )
        return datetime.timedelta(seconds=self._compile_seconds)

    def cycleCount(self) -> int:
        """Nanoseconds of the last call, as cycles of a device of 1 GHz. poptorch.Error without logCycleCount(True)."""
        self._require_compiled()
        if not self._options._Popart.get("instrumentWithHardwareCycleCounter", False):
            raise createPoptorchError(
                "Cycle count logging is disabled. Please set option logCycleCount to True to enable."
            )
        if not self._timings().input:
            raise createPoptorchError("Please run the model at least once before obtaining cycle count.")
        timings = self._timings()
        return max(1, round((timings.now_at_end() - timings.input[0]) * 1e9))

    def getPerfCounters(self) -> dict[str, list[list[float]]]:
        """Of the last call: input, input_complete, output, output_complete; for each tensor a list of seconds."""
        return self._timings().counters()

    def getLatency(self) -> Latency:
        """(min, max, average) seconds from an input being asked for to its output being on the host."""
        return self._timings().round_trip()

    def getHostIpuLatency(self) -> Latency:
        """(min, max, average) seconds of the inputs' transfer to the device."""
        return self._timings().host_to_device()

    def getComputeLatency(self) -> Latency:
        """(min, max, average) seconds from the last input being on the device to the output being available."""
        return self._timings().compute()

    def getIpuHostLatency(self) -> Latency:
        """(min, max, average) seconds of the outputs' transfer to the host."""
        return self._timings().device_to_host()

    def _timings(self) -> Timings:
        if self._session is None:
            return Timings()
        if self._options._Popart.get("syntheticDataMode", 0):  # nothing is transferred
            return Timings(len(self._compiled.program.inputs), len(self._compiled.program.outputs))
        return self._session.runner.timings

    def getTensorNames(self) -> list[str]:
        """The names that Options.anchorTensor() takes: inputs, parameters, buffers, gradients, outputs, the loss.

        AssertionError if the model is not compiled.
        """
        require(self._compiled is not None, NOT_COMPILED)
        return self._require_session().tensor_names(self._compiled)

    def getAnchoredTensor(self, short_name: str) -> torch.Tensor:
        """The tensor anchored under `short_name` in the last call. AssertionError if there is none."""
        anchors = self._require_session().anchors
        require(anchors is not None, f"No tensor with name {short_name} found.")
        return anchors.result(short_name)

    def _debugGetPopartIR(self) -> str:
        """The compiled program as JSON text."""
        self._require_compiled()
        return introspection.program_as_json(self._compiled.program)

    # -- files ---------------------------------------------------------------------------------------------------

    def compileAndExport(
        self, filename: str | os.PathLike, *args: Any, export_model: bool = True, **kwargs: Any
    ) -> None:
        """Compile for inputs like these and write the executor to a file; no device is needed.

        With `export_model` poptorch.load() brings it back, otherwise an executor's loadExecutable() does.
        """
        if self._compiled is None:
            self._compile(args, kwargs)
        saving.save(self, filename, export_model, save_rng_state=True)

    def loadExecutable(self, filename: str | os.PathLike) -> None:
        """Compile for the inputs that the file of compileAndExport() or save() was made for.

        Raises poptorch.Error "Invalid file …" for another file, or one made for a model that takes other arguments.
        """
        saving.load_executable(self, filename)

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
        return self._random.as_list()

    @rng_state.setter
    def rng_state(self, state: list[int]) -> None:
        self._require_compiled()
        self._random.load(state)

    @property
    def model(self) -> torch.nn.Module:
        """What runs: the shallow copy of the user's model that was made when the executor was (spec section 1)."""
        return self._model

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
        if name.startswith("_") or "_model" not in self.__dict__:
            raise AttributeError(name)
        return getattr(self._model, name)

    def __setattr__(self, name: str, value: Any) -> None:
        """Attributes that are not the executor's own are those of `model`."""
        if name.startswith("_") or hasattr(type(self), name):
            object.__setattr__(self, name, value)
        else:
            setattr(self._model, name, value)

    def __repr__(self) -> str:
        return module_repr(self._model)
