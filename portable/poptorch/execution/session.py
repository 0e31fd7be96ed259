"""A compiled program on its device: weights, optimizer state and gradients live as long as it is attached."""

from __future__ import annotations

import functools
from typing import Any

import torch

from .. import notices
from ..device import half_products, memory
from ..device import policy as device_policy
from ..device.policy import Policy
from ..engine.as_one import number
from ..engine.as_one.number import AsOne
from ..engine.as_one.stacking import NotProven, StackedProgram, product_rows, stack
from ..engine.numerics import Numerics
from ..engine.processes import clock, collecting, group
from ..engine.processes.collecting import Owned
from ..engine.processes.layout import Layout
from ..engine.running.anchors import Anchors, tensor_names
from ..engine.running.gradients import GradientAccumulator
from ..engine.running.pipeline import PipelineRunner
from ..engine.running.placement import first_names
from ..engine.running.probe import Probe
from ..engine.running.randomness import RandomStreams
from ..engine.running.rounded_weights import only_multiplied, round_weights
from ..engine.running.runner import Runner
from ..engine.running.state import DeviceState
from ..engine.stages import Program
from ..engine.updating import registered_rules
from ..engine.updating.loss_scaling import AutomaticLossScaling
from ..engine.updating.optimizer import DeviceOptimizer, updates_split_weights
from ..engine.updating.spread import Spread
from ..enums import MeanReductionStrategy, ReductionType
from ..options.executor_options import Options
from ..poptorch_core import createPoptorchError
from . import hosting
from .compilation import Compiled
from .other_processes import facts, rank_among_others
from .parts import Parts

# In an optimizer's state: weights that the device holds in float32 while the program sees half ones.
MASTERS = "ipu_master_weights"


class Session:
    """Builds everything, uploads the host's weights, and with `kept` continues from an optimizer state.

    Args:
        model: the user's model, whose weights are copied to and fro.
        optimizer: the user's optimizer, or None for inference.
        kept: what read_optimizer() gave once, or None.
        random: what the program draws from.
        numerics: what was chosen for the program.

    Of several processes all have met.
    """

    def __init__(
        self,
        compiled: Compiled,
        model: torch.nn.Module,
        options: Options,
        policy: Policy,
        optimizer: torch.optim.Optimizer | None,
        kept: dict[str, Any] | None,
        random: RandomStreams,
        numerics: Numerics,
    ):
        self._numerics = numerics
        self._model = model
        self._options = options
        self.optimizer: DeviceOptimizer | None = None
        self._accumulator: GradientAccumulator | None = None
        self.together: Any = None  # all processes, if none has the whole state of the optimizer
        counts, layout = compiled.counts, Layout.of(options)
        self._replicas: Any = None  # the processes that have the other replicas, where these train together
        self._parts: Parts | None = None  # of this replica, where it lies over several processes
        if rank_among_others(options, optimizer is not None) is not None:
            if optimizer is not None:
                self._replicas = group.replicas(layout)
            group.check_gpus(policy.device, layout)
            with hosting.plain(model):
                group.agree_on(facts(model, compiled, options), layout)
                if layout.parts > 1:
                    self._parts = Parts(compiled, model, options, layout, policy)
        program = compiled.program if self._parts is None else self._parts.placement.local
        with hosting.plain(model):
            self._state = DeviceState(
                program,
                model,
                policy,
                optimizer is not None,
                counts.replicas,
                counts.replica(0),
                counts.all_replicas,
                self._multiplied(program, optimizer),
            )
            if optimizer is not None:
                self._build_optimizer(optimizer, compiled)
        if compiled.products is not None or (policy.half_as_float and _has_half(model)):
            notices.difference("half as float", *device_policy.explain(compiled.products))
            for weight in self._state.parameters.values():
                half_products.keep_rounded(weight)
        if kept is not None:
            self._load_optimizer(kept)
        self.upload((kept or {}).get(MASTERS))
        round_weights(program, self._state.values)
        self.anchors = self._anchors(compiled)
        make, spread = Runner, {}
        if self._parts is not None:
            with hosting.plain(model):
                self._parts.release(model)
            memory.give_back_freed_memory()
            make, overlap = PipelineRunner, options.execution_strategy.kind == "pipelined"
            spread = {"placement": self._parts.placement, "links": self._parts.links, "overlap": overlap}
        self.runner = make(
            compiled.program,
            self._state,
            compiled.counts,
            options.output_mode,
            options.output_return_period,
            policy,
            optimizer=self.optimizer,
            accumulator=self._accumulator,
            anchors=self.anchors,
            random=random,
            stop_at_invalid=options.Precision.floating_point_exceptions,
            as_one=self._as_one(compiled),
            **spread,
        )

    def _multiplied(self, program: Program, optimizer: torch.optim.Optimizer | None) -> frozenset[str]:
        """Values of weights that may be in two parts: an optimizer's update must take them so, whole ones."""
        shared_out = self._options.TensorLocations.min_sharded_state is not None
        if optimizer is not None and (shared_out or not updates_split_weights(optimizer)):
            return frozenset()
        shared = () if self._parts is None else self._parts.placement.shared  # other processes read them, too
        return frozenset(value for value in only_multiplied(program) if program.parameters[value] not in shared)

    def _as_one(self, compiled: Compiled) -> AsOne:
        """How many micro-batches run as one."""
        counts, training = compiled.counts, self.optimizer is not None
        micro_batches = counts.accumulation * counts.replicas * (1 if training else counts.iterations)
        shapes = zip(compiled.program.inputs, compiled.micro_batch, strict=True)
        same = {name for name, shape in shapes if not len(shape)}
        most = worth = None
        if self._parts is not None:  # a pipeline of few micro-batches would be idle while it fills
            most = micro_batches // (4 * len(self._parts.placement.spans))
            overlap = self._options.execution_strategy.kind == "pipelined"
            if overlap and not self._has_memory_of_its_own:  # of a GPU nothing is known
                rows = product_rows(compiled.program)
                worth = number.fastest(micro_batches, rows, self._parts.placement.parts, most)

        def several() -> StackedProgram:
            found = stack(compiled.program, same, training)
            if self._parts is not None and not found.sure:  # processes cannot start again one at a time
                raise NotProven("forward() changes a tensor in place by an operation that may have no rule")
            return found

        chosen = number.choose(several, micro_batches, self._numerics, most, self._one_at_a_time(), worth)
        kind = "training" if training else "inference"
        if chosen.number > 1:
            notices.difference(
                ("as one", chosen.number, training),
                f"{chosen.number} micro-batches run as one",
                f"{chosen.number} micro-batches run as one in {kind}: the program does the same with each of them "
                f"({number.VARIABLE}=1: one at a time).",
            )
        elif counts.micro_batches > 1:
            notices.logger.info("Micro-batches run one at a time in %s: %s.", kind, chosen.reason)
        return chosen

    def _one_at_a_time(self) -> str:
        """Why micro-batches must run one at a time whatever the program; empty if they need not."""
        running = (
            self._options.Training.meanAccumulationAndReplicationReductionStrategy == MeanReductionStrategy.Running
        )
        if self.anchors is not None:
            return "tensors are anchored"
        if self._options.Precision.floating_point_exceptions:
            return "each is checked for floating-point exceptions"
        if self._state.grouped:
            return "weights differ between groups of replicas"
        if (
            self.optimizer is not None
            and running
            and any(t.dtype == torch.float16 for t in self._state.parameters.values())
        ):
            return "a running mean keeps half gradients from overflowing, which their sum might"
        return ""

    def _anchors(self, compiled: Compiled) -> Anchors | None:
        """What Options.anchorTensor() asked for, if it did."""
        wanted = self._options.anchored_tensors
        counts = compiled.counts
        sizes = (counts.iterations, counts.accumulation, counts.replicas)
        if not wanted:
            return None
        known = self.tensor_names(compiled)
        if self._parts is None:
            return Anchors(wanted, compiled.program, self._state, compiled.input_names, known, sizes)
        parts = self._parts
        return Anchors(
            wanted, compiled.program, self._state, compiled.input_names, known, sizes, parts.owner, parts.placement.part
        )

    @property
    def _scales_automatically(self) -> bool:
        return self.optimizer is not None and _automatic_scaling(self._options) is not None

    def tensor_names(self, compiled: Compiled) -> list[str]:
        """The names that Options.anchorTensor() takes."""
        training, scaled, program = self.optimizer is not None, self._scales_automatically, compiled.program
        with hosting.plain(self._model):
            first = first_names(self._model)
            trained = {name: p.requires_grad for name, p in self._model.named_parameters(remove_duplicate=False)}
        parameters = {first[name]: trained[name] for name in program.parameters.values()}
        return tensor_names(program, parameters, list(program.buffers.values()), compiled.input_names, training, scaled)

    def upload_buffers(self, names: list[str]) -> None:
        """Host -> device for these buffers."""
        with hosting.plain(self._model):
            self._state.upload_buffers(self._model, names)

    def _build_optimizer(self, optimizer: torch.optim.Optimizer, compiled: Compiled) -> None:
        options, state = self._options, self._state
        host = dict(self._model.named_parameters())
        named = {name: host[name] for name in state.parameters}
        rule = registered_rules.registered_rule(optimizer)
        block = 1 if rule is None else rule.block
        sharded = {} if block is None else self._sharded(block)
        if sharded or self._parts is not None:
            self.together = group.everybody()
        self.optimizer = DeviceOptimizer(
            optimizer,
            named,
            state.parameters,
            param_dtypes={name: parameter.dtype for name, parameter in named.items()},
            stochastic_rounding=options.Precision.stochastic_rounding,
            generator=None,
            relax_attribute_checks=options.relax_optimizer_checks,
            automatic_scaling=_automatic_scaling(options),
            spread=self._spread(sharded, block or 1),
            states_apart=options.TensorLocations.state_off_chip and self._has_memory_of_its_own,
        )
        if state.grouped and self.optimizer.measures_norms:
            raise createPoptorchError(
                f"replicaGrouping: parameter {state.grouped[0]} differs between groups of replicas, which LAMB, "
                "registered update rules and max_grad_norm do not support in this runtime: use another optimizer "
                "without clipping"
            )
        training = options.Training
        self._accumulator = GradientAccumulator(
            state.parameters,
            {name: self.optimizer.accum_dtype(name) for name in state.parameters},
            compiled.counts.accumulation * compiled.counts.all_replicas,
            mean=training.accumulation_and_replication_reduction_type == ReductionType.Mean,
            running=training.meanAccumulationAndReplicationReductionStrategy == MeanReductionStrategy.Running,
            group=self._replicas,
            passes={} if self._parts is None else self._parts.placement.passes,
        )

    @property
    def _has_memory_of_its_own(self) -> bool:
        """Whether the device has, so that something can be kept in the host's instead."""
        return any(parameter.is_cuda for parameter in self._state.parameters.values())

    def _spread(self, sharded: dict[str, int], block: int) -> Spread:
        if self._parts is None:
            return Spread(sharded, self._replicas, block=block)
        placement = self._parts.placement
        elsewhere = [name for name, which in placement.shared.items() if which[0] != placement.part]
        return Spread(sharded, self._replicas, self._parts.links.replica, elsewhere, block)

    def _sharded(self, block: int) -> dict[str, int]:
        """Elements of the parameters whose optimizer states are shared out among the replicas, by name.

        A shard begins at a multiple of `block` elements.
        """
        least, processes = self._options.TensorLocations.min_sharded_state, Layout.of(self._options).processes
        if least is None or processes == 1:
            return {}
        least = max(least, processes**2 * block)  # no shard is empty then
        sizes = {name: tensor.numel() for name, tensor in self._state.parameters.items() if tensor.requires_grad}
        return {name: size for name, size in sizes.items() if size >= least}

    def upload(self, masters: dict[str, torch.Tensor] | None = None) -> None:
        """Host -> device; `masters` are more precise copies of the host's weights."""
        with hosting.plain(self._model):
            self._state.upload(self._model, masters)

    def download(self, whole: bool = False, everywhere: bool = False) -> None:
        """Device -> host. Of a replica over several processes what this one has.

        With `whole` the first of them gets everything, or each of them `everywhere`: all of them must ask.
        """
        with hosting.plain(self._model):
            self._state.download(self._model)
            if whole and self._parts is not None:
                self._parts.gather(self._model, everywhere)

    @property
    def spread(self) -> bool:
        """Whether other processes have parts of this replica."""
        return self._parts is not None

    def ready(self) -> None:
        """A call begins: weights of other processes that were brought here take no memory any more."""
        if self._parts is not None:
            with hosting.plain(self._model):
                self._parts.released_again(self._model)

    def read_optimizer(self, everywhere: bool = False) -> dict[str, Any]:
        """The optimizer's state, and the weights where the device holds them more precisely than the program.

        Where several processes have parts of it all must ask; see collecting.collect for what each gets.
        """
        collect = functools.partial(collecting.collect, group=self.together, everywhere=everywhere)
        if self.together is None:
            collect = collecting.copies if self._replicas is None else collecting.copies_on_disk
        state = self.optimizer.state_dict(collect)
        state["ipu_state"] = self._state.replicated(state["ipu_state"])
        if self.together is not None:
            state["ipu_param"] = collecting.union(state["ipu_param"], self.together)
        with hosting.plain(self._model):
            precise = self._state.masters(self._model)
            masters = collect({name: Owned(tensor.shape, tensor) for name, tensor in precise.items()})
        return {**state, **({MASTERS: masters} if masters else {}), **self._numerics.record()}

    def write_optimizer(self, state: dict[str, Any]) -> None:
        """Continue from what read_optimizer() gave, the weights in it included."""
        self._load_optimizer(state)
        self._numerics.compare(state)
        if MASTERS in state:
            self._state.load_masters(state[MASTERS])

    def _load_optimizer(self, state: dict[str, Any]) -> None:
        if state.get("ipu_state") is not None:
            state = {**state, "ipu_state": self._state.grouped_states(state["ipu_state"])}
        self.optimizer.load_state_dict(state)

    def tell(self, probe: Probe) -> None:
        """Of several processes the first one's probe hears what all did in the call that has ended."""
        events = probe.events()
        if events is not None:
            with probe.telling():
                told = clock.gather(events, probe.facts())
                if told is not None:
                    probe.told(*told)

    def close(self) -> None:
        """Free the device."""
        if self._accumulator is not None:
            self._accumulator.release()


def _has_half(model: torch.nn.Module) -> bool:
    return any(parameter.dtype == torch.float16 for parameter in model.parameters())


def _automatic_scaling(options: Options) -> AutomaticLossScaling | None:
    popart = options._Popart
    if not popart.get("automaticLossScalingSettings.enabled", False):
        return None
    prefix = "automaticLossScalingSettings."
    return AutomaticLossScaling(
        bin_edge=popart.get(prefix + "binEdgeLocation", 0.125),
        threshold=popart.get(prefix + "thresholdUpperCountProportion", 1e-7),
        period=popart.get(prefix + "updatePeriod", 1),
    )
