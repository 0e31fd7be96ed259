"""PoplarExecutor: compile on the first call, then run (spec sections 1, 2, 9 and 10)."""

from __future__ import annotations

import datetime
import os
import time
from typing import Any

import torch

from . import auto_report, compilation, engine_options, hosting, notices, optim, saving
from .blocks import module_repr
from .device import policy as device_policy
from .engine.probe import Probe
from .engine.randomness import RandomStreams
from .enums import ConnectionType
from .options import Options, checked
from .poptorch_core import createPoptorchError
from .session import Session

_NOT_COMPILED = "Model has not been compiled or has been destroyed."


def _refuse_backward(*args: Any, **kwargs: Any) -> None:
    raise createPoptorchError(
        "backward() cannot be called explicitly on outputs of a PopTorch model. If you're using a training model, the "
        "backward pass is performed automatically when invoking the model. If you're using an inference model, you "
        "should use a training model instead."
    )


class PoplarExecutor:
    """A model compiled for training or inference. Made by trainingModel and inferenceModel.

    Calling it runs deviceIterations x gradientAccumulation x replicationFactor micro-batches; spec section 2 says how
    the inputs are split and section 3 what comes back.
    """

    def __init__(
        self,
        model: torch.nn.Module,
        options: Options | None,
        training: bool,
        poptorch_version: str,
        optimizer: torch.optim.Optimizer | None = None,
    ):
        options = checked(Options() if options is None else options)
        self._options = options.clone()
        options.freeze()
        self._options.freeze()
        self._training = training
        self._version = poptorch_version
        self._user_model = model
        if not training and self._options.Training.gradient_accumulation != 1:
            raise createPoptorchError(
                "You must set poptorch.Options().Training.gradientAccumulation to 1 or leave it as its default (1) "
                "when running inference."
            )
        notices.report_without_effect(self._options)
        engine_options.report_folder(self._options)  # a mistake in it is told now, not after tracing
        self._model = hosting.executor_copy(self._user_model)
        self._policy = device_policy.choose()
        self._optimizer = optimizer
        if training and optimizer is None:
            self._optimizer = torch.optim.SGD(self._user_model.parameters(), lr=0.01)
        self._source: hosting.WeightSource | None = None  # of this executor, if it trains
        if training:
            self._wrap()
        self._offline = self._options.connection_type is ConnectionType.Never
        self._compiled: compilation.Compiled | None = None
        self._probe = Probe()  # a report, if one is asked for
        self._session: Session | None = None  # while attached to the device
        self._followed: hosting.WeightSource | None = None  # of the training executor whose weights were uploaded
        self._seen_version = -1
        self._random: RandomStreams | None = None
        self._kept_state: dict[str, Any] | None = None  # of a plain torch optimizer, while there is no device
        self._compile_seconds: float | None = None

    # -- what a program sees -------------------------------------------------------------------------------------

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Run one call, compiling first if need be."""
        assert not self._offline, (
            "Trying to run a model on an offline device (ConnectionType.Never): use "
            "options.connectionType(ConnectionType.Always) and no offline target to run it."
        )
        if self._compiled is None:
            self._compile(args, kwargs)
        if self._session is None:
            self.attachToDevice()
        with torch.inference_mode(False), self._probe.call():
            call = self._compiled.bind(self._model, args, kwargs)
            self._follow()
            try:
                with self._random.active():
                    outputs = self._session.runner.run(call.leaves)
            finally:
                if self._training:
                    self._source.changed()  # an interrupted call may have stepped already
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

        Without effect on a model that was never compiled.
        """
        if self._compiled is None:
            return
        if self._training:
            self._source.sync()
            self._unlink_optimizer()
            hosting.unwrap(self._user_model)
            self._source = None
        self._drop_session()
        self._compiled = None

    def copyWeightsToHost(self) -> None:
        """Device -> host, now."""
        self._require_session().download()
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
        return self._random.as_list()

    @rng_state.setter
    def rng_state(self, state: list[int]) -> None:
        self._require_compiled()
        self._random.load(state)

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
        return module_repr(self._user_model)

    # -- compilation ---------------------------------------------------------------------------------------------

    def _require_compiled(self) -> None:
        if self._compiled is None:
            raise createPoptorchError(_NOT_COMPILED)

    def _require_session(self) -> Session:
        self._require_compiled()
        if self._session is None:
            raise createPoptorchError("Device is not attached")
        return self._session

    def _compile(self, args: tuple, kwargs: dict[str, Any]) -> None:
        start = time.perf_counter()
        self._options.validate()
        if self._training and self._source is None:  # destroyed and called again
            self._wrap()
        self._sync_host()
        with torch.inference_mode(False), hosting.plain(self._user_model):
            compiled = compilation.compile_model(self._model, args, kwargs, self._options, self._training, self._policy)
        self._probe = auto_report.probe(self._options, self._training, self._policy.device, compiled.program)
        self._compiled = compiled
        self._random = RandomStreams(self._seed(), self._policy.device)
        try:
            if not self._offline:
                self._attach()
        except BaseException:
            self._compiled = None
            raise
        self._compile_seconds = time.perf_counter() - start

    def _seed(self) -> int:
        """randomSeed, or else the seed of the user's generator: asking for it draws nothing."""
        if self._options.exists("random_seed"):
            return int(self._options.random_seed)
        return torch.initial_seed() % 2**31

    def _attach(self) -> None:
        self._sync_host()
        with torch.inference_mode(False):
            session = Session(
                self._compiled, self._user_model, self._options, self._policy, self._optimizer, self._kept_optimizer()
            )
            self._mark_seen()
        session.runner.probe = self._probe
        self._session = session
        if self._training:
            self._link_optimizer()
            hosting.host(self._user_model, self._source)

    def _drop_session(self) -> None:
        if self._session is not None:
            self._session.close()
        self._session = None

    # -- weights -------------------------------------------------------------------------------------------------

    def _wrap(self) -> None:
        source = hosting.WeightSource(self._fetch_weights)
        hosting.wrap(self._user_model, source, self.destroy, self._upload_if_attached)
        self._source = source

    def _upload(self, session: Session) -> None:
        with torch.inference_mode(False):
            session.upload()
        self._mark_seen()

    def _upload_if_attached(self) -> None:
        if self._session is not None:
            self.copyWeightsToDevice()

    def _fetch_weights(self) -> None:
        """Called by the weight source when somebody reads the user's model."""
        if self._session is not None:
            self._session.download()

    def _sync_host(self) -> None:
        """The host's weights are about to be used: those of a training executor's device may be newer."""
        source = hosting.source_of(self._user_model)
        if source is not None:
            source.sync()

    def _mark_seen(self) -> None:
        self._followed = hosting.source_of(self._user_model) or self._followed
        self._seen_version = self._followed.version if self._followed is not None else -1

    def _follow(self) -> None:
        """An inference executor follows the training executor that shares its model."""
        if self._training:
            return
        source = hosting.source_of(self._user_model) or self._followed
        if source is not None and (source is not self._followed or source.version != self._seen_version):
            source.sync()
            self._upload(self._session)

    # -- optimizer state -----------------------------------------------------------------------------------------

    def _kept_optimizer(self) -> dict[str, Any] | None:
        """The device's optimizer state that is kept on the host, if there is one to continue from."""
        if not self._training:
            return None
        ours = isinstance(self._optimizer, optim.Optimizer)
        kept = self._optimizer.get_state_dict() if ours else self._kept_state
        return None if kept is None or kept.get("ipu_state") is None else kept

    def _link_optimizer(self) -> None:
        if isinstance(self._optimizer, optim.Optimizer):
            self._optimizer._link_device(self._session.read_optimizer, self._session.write_optimizer)

    def _plain_optimizer_state(self) -> dict[str, Any] | None:
        """The device's state of an optimizer of torch.optim, which has no place for it."""
        if not self._training or isinstance(self._optimizer, optim.Optimizer):
            return None
        return self._kept_state if self._session is None else self._session.read_optimizer()

    def _unlink_optimizer(self) -> None:
        """Leave the device's state with the optimizer object."""
        if self._session is None:
            return
        if isinstance(self._optimizer, optim.Optimizer):
            self._optimizer._unlink_device()
        else:
            self._kept_state = self._plain_optimizer_state()
