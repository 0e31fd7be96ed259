"""What a program is told about IPUs: there are none, unless POPTORCH_PORTABLE_IPU_VERSION says otherwise.

Libraries such as optimum-graphcore and PyTorch Lightning refuse to start without an IPU. The variable changes their
answer and nothing else: the program runs where it would run anyway.
"""

from __future__ import annotations

import os

from . import notices
from .poptorch_core import createPoptorchError

VERSION_VARIABLE = "POPTORCH_PORTABLE_IPU_VERSION"


def ipuHardwareVersion() -> int:
    """The version of the IPUs attached: 0, for there are none, or the number in POPTORCH_PORTABLE_IPU_VERSION.

    Raises poptorch.Error if the variable holds anything but a whole number.
    """
    text = os.environ.get(VERSION_VARIABLE, "").strip()
    if not text:
        return 0
    if not (text.isascii() and text.isdigit()):
        raise createPoptorchError(
            f"{VERSION_VARIABLE}={text} is no version of an IPU: use a whole number, 2 for a Mk2, or unset it."
        )
    if int(text):
        notices.once(
            VERSION_VARIABLE,
            f"{VERSION_VARIABLE}={text}: the program is told that there are IPUs, but it runs without any.",
        )
    return int(text)


def ipuHardwareIsAvailable(num_ipus: int = 1) -> bool:
    """Whether there are IPUs: there are none, but POPTORCH_PORTABLE_IPU_VERSION has a program told that there are.

    Raises poptorch.Error as ipuHardwareVersion does.
    """
    return ipuHardwareVersion() > 0
