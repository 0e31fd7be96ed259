"""Where programs run and in which precision they compute.

Device: CUDA if torch sees one, else the CPU; POPTORCH_PORTABLE_DEVICE=cpu or cuda[:N] decides otherwise. Of several
processes each takes the GPU of its number on the machine, which the launcher gives.
Precision: on CUDA half means half. On a CPU the program sees half parameters and outputs, while weights are held in
float32 and everything is computed in it, but for matrix products: those of half are products of bfloat16 (or float16)
with float32 sums where the CPU has units for them that are at least 1.5 times as fast (half_units.py), and of float32
elsewhere. Optimizer states keep the types asked for. POPTORCH_PORTABLE_HALF=bfloat16, float16 or float32 decides for
the products; =native computes everything in half, as on CUDA (slow; for tests).
"""

from __future__ import annotations

import dataclasses
import os

import torch

from ..poptorch_core import createPoptorchError
from . import half_units
from .memory import keep_freed_memory

DEVICE_VARIABLE = "POPTORCH_PORTABLE_DEVICE"
HALF_VARIABLE = "POPTORCH_PORTABLE_HALF"
_LOCAL_RANK = ("LOCAL_RANK", "OMPI_COMM_WORLD_LOCAL_RANK")  # torchrun's, and of Open MPI, which PopRun starts
_NATIVE = "native"
_TYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16, "float32": torch.float32}
# Below this ratio to float32 the library's product is slower than one that rounds operands and multiplies in float32.
_BETTER_THAN_EMULATION = 0.7


@dataclasses.dataclass(frozen=True)
class Products:
    """How the matrix products of half are computed on a CPU: operands of a type, sums in float32.

    `native`: by the CPU's own units. Otherwise the operands are rounded to the type and multiplied in float32, which is
    exact: the product of two such numbers has no more than 22 bits.
    """

    dtype: torch.dtype
    native: bool = True

    @property
    def name(self) -> str:
        """The type's, as POPTORCH_PORTABLE_HALF has it."""
        return str(self.dtype).removeprefix("torch.")


@dataclasses.dataclass(frozen=True)
class Policy:
    """The device of an executor and whether float16 is held and computed as float32 on it."""

    device: torch.device
    half_as_float: bool

    def compute_dtype(self, dtype: torch.dtype) -> torch.dtype:
        """The type in which a tensor that the program sees as `dtype` lives on the device."""
        if dtype == torch.float64:
            return torch.float32
        return torch.float32 if self.half_as_float and dtype == torch.float16 else dtype

    def place(self, tensor: torch.Tensor) -> torch.Tensor:
        """`tensor` in the type and place it has on the device; itself if nothing changes."""
        return tensor.detach().to(device=self.device, dtype=self.compute_dtype(tensor.dtype))


def choose() -> Policy:
    """The policy for a new executor. Raises poptorch.Error for a device that is not there, or an unknown precision."""
    wanted = os.environ.get(DEVICE_VARIABLE, "")
    try:
        device = torch.device(wanted or ("cuda" if torch.cuda.is_available() else "cpu"))
    except RuntimeError as error:
        raise createPoptorchError(f"{DEVICE_VARIABLE}={wanted} is no device: use cpu, cuda or cuda:N.") from error
    if device.type == "cuda" and not torch.cuda.is_available():
        raise createPoptorchError(
            f"{DEVICE_VARIABLE}={wanted}, but torch sees no CUDA device. Unset it or set it to cpu."
        )
    if device.type not in ("cpu", "cuda"):
        raise createPoptorchError(f"{DEVICE_VARIABLE}={wanted}: only cpu and cuda are supported.")
    local = next((os.environ[name] for name in _LOCAL_RANK if name in os.environ), None)
    if device.type == "cuda" and device.index is None and local is not None:
        device = torch.device("cuda", int(local) % torch.cuda.device_count())
        torch.cuda.set_device(device)  # NCCL's, too
    if device.type == "cpu":
        keep_freed_memory()
    return Policy(device, half_as_float=device.type == "cpu" and _asked_for() != _NATIVE)


def _asked_for() -> str | None:
    """The precision that POPTORCH_PORTABLE_HALF names, if it is set. Raises poptorch.Error for an unknown word."""
    word = os.environ.get(HALF_VARIABLE) or None
    if word is not None and word not in (_NATIVE, *_TYPES):
        raise createPoptorchError(
            f"environment variable {HALF_VARIABLE}={word!r} must be {', '.join(_TYPES)} or {_NATIVE}, or be unset"
        )
    return word


def asked_by() -> str | None:
    """The setting that decides about the products of half, if there is one: "POPTORCH_PORTABLE_HALF=bfloat16"."""
    word = _asked_for()
    return None if word in (None, _NATIVE) else f"{HALF_VARIABLE}={word}"


def type_of_products() -> str:
    """The name of the type that products of half are to have on this CPU: as asked for, or else by their speed."""
    word = _asked_for()
    if word in _TYPES:
        return word
    speeds = {name: half_units.speed(_TYPES[name]) for name in ("float16", "bfloat16")}
    worth = {name: found.ratio for name, found in speeds.items() if found.worth_it}
    # float16 has three bits more: it is taken where it is about as fast.
    best = max(worth, key=lambda name: worth[name] * (1.1 if name == "float16" else 1.0), default=None)
    return "float32" if best is None else best


def is_type(name: object) -> bool:
    """Whether products of half can have the type of that name: any CPU can at least emulate it."""
    return name in _TYPES


def products_of(name: str) -> Products:
    """Products of the type called `name`, by this CPU's units if they are usable and faster than emulating them."""
    dtype = _TYPES[name]
    if dtype == torch.float32:
        return Products(dtype)
    ratio = half_units.speed(dtype).ratio
    return Products(dtype, native=ratio is not None and ratio >= _BETTER_THAN_EMULATION)


def explain(products: Products | None) -> tuple[str, str]:
    """(short, in a sentence) what becomes of half on this CPU, and why; None: the program has no products of half."""
    held = (
        "the program sees half parameters and outputs, but weights are held in float32; optimizer states keep their "
        "types. There is nothing to round stochastically then"
    )
    asked = asked_by()
    if products is None or products.dtype == torch.float32:
        why = "the program has no matrix products of half" if products is None else asked or _why_float32()
        return (
            "Half is slow on a CPU: float32 serves",
            f"Half is slow on a CPU ({why}): {held}, and everything is computed in it.",
        )
    speed = half_units.speed(products.dtype)
    how = speed.why if speed.ratio is None else f"{speed.ratio:.1f} times float32's speed"
    short = f"products of half are in {products.name}{'' if products.native else ', emulated'} ({how})"
    return short, f"{short[0].upper()}{short[1:]}{f', as {asked} asks' if asked else ''}, with float32 sums: {held}."


def _why_float32() -> str:
    speed = half_units.speed(torch.bfloat16)
    if speed.ratio is None:
        return speed.why
    if speed.worth_it:
        return "the run began with float32"
    return f"bfloat16 is {speed.ratio:.1f} times as fast as float32 here, less than {half_units.WORTH_IT}"
