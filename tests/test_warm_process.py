"""Programs that begin with everything imported: what tests are told of them."""

import os
import signal
import subprocess

import pytest
import warm_process


def test_a_program_that_takes_too_long_is_ended_and_told():
    process = warm_process.PipedProcess(["-c", "import time; time.sleep(60)"], dict(os.environ))
    with pytest.raises(subprocess.TimeoutExpired):
        process.communicate(0.5)
    assert process.returncode == -signal.SIGKILL
