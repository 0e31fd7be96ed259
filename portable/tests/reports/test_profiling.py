"""poptorch.profiling and poptorch.testing."""

from __future__ import annotations

import pytest
import torch

import poptorch


def test_channels_are_seen_by_the_profiler():
    class Loader:
        def load(self):
            return 3

    loader = Loader()
    channel = poptorch.profiling.Channel("data")
    channel.instrument(loader, "load")
    with torch.profiler.profile() as profile, channel.tracepoint("all"):
        assert loader.load() == 3
    assert {"data::all", "data::load"} <= {event.key for event in profile.key_averages()}


def test_allclose_of_structures():
    a, b = torch.ones(2), torch.zeros(2)
    assert poptorch.testing.allclose({"x": (a, b)}, {"x": (a, b + 1e-9)})
    assert not poptorch.testing.allclose([a], [b])
    with pytest.raises(AssertionError):
        poptorch.testing.allclose([a], (a,))
