"""Where programs run and in which precision they compute.

Device: CUDA if torch sees one, else the CPU; POPTORCH_PORTABLE_DEVICE=cpu or cuda[:N] decides otherwise. Of several
processes each takes the GPU of its number on the machine, which torchrun gives in LOCAL_RANK.
Precision: on CUDA half means half. On a CPU half matrix products run hundreds of times slower than float32, so there
the program sees half parameters and outputs while everything is held and computed in float32; only the optimizer's
states keep the types asked for. POPTORCH_PORTABLE_HALF=native computes in half on a CPU as well (slow; for tests).
"""

from __future__ import annotations

import dataclasses
import os

import torch

from ..poptorch_core import createPoptorchError
from .memory import keep_freed_memory

DEVICE_VARIABLE = "POPTORCH_PORTABLE_DEVICE"
HALF_VARIABLE = "POPTORCH_PORTABLE_HALF"


@dataclasses.dataclass(frozen=True)
class Policy:
    """The device of an executor and whether float16 is computed as float32 on it."""

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
    """The policy for a new executor. Raises poptorch.Error for a device that is not there."""
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
    if device.type == "cuda" and device.index is None and "LOCAL_RANK" in os.environ:
        device = torch.device("cuda", int(os.environ["LOCAL_RANK"]) % torch.cuda.device_count())
        torch.cuda.set_device(device)  # NCCL's, too
    if device.type == "cpu":
        keep_freed_memory()
    native = os.environ.get(HALF_VARIABLE) == "native"
    return Policy(device, half_as_float=device.type == "cpu" and not native)
