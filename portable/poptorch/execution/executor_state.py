"""What an executor is made of: compilation, device, weights and optimizer state (spec sections 1 and 9)."""

from __future__ import annotations

import functools
import time
from typing import Any

import torch

from .. import notices, openmp, optim, option_effects
from ..checks import require
from ..device import policy as device_policy
from ..engine import surroundings
from ..engine.as_one import number
from ..engine.numerics import Numerics
from ..engine.running.probe import Probe
from ..engine.running.randomness import RandomStreams
from ..engine.updating import hyperparameters
from ..enums import ConnectionType, MeanReductionStrategy
from ..options import engine_options
from ..options.executor_options import Options, checked
from ..poptorch_core import createPoptorchError
from ..reports import auto_report
from . import compilation, compile_hooks, hosting, parts
from .optimizer_attributes import KnownAttributes
from .other_processes import meet_others, rank_among_others
from .session import Session

NOT_COMPILED = "Model has not been compiled or has been destroyed."


class ExecutorState:
    """The part of PoplarExecutor that a program does not see.

    Args:
        model: what is copied and runs; `user_model`, if given, is the model of the user's that it is a copy of.
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
        if not isinstance(model, torch.nn.Module):
            raise createPoptorchError(f"Invalid type: 'model' is of type {type(model)}, expected torch.nn.Module")
        options = checked(Options() if options is None else options)
        self._options = options.clone()
        self._options.resolve_output_mode(training)
        options.freeze()
        self._options.freeze()
        self._training = training
        self._version = poptorch_version
        self._user_model = model if user_model is None else user_model
        if not training and self._options.Training.gradient_accumulation != 1:
            raise createPoptorchError(
                "You must set poptorch.Options().Training.gradientAccumulation to 1 or leave it as its default value "
                "(1) when running a poptorch.inferenceModel()."
            )
        if training:
            option_effects.refuse_training(self._options)
        notices.report_without_effect(self._options)
        notices.report_environment()
        engine_options.report_folder(self._options)  # mistakes in these are told now, not after tracing
        number.wanted()
        self._model = hosting.executor_copy(model)
        self._policy = device_policy.choose()
        self._optimizer = optimizer
        if training and optimizer is None:
            self._optimizer = torch.optim.SGD(self._user_model.parameters(), lr=0.01)
        self._compiled: compilation.Compiled | None = None
        self._numerics = Numerics()
        self._strategy_asked_for = self._options.Training.meanAccumulationAndReplicationReductionStrategy
        if training:
            self._check_optimizer(self._optimizer)
        self._source: hosting.WeightSource | None = None  # of this executor, if it trains
        if training:
            self._wrap()
        else:
            hosting.make_groupable(self._user_model)
        self._offline = self._options.connection_type is ConnectionType.Never
        self._probe = Probe()  # a report, if one is asked for
        self._session: Session | None = None  # while attached to the device
        self._followed: hosting.WeightSource | None = None  # of the training executor whose weights were uploaded
        self._seen_version = -1
        self._random: RandomStreams | None = None
        self._kept_state: dict[str, Any] | None = None  # of a plain torch optimizer, while there is no device
        self._compile_seconds: float | None = None

    # -- compilation ---------------------------------------------------------------------------------------------

    def _require_compiled(self) -> None:
        if self._compiled is None:
            raise createPoptorchError(NOT_COMPILED)

    def _require_device(self) -> None:
        require(
            not self._offline,
            "Trying to run a model on an offline device (ConnectionType.Never): use "
            "options.connectionType(ConnectionType.Always) and no offline target to run it.",
        )

    def _require_session(self) -> Session:
        self._require_compiled()
        if self._session is None:
            raise createPoptorchError("Device is not attached")
        return self._session

    @surroundings.left_outside()
    def _compile(self, args: tuple, kwargs: dict[str, Any]) -> None:
        start = time.perf_counter()
        self._options.validate()
        if self._training:
            self._check_optimizer(self._optimizer)  # the model may have become half since
            if self._source is None:  # destroyed and called again
                self._wrap()
        else:
            hosting.make_groupable(self._user_model)
        self._sync_host()
        self._numerics = Numerics(self._kept_optimizer())
        try:
            compiled = self._trace(args, kwargs)
        finally:
            compile_hooks.run_after()
        rank = rank_among_others(self._options, self._training)
        self._probe = auto_report.probe(self._options, self._training, self._policy.device, compiled.program, rank)
        self._compiled = compiled
        if self._training:
            self._optimizer_attributes = KnownAttributes(self._optimizer, self._options.relax_optimizer_checks)
        self._random = RandomStreams(self._seed(), self._policy.device)
        try:
            if self._options.connection_type is ConnectionType.Always:
                self._attach()
            elif self._offline:
                self._probe.offline()
        except BaseException:
            self._compiled = None
            raise
        if self._policy.device.type == "cpu" and torch.get_num_threads() > 1:
            openmp.report_late()
        self._numerics.report()
        notices.report_differences()
        if not self._training:
            hosting.fix_grouping(self._user_model)
        self._compile_seconds = time.perf_counter() - start

    def _trace(self, args: tuple, kwargs: dict[str, Any]) -> compilation.Compiled:
        plain = hosting.plain(self._user_model)
        with torch.inference_mode(False), plain, parts.present(self._user_model), hosting.own_class(self._model):
            return compilation.compile_model(
                self._model, args, kwargs, self._options, self._training, self._policy, self._numerics
            )

    def _seed(self) -> int:
        """randomSeed, or else the seed of the user's generator: asking for it draws nothing."""
        if self._options.exists("random_seed"):
            return int(self._options.random_seed)
        return torch.initial_seed() % 2**31

    def _attach(self) -> None:
        compilation.check_reserved(self._compiled.program, self._options)
        self._sync_host()
        if meet_others(self._compiled, self._options, self._policy, self._training) and self._numerics.share():
            args, kwargs = self._compiled.call.example()
            self._compiled = self._trace(args, kwargs)
        kept = self._kept_optimizer()
        self._numerics.compare(kept)
        with torch.inference_mode(False):
            session = Session(
                self._compiled,
                self._user_model,
                self._options,
                self._policy,
                self._optimizer,
                kept,
                self._random,
                self._numerics,
            )
            self._mark_seen()
        session.runner.probe = self._probe
        self._session = session
        self._kept_state = None  # it lives on the device from now on
        if self._training:
            self._link_optimizer()
            self._source.used = True
            hosting.host(self._user_model, self._source)

    def _drop_session(self) -> None:
        if self._session is not None:
            self._session.close()
        self._session = None

    # -- weights -------------------------------------------------------------------------------------------------

    def _wrap(self) -> None:
        source = hosting.WeightSource(self._fetch_weights)
        hosting.wrap(self._user_model, self._model, source, self.destroy, self._upload_if_attached, self._gather)
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

    def _gather(self, everywhere: bool = False) -> bool:
        """Of a replica over several processes the first one, or each, gets all weights. All of them must call it.

        Whether it is such a replica.
        """
        spread = self._session is not None and self._session.spread
        if spread:
            self._session.download(whole=True, everywhere=everywhere)
        return spread

    def _sync_host(self) -> None:
        """The host's weights are about to be used: those of a training executor's device may be newer."""
        hosting.sync(self._user_model)

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

    def _check_optimizer(self, optimizer: Any) -> None:
        """AssertionError or ValueError for an optimizer that no program can be compiled with.

        Before compilation it may also decide how the mean over micro-batches is formed.
        """
        parameters = dict(self._user_model.named_parameters())
        settings = hyperparameters.read(optimizer, parameters, self._options.relax_optimizer_checks)
        dtypes = {parameter.dtype for parameter in parameters.values()}
        if self._compiled is None:
            running = hyperparameters.keeps_running_mean(settings, dtypes)
            # Frozen for the program, not for the executor.
            self._options.Training._values["meanAccumulationAndReplicationReductionStrategy"] = (
                MeanReductionStrategy.Running if running else self._strategy_asked_for
            )

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
            session = self._session
            keep = functools.partial(session.read_optimizer, everywhere=True)
            self._optimizer._link_device(session.read_optimizer, session.write_optimizer, keep)

    def _unlink_optimizer(self) -> None:
        """Leave the device's state with the optimizer object; of several processes, in each of them all of it."""
        if self._session is None:
            return
        if isinstance(self._optimizer, optim.Optimizer):
            self._optimizer._unlink_device()
        else:
            self._kept_state = self._session.read_optimizer(everywhere=True)
