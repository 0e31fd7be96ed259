"""Where programs run and in which precision (device layer)."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch
from programs import Body, infer

import poptorch
from poptorch.device import memory, policy
from poptorch.device.native import tensor_memory

CPU = policy.Policy(torch.device("cpu"), half_as_float=True)


@pytest.fixture(autouse=True)
def no_variables(monkeypatch):
    for name in (policy.DEVICE_VARIABLE, policy.HALF_VARIABLE, "LOCAL_RANK", "OMPI_COMM_WORLD_LOCAL_RANK"):
        monkeypatch.delenv(name, raising=False)


@pytest.mark.parametrize(
    ("cuda", "wanted", "native", "expected"),
    [
        (False, None, None, ("cpu", True)),
        (True, None, None, ("cuda", False)),
        (True, "cpu", None, ("cpu", True)),
        (True, "cuda:1", None, ("cuda:1", False)),
        (False, "cpu", "native", ("cpu", False)),
    ],
)
def test_choice(cuda, wanted, native, expected, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: cuda)
    for variable, value in ((policy.DEVICE_VARIABLE, wanted), (policy.HALF_VARIABLE, native)):
        if value is not None:
            monkeypatch.setenv(variable, value)
    chosen = policy.choose()
    assert (str(chosen.device), chosen.half_as_float) == expected


@pytest.mark.parametrize("launcher", ["LOCAL_RANK", "OMPI_COMM_WORLD_LOCAL_RANK"])
def test_each_process_of_a_machine_has_the_gpu_of_its_number(launcher, monkeypatch):
    taken = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    monkeypatch.setattr(torch.cuda, "set_device", taken.append)
    monkeypatch.setenv(launcher, "2")
    assert policy.choose().device == torch.device("cuda", 2) and taken == [torch.device("cuda", 2)]
    monkeypatch.setenv(policy.DEVICE_VARIABLE, "cuda:1")
    assert policy.choose().device == torch.device("cuda", 1)


@pytest.mark.parametrize(
    ("wanted", "message"),
    [
        ("gpu", "POPTORCH_PORTABLE_DEVICE=gpu is no device: use cpu, cuda or cuda:N"),
        ("cuda", "torch sees no CUDA device"),
        ("meta", "only cpu and cuda"),
    ],
)
def test_a_device_that_is_not_there(wanted, message, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setenv(policy.DEVICE_VARIABLE, wanted)
    with pytest.raises(poptorch.Error, match=message):
        policy.choose()


@pytest.mark.parametrize(
    ("dtype", "on_cpu", "on_cuda"),
    [
        (torch.float64, torch.float32, torch.float32),
        (torch.float16, torch.float32, torch.float16),
        (torch.float32, torch.float32, torch.float32),
        (torch.int64, torch.int64, torch.int64),
        (torch.bool, torch.bool, torch.bool),
    ],
)
def test_types(dtype, on_cpu, on_cuda):
    assert CPU.compute_dtype(dtype) == on_cpu
    assert policy.Policy(torch.device("cuda"), half_as_float=False).compute_dtype(dtype) == on_cuda
    assert CPU.place(torch.ones(2).to(dtype)).dtype == on_cpu


def graph_targets(model, *inputs):
    executor = poptorch.inferenceModel(model)
    executor(*inputs)
    return [node for stage in executor.program.stages for s in stage.segments for node in s.module.graph.nodes]


def test_types_and_devices_written_in_the_program_are_the_devices():
    def forward(m, x):
        return x.double() + torch.ones(2, dtype=torch.float64, device="ipu"), x.half() * torch.full((2,), 0.1).half()

    nodes = graph_targets(Body(forward), torch.ones(2))
    written = [value for node in nodes for value in (*node.args, *node.kwargs.values())]
    assert torch.float64 not in written and torch.float16 not in written
    assert {value for value in written if isinstance(value, torch.device)} == {torch.device("cpu")}
    assert all(node.meta["val"].dtype == torch.float32 for node in nodes if "val" in node.meta)


def test_half_in_the_graph_is_half_where_it_is_native(monkeypatch):
    """1 + 2^-12 is 1 in half and is not in float32; the result is half in both."""
    program = lambda m, x: (x + 2.0**-12) - 1.0  # noqa: E731
    ones = torch.ones(2, dtype=torch.float16)
    as_float = infer(program, ones)
    monkeypatch.setenv(policy.HALF_VARIABLE, "native")
    in_half = infer(program, ones)
    assert as_float.dtype == in_half.dtype == torch.float16
    assert as_float.tolist() == [2.0**-12] * 2 and in_half.tolist() == [0.0] * 2


def test_constants_move_with_the_graph():
    table = torch.tensor([0.1, 0.2], dtype=torch.float64)
    found = infer(lambda m, x: x * torch.tensor([0.1, 0.2], dtype=torch.float64), torch.ones(2))
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, table.float())


def test_a_loop_body_is_rewritten_too():
    def forward(m, x):
        (x,) = poptorch.for_loop(2, lambda y: [(y.double() * 0.5).float()], [x])
        return x

    assert infer(forward, torch.ones(2)).tolist() == [0.25, 0.25]


_FAULTS = """
import ctypes, resource, sys, torch
ctypes.CDLL(None).prctl(41, 1, 0, 0, 0)  # PR_SET_THP_DISABLE: a fault a page, whatever huge pages there are
from poptorch.device.memory import keep_freed_memory
if sys.argv[1] == "keep":
    keep_freed_memory()
def block():
    torch.ones(16 << 20)  # 64 MiB, more than malloc ever keeps by itself
block()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(32):  # of which one or two may still find the heap too small, when something lies in the freed block
    block()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="a switch of glibc")
@pytest.mark.parametrize("reserve", ["", "none"])
def test_freed_memory_is_used_again(reserve, monkeypatch):
    """By the runtime's own reserve of memory, where that is built, and by glibc."""
    monkeypatch.setenv(tensor_memory.VARIABLE, reserve)
    if not hasattr(memory.ctypes.CDLL(None), "gnu_get_libc_version"):
        pytest.skip("the C library is not glibc")
    faults = {
        mode: int(
            subprocess.run([sys.executable, "-c", _FAULTS, mode], capture_output=True, text=True, check=True).stdout
        )
        for mode in ("keep", "default")
    }
    assert faults["keep"] < faults["default"] / 4
