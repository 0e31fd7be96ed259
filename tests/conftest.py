"""Settings of the application's test run."""

import os

from hypothesis import settings

# The same examples in every run: one that fails does so again.
settings.register_profile("same examples", derandomize=True)
settings.load_profile("same examples")

# Numbers that tests compare are those of any CPU; the tests of products in 16 bits ask for them.
os.environ.setdefault("POPTORCH_PORTABLE_HALF", "float32")

from stubbed_checkout import checkout  # noqa: E402, F401  a fixture of several files


def pytest_make_parametrize_id(val, argname):
    """Bytes are named after their argument: packed ones can hold the time, and all processes must agree on names."""
    return argname if isinstance(val, bytes) else None
