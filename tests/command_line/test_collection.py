"""command_line/collection.py: no garbage collection while a program starts, and as before afterwards."""

import gc
import sys

import pytest

from command_line.collection import no_collection


def test_the_collector_rests_inside_and_goes_on_after_an_error_too():
    assert gc.isenabled()
    with pytest.raises(ValueError), no_collection():
        assert not gc.isenabled()
        raise ValueError
    assert gc.isenabled()


def test_who_has_turned_it_off_keeps_it_off():
    gc.disable()
    try:
        with no_collection():
            assert not gc.isenabled()
        assert not gc.isenabled()
    finally:
        gc.enable()


def test_what_came_with_torch_is_not_looked_at_again():
    torch = sys.modules.pop("torch", None)
    try:
        before = gc.get_freeze_count()
        with no_collection():
            sys.modules["torch"] = torch or sys  # as an import would
            made = [[] for _ in range(1000)]
        frozen = gc.get_freeze_count()
        assert frozen >= before + len(made)
        with no_collection():
            later = [[] for _ in range(1000)]
        assert gc.get_freeze_count() == frozen and all(map(gc.is_tracked, later))
    finally:
        gc.unfreeze()
        if torch is None:
            sys.modules.pop("torch", None)
        else:
            sys.modules["torch"] = torch
