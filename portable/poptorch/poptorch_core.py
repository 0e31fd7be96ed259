"""Error classes of the runtime. In the SDK these come from its native module, hence the name."""

from __future__ import annotations


class Error(Exception):
    """An error of the runtime. Derives from Exception, not from RuntimeError.

    Attributes: `type` (category, "poptorch_py_error" when raised by Python code), `message`, `location` (where in
    the runtime, may be empty).
    """

    def __init__(self, message: str, type: str = "poptorch_py_error", location: str = "") -> None:
        super().__init__(message, type, location)  # all of them in args, so that the error pickles
        self.type = type
        self.message = message
        self.location = location

    def __str__(self) -> str:
        return f"'{self.type}': {self.message}"


class RecoverableError(Error):
    """A device error that the program may recover from. `recovery_action` says how (e.g. "IPU_RESET")."""

    def __init__(
        self, message: str, type: str = "poptorch_py_error", location: str = "", recovery_action: str = ""
    ) -> None:
        super().__init__(message, type, location)
        self.args = (message, type, location, recovery_action)
        self.recovery_action = recovery_action


class UnrecoverableError(Error):
    """A device error that needs a restart of the device or of the machine."""


def createPoptorchError(msg: str) -> Error:
    """An Error of type 'poptorch_py_error' with the message `msg`, to be raised by the caller."""
    return Error(msg)
