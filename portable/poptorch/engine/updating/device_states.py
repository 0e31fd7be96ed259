"""The states that an optimizer keeps on the device, and their exchange with the host (spec section 7)."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import torch

from ... import notices
from ..processes.collecting import Owned, copies
from . import optimizer_state, registered_rules
from .hyperparameters import Settings
from .loss_scaling import AutomaticLossScaling
from .optimizer_values import Values
from .spread import Spread

_UPDATE_FACTOR = "lossScaleUpdateFactor"
Collect = Callable[[Mapping[str, Owned]], dict[str, torch.Tensor]]


class DeviceStates:
    """Moments, velocities and step counts by parameter. DeviceOptimizer makes the attributes and adds the step."""

    _settings: Settings
    _whole: dict[str, torch.Tensor]
    _params: dict[str, torch.Tensor]  # what is updated here: the whole ones or shards of them
    _spread: Spread
    _states_apart: bool
    _param_dtypes: dict[str, torch.dtype]
    _states: dict[str, dict[str, torch.Tensor]]
    _steps: dict[str, int]
    _automatic: AutomaticLossScaling | None

    @property
    def states(self) -> Mapping[str, Mapping[str, torch.Tensor]]:
        """The tensors that this process keeps, by parameter and role."""
        return self._states

    def _scaled(self, settings: Settings) -> Settings:
        """`settings` with the automatic factor in their loss scaling, which is variable then."""
        if self._automatic is None:
            return settings
        scaling = settings.loss_scaling * self._automatic.factor
        return dataclasses.replace(settings, loss_scaling=scaling, loss_scaling_constant=False)

    def _velocity_role(self) -> str:
        return "Accl" if self._settings.use_combined_accum else "Accl1"

    def _forms(self, name: str) -> dict[str, registered_rules.StateForm]:
        """Shapes and types of the states that parameter `name` needs, as they are here: whole ones or shards."""
        settings, values, shape = self._settings, self._settings.values[name], self._whole[name].shape
        if settings.rule is not None:
            return registered_rules.forms(settings.rule, shape, self._params[name].numel(), values.group)
        return {role: (self._params[name].shape, dtype) for role, dtype in self._roles(name).items()}

    def _whole_forms(self, name: str) -> dict[str, tuple[torch.Size, int]]:
        """The shape of each whole state of parameter `name`, and the elements that an entry of it belongs to."""
        rule, shape = self._settings.rule, self._whole[name].shape
        if rule is None:
            return {role: (shape, 1) for role in self._roles(name)}
        forms = registered_rules.forms(rule, shape, shape.numel(), self._settings.values[name].group)
        return {role: (form, registered_rules.entry_elements(rule, shape, form)) for role, (form, _) in forms.items()}

    def _roles(self, name: str) -> dict[str, torch.dtype]:
        """The states that PopTorch's optimizers keep of parameter `name`, of its shape, and their types."""
        settings, values = self._settings, self._settings.values[name]
        if settings.kind == "SGD":
            # The combined accumulator is of the weight's type: there is no option for it.
            combined = torch.float16 if self._param_dtypes[name] == torch.float16 else torch.float32
            dtype = combined if settings.use_combined_accum else settings.velocity_type
            return {self._velocity_role(): dtype} if values.momentum else {}
        if settings.kind == "RMSprop":
            roles = {"Accl1": settings.second_type}
            if values.centered:
                roles["Accl2"] = settings.first_type
            if values.momentum:
                roles["Accl3"] = settings.first_type
            return roles
        return {"Accl1": settings.first_type, "Accl2": settings.second_type}

    def _allocate_states(self) -> None:
        for name, param in self._params.items():
            wanted = self._forms(name)
            states = self._states[name]
            for role, (shape, dtype) in wanted.items():
                if role not in states:
                    where = {"device": "cpu", "pin_memory": param.is_cuda} if self._states_apart else {}
                    states[role] = torch.zeros(shape, dtype=dtype, **{"device": param.device, **where})
            for role in states.keys() - wanted:
                del states[role]

    def _velocity_scales(self) -> dict[str, float]:
        return {name: velocity_scale(self._settings, values) for name, values in self._settings.values.items()}

    @torch.no_grad()
    def _rescale_velocities(self, before: Mapping[str, float]) -> None:
        for name, scale in self._velocity_scales().items():
            velocity = self._states[name].get(self._velocity_role())
            if velocity is not None and scale != before[name]:
                velocity.mul_(scale / before[name])

    def state_dict(self, collect: Collect = copies) -> dict[str, dict[str, torch.Tensor]]:
        """{"ipu_state": states, "ipu_param": hyper-parameters}, as CPU tensors under PopART's names.

        States are `Accl1___<param>` (first moment or velocity; RMSprop: the mean square), `Accl2___<param>` (second
        moment; centered RMSprop: the mean), `Accl3___<param>` (RMSprop's momentum), `Accl___<param>` (combined
        velocity), and `Step___<param>`; a registered rule has its own names in place of these. SGD's velocities are
        stored multiplied by loss_scaling, combined ones by velocity_scaling. Hyper-parameters are 0-d float64, so that
        loading continues to the bit; the SDK has float32 there. `collect` makes whole states of what this process owns
        of them.
        """
        owned = {}
        for name, states in self._states.items():
            forms = self._whole_forms(name)
            for role, state in states.items():
                owned[f"{role}___{name}"] = self._spread.owned(name, state, *forms[role])
        numbers = {}
        if self._settings.kind != "SGD":
            numbers = {
                f"Step___{name}": torch.tensor(float(step), dtype=torch.float32) for name, step in self._steps.items()
            }
        settings = self._settings
        if self._automatic is not None:
            numbers[_UPDATE_FACTOR] = torch.tensor(self._automatic.factor, dtype=torch.float32)
            settings = dataclasses.replace(settings, loss_scaling=settings.loss_scaling / self._automatic.factor)
        owned.update((key, Owned.whole(number)) for key, number in numbers.items())
        return {"ipu_state": collect(owned), "ipu_param": optimizer_state.to_tensors(settings)}

    @torch.no_grad()
    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from what state_dict() returned. Constant attributes stay as compiled.

        Raises:
            RuntimeError: `state` is not of this form.
            ValueError: a state has another shape than its parameter.
        """
        if state.get("ipu_state") is None or state.get("ipu_param") is None:
            raise RuntimeError("Only IPU optimizer states can be loaded onto the IPU.")
        loaded, missing = state["ipu_state"], []
        for name, param in self._whole.items():
            expected = {role: param.shape for role in ("Accl", "Accl1", "Accl2", "Accl3")}
            expected.update({role: shape for role, (shape, _) in self._whole_forms(name).items()})
            for role, shape in expected.items():
                key = f"{role}___{name}"
                if key in loaded and loaded[key].shape != shape:
                    raise ValueError(
                        f"optimizer state {key} has shape {tuple(loaded[key].shape)}, of a parameter of shape "
                        f"{tuple(param.shape)} it has {tuple(shape)}: load the state of the same model"
                    )
        scales = self._velocity_scales()
        saved, absent = optimizer_state.from_tensors(self._settings, state["ipu_param"], constants=True)
        self._settings, _ = optimizer_state.from_tensors(self._settings, state["ipu_param"], constants=False)
        if self._automatic is not None:
            self._automatic.factor = float(loaded.get(_UPDATE_FACTOR, 1.0))
        self._settings = self._scaled(self._settings)
        if _UPDATE_FACTOR in loaded:
            scaling = saved.loss_scaling * float(loaded[_UPDATE_FACTOR])
            saved = dataclasses.replace(saved, loss_scaling=scaling)
        self._allocate_states()
        for name, states in self._states.items():
            forms = self._whole_forms(name)
            for role, tensor in states.items():
                if f"{role}___{name}" in loaded:
                    own = self._spread.own_entries(name, loaded[f"{role}___{name}"], forms[role][1])
                    tensor.copy_(own.view(tensor.shape))
                    scales[name] = velocity_scale(saved, saved.values[name])
                else:
                    missing.append(f"{role}___{name}")
            if f"Step___{name}" in loaded:
                self._steps[name] = int(loaded[f"Step___{name}"])
            elif self._settings.kind != "SGD":
                missing.append(f"Step___{name}")
        self._rescale_velocities(scales)
        if missing or absent:
            notices.logger.warning("The optimizer state lacks %s; these keep their values.", sorted(missing + absent))


def velocity_scale(settings: Settings, values: Values) -> float:
    """What SGD's stored velocity is multiplied by: half velocities need the loss scaling as much as half gradients."""
    if settings.kind != "SGD" or not values.momentum:
        return 1.0
    return values.velocity_scaling if settings.use_combined_accum else settings.loss_scaling
