"""Reading an optimizer object: its kind, the values each parameter is updated with, and which of them may change.

Nothing here runs a Python optimizer; spec section 7 says what PopTorch takes from one.
"""

from __future__ import annotations

import dataclasses
import functools
import inspect
import logging
import math
from collections.abc import Iterable, Mapping
from typing import Any

import torch

from ... import notices
from ...checks import require
from ...poptorch_core import createPoptorchError
from .optimizer_values import VALUES, AdamValues, LAMBValues, RMSpropValues, RuleValues, SGDValues, Values
from .registered_rules import UpdateRule, group_numbers, registered_rule

KINDS = {"SGD": torch.optim.SGD, "Adam": torch.optim.Adam, "AdamW": torch.optim.AdamW, "RMSprop": torch.optim.RMSprop}
SUPPORTED = (*KINDS, "LAMB")
DEFAULT_MAX_WEIGHT_NORM = 65500.0


# Never variable: they change the program, not a number in it.
_STRUCTURAL = frozenset({"nesterov", "centered", "decoupled"})
# Group entries that a torch optimizer or an LR scheduler puts there and that mean nothing off the host.
_HOST_ONLY = frozenset(
    "params param_names initial_lr max_lr min_lr base_momentum max_momentum swa_lr foreach maximize capturable"
    " differentiable fused amsgrad decoupled_weight_decay".split()
)


@dataclasses.dataclass(frozen=True)
class Settings:
    """One reading of an optimizer.

    Attributes:
        kind: a name of SUPPORTED, or that of a class with a registered rule.
        values: by parameter name.
        constants: by parameter name, the fields of its values that may not change after compilation.
        loss_scaling_constant: whether loss_scaling may not.
        accum_type: dtype of gradient accumulators, None where the program left it open.
        first_type, second_type, velocity_type: dtypes of the optimizer's states.
        rule: that of an optimizer which PopTorch does not have.
    """

    kind: str
    values: dict[str, Values]
    constants: dict[str, frozenset[str]]
    loss_scaling: float
    loss_scaling_constant: bool
    max_grad_norm: float
    bias_correction: bool
    use_combined_accum: bool
    use_tf_variant: bool
    accum_type: torch.dtype | None
    first_type: torch.dtype
    second_type: torch.dtype
    velocity_type: torch.dtype
    rule: UpdateRule | None = None


def read(
    optimizer: torch.optim.Optimizer, named_params: Mapping[str, torch.Tensor], relax_attribute_checks: bool = False
) -> Settings:
    """Read `optimizer` for the parameters `named_params`, which are looked up in its groups by identity.

    A parameter in no group gets the optimizer's defaults. `relax_attribute_checks` lowers the warning about unexpected
    group attributes to a debug line (Options.relaxOptimizerAttributesChecks).

    Raises:
        AssertionError: unsupported class of optimizer, or RMSprop groups that disagree on `centered`.
        ValueError: amsgrad, a dtype other than float16 and float32, or a loss_scaling that is not positive.
    """
    rule = registered_rule(optimizer)
    kind = kind_of(optimizer) if rule is None else f"{type(optimizer).__name__} by a registered rule"
    groups = optimizer.param_groups
    if rule is None and any(group.get("amsgrad") for group in groups):
        raise ValueError("Only non-amsgrad Adam/AdamW optimizers are supported: leave amsgrad out.")
    if kind == "RMSprop":
        agree = len({bool(group.get("centered")) for group in groups}) == 1
        require(agree, "All parameter groups of RMSprop must have the same value for the centered attribute.")
    if rule is None:
        _report_ignored(optimizer, kind, relax_attribute_checks)

    read_group = _rule_values if rule is not None else functools.partial(_group_values, kind)
    of_group = [read_group(group, optimizer.defaults) for group in groups]
    by_id = {id(param): of_group[i] for i, group in enumerate(groups) for param in group["params"]}
    defaults = read_group({}, optimizer.defaults)
    values = {name: by_id.get(id(param), defaults) for name, param in named_params.items()}
    constant_fields = {value: _constant_fields(optimizer, kind, value) for value in set(values.values())}
    loss_scaling = float(getattr(optimizer, "loss_scaling", 1.0))
    if not loss_scaling > 0.0 or math.isinf(loss_scaling):
        raise ValueError(f"loss_scaling must be a positive number, not {loss_scaling}")
    max_grad_norm = getattr(optimizer, "max_grad_norm", None)
    given = getattr(optimizer, "given_attributes", frozenset())
    accum_type = _dtype(optimizer, "accum_type")
    return Settings(
        kind=kind,
        values=values,
        constants={name: constant_fields[value] for name, value in values.items()},
        loss_scaling=loss_scaling,
        loss_scaling_constant=not hasattr(optimizer, "variable_attrs")
        or optimizer.variable_attrs.isConstant("loss_scaling"),
        max_grad_norm=math.inf if max_grad_norm is None else float(max_grad_norm),
        # The SDK has no AdamW without bias correction: only LAMB's switch does something.
        bias_correction=bool(getattr(optimizer, "bias_correction", True)) if kind == "LAMB" else True,
        use_combined_accum=bool(getattr(optimizer, "use_combined_accum", False)),
        use_tf_variant=bool(getattr(optimizer, "use_tf_variant", False)),
        # A float32 nobody asked for is the default, under which a half model gets half accumulators (section 14).
        accum_type=accum_type if "accum_type" in given or accum_type != torch.float32 else None,
        first_type=_dtype(optimizer, "first_order_momentum_accum_type"),
        second_type=_dtype(optimizer, "second_order_momentum_accum_type"),
        velocity_type=_dtype(optimizer, "velocity_accum_type"),
        rule=rule,
    )


def accum_dtype(settings: Settings, param_dtype: torch.dtype) -> torch.dtype:
    """The type in which the gradients of a parameter of type `param_dtype` are accumulated."""
    if settings.accum_type is not None and not settings.use_combined_accum:
        return settings.accum_type
    return torch.float16 if param_dtype == torch.float16 else torch.float32


def keeps_running_mean(settings: Settings, param_dtypes: Iterable[torch.dtype]) -> bool:
    """Whether the mean over micro-batches is a running one though nobody asked for it: a half sum would overflow."""
    halves = any(accum_dtype(settings, dtype) == torch.float16 for dtype in param_dtypes)
    return halves and not settings.use_combined_accum


def check_change(before: Settings, after: Settings) -> None:
    """Raise poptorch.Error unless a compiled program can go on with `after`."""
    if after.kind != before.kind:
        raise createPoptorchError(
            f"The optimizer's type may not change after compilation: it was {before.kind} and is now {after.kind}."
        )
    for field in dataclasses.fields(Settings):
        if field.name in ("kind", "values", "constants", "loss_scaling", "loss_scaling_constant", "accum_type"):
            continue  # looked at elsewhere; accum_type depends on the parameter
        old, new = getattr(before, field.name), getattr(after, field.name)
        if old != new:
            raise createPoptorchError(
                f"Attribute {field.name} of the optimizer is part of the compiled program: "
                f"it was {old} and is now {new}. Destroy the model and compile again."
            )
    if before.loss_scaling_constant and before.loss_scaling != after.loss_scaling:
        raise _constant_changed("loss_scaling", "", before.loss_scaling, after.loss_scaling)
    for name, constants in before.constants.items():
        for field in constants:
            old, new = getattr(before.values[name], field), getattr(after.values[name], field)
            if old != new:
                raise _constant_changed(_attribute(field), f" for {name}", old, new)


def _constant_changed(attribute: str, where: str, old: Any, new: Any) -> Exception:
    return createPoptorchError(
        f"Attribute {attribute} of the optimizer is constant{where}: it was {old} at compilation and is now {new}. "
        f"Pass it to the poptorch.optim constructor, or call optimizer.variable_attrs.markAsVariable('{attribute}'), "
        "before the model is compiled."
    )


def kind_of(optimizer: torch.optim.Optimizer) -> str:
    """Its name in SUPPORTED. Raises AssertionError for another one."""
    # Classes of poptorch.optim say what they are. AdamW comes before Adam, which is its base class in recent torch.
    kind = getattr(optimizer, "ipu_kind", None)
    if kind is None:
        for name in ("AdamW", "Adam", "SGD", "RMSprop"):
            if isinstance(optimizer, KINDS[name]):
                kind = name
                break
    require(
        kind in SUPPORTED,
        f"Unsupported optimizer type. Types supported {list(SUPPORTED)}, of torch.optim or poptorch.optim; "
        f"this one is {type(optimizer).__name__}.",
    )
    cls = type(optimizer)
    if "ipu_kind" not in vars(cls) and not cls.__module__.startswith("torch.optim"):
        notices.once(
            ("subclassed optimizer", cls),
            f"Optimizer `{cls.__name__}` subclassed from classes in poptorch.optim or torch.optim are unlikely to "
            "behave as intended. Poptorch does not run Python optimizer code directly: the device runs the update of "
            "the base class, not the subclass's step().",
        )
    return kind


def _group_values(kind: str, group: Mapping[str, Any], defaults: Mapping[str, Any]) -> Values:
    def get(name: str, fallback: Any = None) -> Any:
        value = group.get(name)
        value = defaults.get(name) if value is None else value
        return fallback if value is None else value

    common = {"lr": float(get("lr")), "weight_decay": float(get("weight_decay", 0.0))}
    if kind == "SGD":
        return SGDValues(
            momentum=float(get("momentum", 0.0)),
            dampening=float(get("dampening", 0.0)),
            nesterov=bool(get("nesterov", False)),
            velocity_scaling=float(get("velocity_scaling", 1.0)),
            **common,
        )
    common["eps"] = float(get("eps"))
    if kind == "RMSprop":
        return RMSpropValues(
            alpha=float(get("alpha")), momentum=float(get("momentum", 0.0)), centered=bool(get("centered")), **common
        )
    common["beta1"], common["beta2"] = (float(beta) for beta in get("betas"))
    if kind == "LAMB":
        return LAMBValues(max_weight_norm=max_weight_norm(group, defaults), **common)
    return AdamValues(decoupled=kind == "AdamW" or bool(get("decoupled_weight_decay", False)), **common)


def _rule_values(group: Mapping[str, Any], defaults: Mapping[str, Any]) -> RuleValues:
    return RuleValues(float({**defaults, **group}.get("lr", 0.0)), group_numbers(group, defaults))


def max_weight_norm(group: Mapping[str, Any], defaults: Mapping[str, Any]) -> float:
    """LAMB's bound on the weight norm: the group's, else the optimizer's; None in either means 65500."""
    value = group["max_weight_norm"] if "max_weight_norm" in group else defaults.get("max_weight_norm")
    return DEFAULT_MAX_WEIGHT_NORM if value is None else float(value)


def _attribute(field: str) -> str:
    return "betas" if field in ("beta1", "beta2") else field


def _constant_fields(optimizer: torch.optim.Optimizer, kind: str, values: Values) -> frozenset[str]:
    constants: set[str] = set()
    if isinstance(values, RuleValues):
        return frozenset()  # there is no compiled update that they are part of
    for field in dataclasses.fields(values):
        attribute = _attribute(field.name)
        if field.name in _STRUCTURAL:
            constant = True
        elif hasattr(optimizer, "variable_attrs"):
            constant = optimizer.variable_attrs.isConstant(attribute)
        else:
            constant = attribute != "lr" and getattr(values, field.name) == _torch_default(kind, field.name)
        if constant:
            constants.add(field.name)
    return frozenset(constants)


def _torch_default(kind: str, field: str) -> Any:
    parameter = inspect.signature(KINDS[kind].__init__).parameters.get(_attribute(field))
    if parameter is None:
        return 1.0  # velocity_scaling, which torch does not know
    default = parameter.default
    return default[int(field[-1]) - 1] if field in ("beta1", "beta2") else default


def _dtype(optimizer: torch.optim.Optimizer, attribute: str) -> torch.dtype:
    dtype = getattr(optimizer, attribute, torch.float32)
    if dtype not in (torch.float16, torch.float32):
        raise ValueError(f"{attribute} must be torch.float16 or torch.float32, not {dtype}")
    return dtype


def _report_ignored(optimizer: torch.optim.Optimizer, kind: str, relax: bool) -> None:
    if kind == "AdamW" and not getattr(optimizer, "bias_correction", True):
        notices.difference(
            "AdamW bias_correction",
            "AdamW corrects the bias all the same",
            "AdamW(bias_correction=False) has no effect: the bias is corrected, on an IPU too. LAMB honours it.",
        )
    if any(group.get("maximize") for group in optimizer.param_groups):
        notices.once("optimizer maximize", "The optimizer's maximize=True is ignored: negate the loss instead.")
    fields = {_attribute(field.name) for field in dataclasses.fields(VALUES[kind])}
    # torch keeps these in a group's entries where a program passes them there; the optimizer's own count.
    unexpected = sorted({key for group in optimizer.param_groups for key in group} - fields - _HOST_ONLY)
    if unexpected:
        notices.once(
            ("unexpected group attributes", kind, tuple(unexpected)),
            f"Ignoring unexpected group attributes in {kind} optimizer: {unexpected}",
            logging.DEBUG if relax else logging.WARNING,
        )


def with_constants_of(settings: Settings, compiled: Settings) -> Settings:
    """`settings` with what may change decided by `compiled`."""
    return dataclasses.replace(
        settings, constants=compiled.constants, loss_scaling_constant=compiled.loss_scaling_constant
    )
