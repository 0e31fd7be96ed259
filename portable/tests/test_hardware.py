"""What programs are told about IPUs."""

from __future__ import annotations

import pytest

import poptorch
from poptorch import notices

VARIABLE = "POPTORCH_PORTABLE_IPU_VERSION"


@pytest.mark.parametrize("text", [None, "", "0"])
def test_there_are_none(text, monkeypatch):
    monkeypatch.delenv(VARIABLE, raising=False)
    if text is not None:
        monkeypatch.setenv(VARIABLE, text)
    assert poptorch.ipuHardwareIsAvailable() is False and poptorch.ipuHardwareIsAvailable(num_ipus=4) is False
    assert poptorch.ipuHardwareVersion() == 0


@pytest.mark.parametrize("version", [2, 21])
def test_a_program_may_be_told_that_there_are(version, monkeypatch, capsys):
    monkeypatch.setattr(notices, "_said", set())
    monkeypatch.setenv(VARIABLE, str(version))
    assert poptorch.ipuHardwareIsAvailable() is True and poptorch.ipuHardwareIsAvailable(16) is True
    assert poptorch.ipuHardwareVersion() == version
    assert capsys.readouterr().err.count("it runs without any") == 1
    options = poptorch.Options().useOfflineIpuTarget(poptorch.ipuHardwareVersion())
    assert options.ipu_version == version


@pytest.mark.parametrize("text", ["Mk2", "-1", "2.0"])
def test_a_version_that_is_none(text, monkeypatch):
    monkeypatch.setenv(VARIABLE, text)
    for ask in (poptorch.ipuHardwareVersion, poptorch.ipuHardwareIsAvailable):
        with pytest.raises(poptorch.Error, match=f"{VARIABLE}={text} is no version"):
            ask()
