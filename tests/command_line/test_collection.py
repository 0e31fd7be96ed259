"""command_line/collection.py: no garbage collection while a program starts, and as before afterwards."""

import gc

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
