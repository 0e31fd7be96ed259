"""Fixtures of the tests of devices and kernels."""

from __future__ import annotations

import pytest

from poptorch.device import native


@pytest.fixture(params=["portable", "avx2", "avx512", "avx512_bf16"])
def kernels(request):
    """Each implementation in turn."""
    if not native.available() or native.choose(request.param) is None:
        pytest.skip("not built, or not for this processor")
    yield request.param
    native.choose(None)
