"""Functions that are called around every compilation (section 10)."""

from __future__ import annotations

import pytest
import torch
from programs import Body, infer

import poptorch


def test_hooks_around_compilation():
    order = []
    handles = [
        poptorch.registerPreCompileHook(lambda: order.append(("pre", poptorch.isRunningOnIpu()))),
        poptorch.registerPostCompileHook(lambda: order.append("post")),
    ]
    try:
        executor = poptorch.inferenceModel(Body(lambda m, x: order.append("forward") or x + 1))
        executor(torch.ones(1))
        executor(torch.ones(1))
        assert order == [("pre", True), "forward", "post"]
        with pytest.raises(poptorch.Error):
            infer(lambda m, x: x.item(), torch.ones(1))
        assert order[3:] == [("pre", True), "post"]  # a failed compilation is over as well
    finally:
        for handle in handles:
            handle.remove()
    infer(lambda m, x: x + 1, torch.ones(1))
    assert len(order) == 5
    with pytest.raises(RuntimeError):
        poptorch.registerPreCompileHook("hook")
