"""Settings and fixtures of the whole test run."""

import contextlib
import gc
import os
import signal
import sys

import pytest
import torch

# Shells start what runs in the background with Ctrl-C ignored, and processes that tests interrupt would inherit that.
if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

# The same examples in every run: one that fails does so again. The environments of libraries/ have no hypothesis.
with contextlib.suppress(ImportError):
    from hypothesis import settings

    settings.register_profile("same examples", derandomize=True)
    settings.load_profile("same examples")

# Numbers that tests compare are those of any CPU; the tests of products in 16 bits ask for them.
os.environ.setdefault("POPTORCH_PORTABLE_HALF", "float32")

# The tests' tensors are tiny: a second thread would only wait, and on a busy machine be waited for.
torch.set_num_threads(1)


def pytest_collection_finish(session):
    """What all the imports made stays: the collector leaves it alone, and comes less often than for a small program.

    The server of processes begins with its imports.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(20_000, 20, 20)
    if "launch" in sys.modules:  # a file among the collected ones starts processes
        sys.modules["launch"].start_server()


@pytest.fixture
def running():
    """Loaders and accessors put in here are terminated after the test, and no process may be left."""
    started: list = []
    yield started
    accessors = [getattr(item, "_accessor", item) for item in started]
    processes = [accessor._process for accessor in accessors if accessor is not None]
    for item in started:
        item.terminate()
    for process in processes:
        with pytest.raises(ValueError, match="closed"):  # ended and waited for
            process.is_alive()


def pytest_make_parametrize_id(val, argname):
    """Bytes are named after their argument: packed ones can hold the time, and all processes must agree on names."""
    return argname if isinstance(val, bytes) else None
