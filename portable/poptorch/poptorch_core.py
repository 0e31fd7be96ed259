"""Error classes of the runtime, and what programs ask its core. In the SDK it is a native module, hence the name."""

from __future__ import annotations

import enum


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


class TestErrorType(enum.Enum):
    """The kinds of errors that _throwTestError() raises."""

    __test__ = False  # the name is the API's: it is no test for pytest

    Poptorch = 0
    Popart = 1
    PopartInternal = 2
    Poplibs = 3
    PoplarUnrecoverable = 4
    PoplarUnknown = 5
    PoplarRecoverableFullReset = 6
    PoplarLinkError = 7


# What `Error.type` says of an error that began in another library of the SDK.
_TEST_ERROR_TYPES = {
    TestErrorType.Poptorch: "poptorch_cpp_error",
    TestErrorType.Popart: "popart_exception",
    TestErrorType.PopartInternal: "popart_internal_exception",
    TestErrorType.Poplibs: "poplibs_exception",
    TestErrorType.PoplarUnrecoverable: "poplar_unrecoverable_runtime_error",
    TestErrorType.PoplarUnknown: "poplar_unknown_runtime_error",
    TestErrorType.PoplarRecoverableFullReset: "poplar_recoverable_runtime_error",
    TestErrorType.PoplarLinkError: "poplar_link_error",
}


def _throwTestError(kind: TestErrorType) -> None:
    """Raise an error of that kind, so that a program can try how it handles device errors, which do not occur here.

    PoplarRecoverableFullReset is a RecoverableError with the recovery action "FULL_RESET", PoplarUnrecoverable an
    UnrecoverableError, the others are an Error.
    """
    message = f"test error of kind {kind.name}"
    arguments = {"type": _TEST_ERROR_TYPES[kind], "location": "throwTestError"}
    if kind is TestErrorType.PoplarRecoverableFullReset:
        raise RecoverableError(message, recovery_action="FULL_RESET", **arguments)
    raise (UnrecoverableError if kind is TestErrorType.PoplarUnrecoverable else Error)(message, **arguments)


_compiling = False  # the engine says so while it traces a model


def isCompilingWithDispatcher() -> bool:
    """Whether a model is being traced, as poptorch.isRunningOnIpu(): there is one front end, which dispatches."""
    return _compiling


def set_compiling(compiling: bool) -> None:
    """What isCompilingWithDispatcher() says from now on; for the engine."""
    global _compiling
    _compiling = compiling
