"""Where a GPT-2 stops computing finite numbers: NaN or infinity in a weight, or an overflow on the way."""

from __future__ import annotations

import dataclasses
from typing import Any, Iterator, Mapping, Sequence

import torch
from torch import Tensor, nn

from model.attention import padding_scores
from model.gpt2 import Block, GPT2LMHeadModel, GPT2Model

# The largest number of what a device computes with and keeps: the decode step of int8 has float16 scales and caches.
_LIMITS = {
    "float32": torch.finfo(torch.float32).max,
    "float16": torch.finfo(torch.float16).max,
    "int8": torch.finfo(torch.float16).max,
}
_FLAGS = {"float16": "--fp16", "int8": "--int8"}


class NonFiniteError(RuntimeError):
    """A model's outputs are not finite, so that nothing may be read off them. Its text has a HINT: line."""


def first_non_finite_weight(model: nn.Module) -> str | None:
    """The first parameter, in the order of the model, that holds NaN or infinity, and how many; None: all finite."""
    for name, parameter in model.named_parameters():
        finite = torch.isfinite(parameter.detach())
        if not finite.all():
            return f"{name}, {int((~finite).sum()):,} of whose {finite.numel():,} weights are NaN or infinite"
    return None


def first_non_finite_layer(gpt2: GPT2LMHeadModel, ids: Sequence[int], precision: str = "float32") -> str:
    """Where computing these inputs first gives a number that is not finite, for a message.

    The layers are computed on the host once more, one at a time, in float32.

    Args:
        gpt2: the model, placed or not, in any precision.
        ids: (T,) token ids, at most n_positions.
        precision: what the device computes in, float32, float16 or int8; what is beyond its range is not finite.
    """
    limit = _LIMITS[precision]
    with torch.no_grad():
        for name, values in _outputs(gpt2, torch.as_tensor(ids, dtype=torch.long)[None]):
            bad = ~(values.abs() <= limit)  # NaN is not below anything
            if bad.any():
                over = bool(torch.isfinite(values).all())
                why = (
                    f"{float(values.abs().max()):.3g} is beyond the {limit:,.0f} of float16"
                    if over
                    else "NaN or infinity"
                )
                weight = None if over else first_non_finite_weight(gpt2)
                return f"{name} ({why}{f'; the weights: {weight}' if weight else ''})"
    return "none that float32 on the host finds: an intermediate result of the device overflowed"


def non_finite_error(what: str, layer: str, precision: str = "float32") -> NonFiniteError:
    """The error that says so. `what` is not finite; `layer` is where it began."""
    flag = _FLAGS.get(precision)
    remedy = f"compute in float32 (without {flag}), or take" if flag else "take"
    return NonFiniteError(
        f"{what} not finite; the first layer whose output is not: {layer}\n"
        f"HINT: {remedy} a checkpoint from before the run that made this one diverged"
    )


def _outputs(gpt2: GPT2LMHeadModel, ids: Tensor) -> Iterator[tuple[str, Tensor]]:
    """Name and float32 output of each layer, in the order in which they are computed; (1, T) ids."""
    config, transformer = gpt2.config, gpt2.transformer
    # Layers of their own: the model's may be placed, and half products are slow or missing on a host.
    ends = GPT2Model(dataclasses.replace(config, n_layer=1), initialize=False).eval()
    _fill(ends, {name: value for name, value in transformer.state_dict().items() if not name.startswith("h.")})
    found: list[tuple[str, Tensor]] = []
    for name, part in ends.named_modules():
        if name and not name.startswith("h") and not isinstance(part, (nn.Dropout, nn.Identity)):
            part.register_forward_hook(_Recorder(f"transformer.{name}", found))
    x = ends.embed(ids, torch.arange(ids.shape[1]).unsqueeze(0))  # (1, T, C)
    yield from found
    yield "the sum of the embeddings", x
    padding = None if config.padding_id is None else padding_scores(ids == config.padding_id, x.dtype)
    for index, block in enumerate(transformer.h):
        fresh = Block(config, index).eval()
        _fill(fresh, block.state_dict())
        inner: list[tuple[str, Tensor]] = []
        for name, part in fresh.named_modules():
            if name and not isinstance(part, nn.Dropout):
                part.register_forward_hook(_Recorder(f"transformer.h.{index}.{name}", inner))
        x = fresh(x, padding=padding)
        yield from inner
        yield f"transformer.h.{index}", x
    found.clear()
    x = ends.project_out(ends.ln_f(x))
    yield from found
    yield "lm_head", x[:, -1:] @ gpt2.lm_head.weight.detach()[: config.real_vocab_size].float().t()  # (1, 1, V)


def _fill(module: nn.Module, state: Mapping[str, Tensor]) -> None:
    """Give the parameters of `module` those values, in float32."""
    module.load_state_dict({name: value.float() for name, value in state.items()}, strict=False)


class _Recorder:
    """A forward hook that keeps what a layer gives."""

    def __init__(self, name: str, found: list[tuple[str, Tensor]]) -> None:
        self._name, self._found = name, found

    def __call__(self, module: nn.Module, inputs: Any, output: Tensor) -> None:
        self._found.append((self._name, output))
