"""Weight updates on the device: one optimizer step for the parameters of a program.

The arithmetic is float32. Tensors that are kept in another type (half weights, accumulators, moments) are converted
piece by piece, so that no full-size copy of them ever exists; float32 tensors are updated where they lie, by torch's
fused kernels. On a CPU, Adam's are updated where they lie whatever their types, by a kernel of device/native/.
"""

from __future__ import annotations

import contextlib
import dataclasses
import math
from collections.abc import Iterator, Mapping
from typing import Any

import torch

from ...device import split_weights
from ...device.half_products import Rounded, whole_copy
from ...device.native import adam as adam_kernel
from . import hyperparameters, registered_rules, update_rules
from .device_states import DeviceStates, velocity_scale
from .loss_scaling import AutomaticLossScaling
from .pieces import Float32Views, Piece, buckets, chunk_elements, cut
from .spread import Spread


class DeviceOptimizer(DeviceStates):
    """One optimizer's states on the device, and its step.

    Args:
        optimizer: a torch.optim or poptorch.optim SGD, Adam, AdamW, RMSprop or poptorch.optim.LAMB, or one of a class
            with a registered rule; only read.
        named_params: the user model's parameters by name; their identity finds the group they belong to.
        device_params: the contiguous tensors to update, under the same names; float32 masters or half. Or weights in
            two parts (split_weights.py), if updates_split_weights(optimizer), none of them sharded.
        param_dtypes: the types the program sees, which decide the default type of gradient accumulators.
        stochastic_rounding: round updated half weights stochastically instead of to nearest.
        generator: random numbers for that; None for the device's default generator.
        relax_attribute_checks: say nothing about unexpected group attributes above the debug level.
        automatic_scaling: the factor on the optimizer's loss_scaling that follows the gradients, or None.
        spread: what other processes have of the parameters and of their states.
        states_apart: states are kept in the host's memory, and are on the device while they are used, piece by piece.
    Raises:
        AssertionError, ValueError: as hyperparameters.read.
    """

    def __init__(
        self,
        optimizer: torch.optim.Optimizer,
        named_params: Mapping[str, torch.nn.Parameter],
        device_params: Mapping[str, torch.Tensor],
        *,
        param_dtypes: Mapping[str, torch.dtype],
        stochastic_rounding: bool,
        generator: torch.Generator | None,
        relax_attribute_checks: bool = False,
        automatic_scaling: AutomaticLossScaling | None = None,
        spread: Spread | None = None,
        states_apart: bool = False,
    ):
        self._states_apart = states_apart
        self._spread = Spread() if spread is None else spread
        self._relax = relax_attribute_checks
        self._automatic = automatic_scaling
        self._host_params = {name: param for name, param in named_params.items() if param.requires_grad}
        self._settings = self._scaled(hyperparameters.read(optimizer, self._host_params, relax_attribute_checks))
        self._device_params = {name: device_params[name] for name in self._host_params}
        self._whole = {name: param.detach() for name, param in self._device_params.items()}
        split = {name: split_weights.parts_of(param) for name, param in self._device_params.items()}
        self._split = {name: parts for name, parts in split.items() if parts is not None}
        contiguous = (param.is_contiguous() for name, param in self._whole.items() if name not in self._split)
        assert all(contiguous), "device parameters must be contiguous"
        self._params = {name: self._spread.own(name, param) for name, param in self._whole.items()}
        self._param_dtypes = dict(param_dtypes)
        self._stochastic_rounding = stochastic_rounding
        self._generator = generator
        self._states: dict[str, dict[str, torch.Tensor]] = {name: {} for name in self._params}
        self._steps = dict.fromkeys(self._params, 0)
        self._allocate_states()
        self._rounded: list[tuple[str, Rounded]] = []  # copies of weights that this step has written

    @property
    def loss_scaling(self) -> float:
        """What the loss is to be multiplied by before the backward pass."""
        return self._settings.loss_scaling

    def _adapt_scaling(self, grads: Mapping[str, torch.Tensor]) -> float:
        """What the loss scaling is to be multiplied by after this step. Gradients are brought into half's range."""
        half = [grad for name, grad in grads.items() if self._param_dtypes[name] == torch.float16]
        counted = [name not in self._spread.elsewhere for name in grads if self._param_dtypes[name] == torch.float16]
        return self._automatic.observe(half, counted, self._spread.added)

    def _multiply_scaling(self, change: float) -> None:
        scales = self._velocity_scales()
        self._automatic.factor *= change
        self._settings = dataclasses.replace(self._settings, loss_scaling=self._settings.loss_scaling * change)
        self._rescale_velocities(scales)

    @property
    def measures_norms(self) -> bool:
        """Whether an update may depend on the norm of whole tensors."""
        settings = self._settings
        return settings.kind == "LAMB" or settings.rule is not None or not math.isinf(settings.max_grad_norm)

    def accum_dtype(self, name: str) -> torch.dtype:
        """The type in which the gradients of parameter `name` are to be accumulated."""
        return hyperparameters.accum_dtype(self._settings, self._param_dtypes[name])

    def set_optimizer(self, optimizer: torch.optim.Optimizer) -> None:
        """Take new hyper-parameters from `optimizer`; the states stay.

        Raises:
            poptorch.Error: another type of optimizer, or a changed constant attribute.
            ValueError: accumulators of another type, and so another way to form the mean.
        """
        settings = self._scaled(hyperparameters.read(optimizer, self._host_params, self._relax))
        hyperparameters.check_change(self._settings, settings)
        dtypes = self._param_dtypes
        if any(hyperparameters.accum_dtype(settings, dtypes[name]) != self.accum_dtype(name) for name in self._params):
            raise ValueError(
                "accum_type of the optimizer decides between meanAccumulationAndReplicationReductionStrategy Post and "
                "Running, and cannot change any more: the model is already compiled."
            )
        scales = self._velocity_scales()
        # What may change was settled at compilation, by the first optimizer.
        self._settings = hyperparameters.with_constants_of(settings, self._settings)
        self._allocate_states()
        self._rescale_velocities(scales)

    def independent(self, names: frozenset[str]) -> frozenset[str]:
        """Those of these parameters whose update, by the kernel, depends on nothing but their own gradient and states.

        The others' must be there for norms, automatic loss scaling and what processes share.
        """
        if self.measures_norms or self._automatic is not None or not self._spread.is_alone:
            return frozenset()
        return frozenset(name for name in names if self._has_kernel([name], {}))

    @torch.no_grad()
    def step(self, grads: Mapping[str, torch.Tensor]) -> None:
        """One update of the parameters that `grads` has a gradient for; the others stay as they are.

        Args:
            grads: by name, reduced over accumulation and replicas, still multiplied by loss_scaling. Overwritten.
        """
        names = [name for name in self._params if name in grads]
        if not names and self._spread.parts is None:
            return
        grads = {name: grads[name].reshape(-1) for name in names}
        change = 1.0 if self._automatic is None else self._adapt_scaling(grads)
        divisor = self._divisor([grad for name, grad in grads.items() if name not in self._spread.elsewhere])
        for name in names:
            self._steps[name] += 1
        if self._settings.rule is not None:
            for name in names:
                self._registered_step(name, grads[name], divisor)
            self._finish(names, change)
            return
        grads = {name: self._spread.own(name, grad) for name, grad in grads.items()}
        for alike in self._alike(names, grads).values():
            if self._settings.kind == "LAMB":
                self._lamb_step(alike, grads, divisor)
            elif self._has_kernel(alike, grads):
                self._kernel_step(alike, grads, divisor)
            else:
                with self._joined(alike):
                    self._elementwise_step(alike, grads, divisor)
        self._finish(names, change)

    def _finish(self, names: list[str], change: float) -> None:
        """Every process gets the weights that others have updated; the loss scaling follows the gradients."""
        self._spread.spread(self._whole, names)
        # Fused updates, and what came from other processes, do not count as changes by themselves.
        copies = [entry.copy for _, entry in self._rounded]
        copies += (self._split[name].rounded for name in names if name in self._split)
        torch.autograd.graph.increment_version([*(self._whole[name] for name in names), *copies])
        for name, entry in self._rounded:
            entry.version = self._whole[name]._version
        self._rounded.clear()
        if change != 1.0:
            self._multiply_scaling(change)

    @contextlib.contextmanager
    def _joined(self, names: list[str]) -> Iterator[None]:
        """In here those of these weights that are in two parts are float32 tensors; what becomes of them stays."""
        split = {name: self._params[name] for name in names if name in self._split}
        self._params.update((name, self._split[name].whole()) for name in split)
        yield
        for name in split:
            self._split[name].assign(self._params[name])
        self._params.update(split)

    def _divisor(self, grads: list[torch.Tensor]) -> float | torch.Tensor:
        """What gradients are divided by: the loss scaling, and more if their norm exceeds max_grad_norm.

        The Adam family measures the norm of unscaled gradients, SGD that of scaled ones. A clipped step stays on the
        device: the norm is not read back.
        """
        scaling, limit = self._settings.loss_scaling, self._settings.max_grad_norm
        if math.isinf(limit):
            return scaling
        norm = _norm(grads)
        if self._spread.parts is not None:
            norm = self._spread.added([norm.square()])[0].sqrt()
        if self._settings.kind != "SGD":
            norm = norm / scaling
        return scaling * norm.clamp(min=limit) / limit

    def _alike(self, names: list[str], grads: Mapping[str, torch.Tensor]) -> dict[Any, list[str]]:
        """Names by everything that must agree within one call of a rule."""
        sets: dict[Any, list[str]] = {}
        for name in names:
            param, states = self._params[name], self._states[name]
            dtypes = tuple((role, state.dtype) for role, state in states.items())
            key = (self._settings.values[name], self._steps[name], param.device, param.dtype, grads[name].dtype, dtypes)
            sets.setdefault(key, []).append(name)
        return sets

    def _elementwise_step(self, names: list[str], grads: Mapping[str, torch.Tensor], divisor: Any) -> None:
        settings, first = self._settings, names[0]
        values, step, device = settings.values[first], self._steps[first], self._params[first].device
        scale = velocity_scale(settings, values)
        if settings.kind == "SGD":
            divisor = divisor / scale
        divisor = _as_tensor(divisor, device)
        for pieces in self._buckets(names, grads):
            params = Float32Views(cut(self._params, pieces))
            g = Float32Views(cut(grads, pieces)).tensors
            states = self._load_states(pieces)
            accl1, accl2, accl3 = (
                states[role].tensors if role in states else [] for role in ("Accl1", "Accl2", "Accl3")
            )
            if settings.kind == "SGD":
                velocities = states["Accl"].tensors if "Accl" in states else accl1
                update_rules.sgd(params.tensors, g, velocities, values, scale, divisor)
            elif settings.kind == "RMSprop":
                tf_variant = settings.use_tf_variant
                update_rules.rmsprop(params.tensors, g, accl1, accl2, accl3, values, tf_variant, divisor)
            else:
                update_rules.adam(params.tensors, g, accl1, accl2, values, step, divisor)
            for state in states.values():
                state.write_back()
            params.write_back(self._stochastic_rounding, self._generator)

    def _has_kernel(self, names: list[str], grads: Mapping[str, torch.Tensor]) -> bool:
        """Whether the kernel updates these parameters."""
        param, values = self._params[names[0]], self._settings.values[names[0]]
        stochastic = self._stochastic_rounding and param.dtype == torch.float16
        if self._settings.kind not in ("Adam", "AdamW") or self._states_apart or stochastic:
            return False
        weights = [self._split[name].rounded if name in self._split else self._params[name] for name in names]
        tensors = [*weights, *(state for name in names for state in self._states[name].values())]
        tensors += (grads[name] for name in names if name in grads)
        return max(values.beta1, values.beta2) < 1.0 and adam_kernel.serves(tensors)

    def _kernel_step(self, names: list[str], grads: Mapping[str, torch.Tensor], divisor: Any) -> None:
        first = names[0]
        divisor = _as_tensor(divisor, self._params[first].device)
        # A shard has none: the others' are still to come.
        whole = [name for name in names if self._params[name] is self._whole[name]]
        rounded = {name: entry for name in whole if (entry := whole_copy(self._device_params[name])) is not None}
        self._rounded += rounded.items()
        split = {name: self._split[name] for name in names if name in self._split}
        adam_kernel.adam(
            [split.get(name, self._params[name]) for name in names],
            [grads[name] for name in names],
            [self._states[name]["Accl1"] for name in names],
            [self._states[name]["Accl2"] for name in names],
            [rounded[name].copy if name in rounded else None for name in names],
            **dataclasses.asdict(self._settings.values[first]),
            step=self._steps[first],
            divisor=1.0 if divisor is None else divisor.item(),
        )

    def _lamb_step(self, names: list[str], grads: Mapping[str, torch.Tensor], divisor: Any) -> None:
        """Over the pieces three times: the moments, then the norms of whole tensors, then the update that needs them.

        The direction is computed twice, from the stored moments (half ones are rounded by then): keeping it would
        cost as much memory as the parameters.
        """
        values, device = self._settings.values[names[0]], self._params[names[0]].device
        divisor = _as_tensor(divisor, device)
        position = {name: i for i, name in enumerate(names)}
        owners: list[int] = []
        norms: tuple[list[torch.Tensor], list[torch.Tensor]] = ([], [])
        for pieces in self._buckets(names, grads):
            states = self._load_states(pieces)
            g = Float32Views(cut(grads, pieces)).tensors
            update_rules.lamb_moments(g, states["Accl1"].tensors, states["Accl2"].tensors, values, divisor)
            for state in states.values():
                state.write_back()
            params, x = self._lamb_direction(pieces)
            owners += [position[name] for name, _, _ in pieces]
            norms[0].extend(torch._foreach_norm(params.tensors))
            norms[1].extend(torch._foreach_norm(x))
        owner = torch.tensor(owners, device=device)
        zeros = torch.zeros(len(names), dtype=torch.float32, device=device)
        squares = [zeros.index_add(0, owner, torch.stack(each).square()) for each in norms]  # (names,) each
        whole = [self._spread.squares(names, each).sqrt() for each in squares]
        trust = iter(update_rules.lamb_trust(*whole, values.max_weight_norm)[owner].unbind())
        for pieces in self._buckets(names, grads):
            params, x = self._lamb_direction(pieces)
            update_rules.lamb_apply(params.tensors, x, [next(trust) for _ in pieces], values.lr)
            params.write_back(self._stochastic_rounding, self._generator)

    def _lamb_direction(self, pieces: list[Piece]) -> tuple[Float32Views, list[torch.Tensor]]:
        name = pieces[0][0]
        params, states = Float32Views(cut(self._params, pieces)), self._load_states(pieces)
        x = update_rules.lamb_direction(
            params.tensors,
            states["Accl1"].tensors,
            states["Accl2"].tensors,
            self._settings.values[name],
            self._steps[name],
            self._settings.bias_correction,
        )
        return params, x

    def _registered_step(self, name: str, grad: torch.Tensor, divisor: Any) -> None:
        """By the optimizer's registered rule, in pieces if that allows them."""
        rule, values, whole = self._settings.rule, self._settings.values[name], self._whole[name]
        weights, device = self._params[name].view(-1), whole.device
        divisor = _as_tensor(divisor, device)
        norm = _norm([grad]) if divisor is None else _norm([grad]) / divisor
        grad = self._spread.own(name, grad)
        for start, stop in registered_rules.pieces(rule, len(weights), chunk_elements(device)):
            param = Float32Views([weights[start:stop]])
            g = Float32Views([grad[start:stop]]).tensors[0]
            if divisor is not None:
                g.div_(divisor)
            stored = registered_rules.of_piece(self._states[name], rule, len(weights), start, stop)
            states = {role: state.to(device) for role, state in stored.items()}  # the same ones unless kept apart
            shape = whole.shape if rule.block is None else g.shape
            w = param.tensors[0]
            rule.update(w.view(shape), g.view(shape), states, values.group, self._steps[name], norm)
            if self._states_apart:
                for role, state in stored.items():
                    state.copy_(states[role])
            param.write_back(self._stochastic_rounding, self._generator)

    def _load_states(self, pieces: list[Piece]) -> dict[str, Float32Views]:
        roles = self._states[pieces[0][0]]
        apart = self._params[pieces[0][0]].device if self._states_apart else None
        return {
            role: Float32Views([self._states[name][role].view(-1)[start:stop] for name, start, stop in pieces], apart)
            for role in roles
        }

    def _buckets(self, names: list[str], grads: Mapping[str, torch.Tensor]) -> Iterator[list[Piece]]:
        """Lists of pieces of at most one chunk together; one list of everything if no temporaries are needed."""
        param = self._params[names[0]]
        tensors = [param, grads[names[0]], *self._states[names[0]].values()]
        fused = self._settings.kind in ("SGD", "Adam", "AdamW") and all(t.dtype == torch.float32 for t in tensors)
        fused = fused and not self._states_apart
        sizes = {name: self._params[name].numel() for name in names}
        return buckets(sizes, sum(sizes.values()) if fused else chunk_elements(param.device))


def updates_split_weights(optimizer: torch.optim.Optimizer) -> bool:
    """Whether the kernel updates weights by this optimizer, which may be in two parts then."""
    if registered_rules.registered_rule(optimizer) is not None or not adam_kernel.available():
        return False
    return hyperparameters.kind_of(optimizer) in ("Adam", "AdamW")


def _norm(grads: list[torch.Tensor]) -> torch.Tensor:
    """The norm of all of these together, 0-d float32, on the device of the first; flattened ones of any type."""
    pieces = [piece for grad in grads for piece in grad.split(chunk_elements(grad.device))]
    norms = [torch.linalg.vector_norm(piece.float()) for piece in pieces] or [torch.zeros((), dtype=torch.float32)]
    return torch.linalg.vector_norm(torch.stack([each.to(norms[0].device) for each in norms]))


def _as_tensor(divisor: float | torch.Tensor, device: torch.device) -> torch.Tensor | None:
    """A 0-d float32 tensor on `device`, or None for 1."""
    if isinstance(divisor, torch.Tensor):
        return divisor.to(device)
    return None if divisor == 1.0 else torch.full((), divisor, dtype=torch.float32, device=device)
