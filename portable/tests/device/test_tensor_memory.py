"""The reserve for large CPU tensors: blocks never overlap, freed ones are filled, torch sees no difference."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import torch
from forks import forks
from hypothesis import given
from hypothesis import strategies as st

from poptorch.device import memory
from poptorch.device.native import tensor_memory
from poptorch.device.native.tensor_memory import LARGEST, SMALLEST, VARIABLE

MIB = 1 << 20
REPOSITORY = Path(__file__).parents[3]


@pytest.fixture(scope="module", autouse=True)
def reserve():
    memory.keep_freed_memory()
    if not tensor_memory.install():
        pytest.skip("the library is not built, or not for this torch")


def block(size: int) -> torch.Tensor:
    """A tensor of that many bytes, never written to."""
    return torch.empty(size, dtype=torch.uint8)


def places(tensors) -> list[tuple[int, int]]:
    """(first address, the one behind the last) of each, in order."""
    return sorted((tensor.data_ptr(), tensor.data_ptr() + tensor.nbytes) for tensor in tensors)


def python(code: str, **variables: str) -> str:
    """What it prints in a process of its own, which has imported torch and the module of the reserve."""
    start = "import ctypes, os, sys, torch\nfrom poptorch.device import memory\n"
    start += "from poptorch.device.native import tensor_memory\n"
    command = [sys.executable, "-c", start + code]
    done = subprocess.run(command, env={**os.environ, **variables}, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def blocks() -> int:
    return tensor_memory.statistics().blocks


@pytest.mark.parametrize(
    "size, in_reserve", [(SMALLEST - 1, 0), (SMALLEST, 1), (MIB + 1, 1), (LARGEST, 1), (LARGEST + 1, 0)]
)
def test_sizes_of_the_reserve_and_their_alignment(size, in_reserve):
    before = blocks()
    tensor = block(size)
    assert blocks() == before + in_reserve
    assert tensor.data_ptr() % 64 == 0
    del tensor
    assert blocks() == before


def test_a_tensor_without_elements_has_no_memory():
    before = blocks()
    assert torch.empty(0).data_ptr() == 0 and blocks() == before


def test_the_place_of_a_freed_one_is_filled_by_its_like():
    """Which torch's own does not do: findings/torch_cpu_tensors_leave_holes_their_like_cannot_fill.sh."""
    every = [block(MIB) for _ in range(400)]
    kept = every[::2]
    freed = set(places(every)) - set(places(kept))
    del every
    size = tensor_memory.statistics().bytes
    again = [block(MIB) for _ in range(200)]
    assert tensor_memory.statistics().bytes == size
    assert len(freed & set(places(again))) > 190, "a few may fit other places that were free before"


_NEIGHBOURS = """
import itertools
memory.keep_freed_memory()
def block(size):
    return torch.empty(size << 20, dtype=torch.uint8)
for order in itertools.permutations(range(3)):
    three = {number: block(60) for number in range(3)}
    behind = block(1)
    (first, second, third) = (three[number].data_ptr() for number in range(3))
    assert second - first == third - second == (60 << 20) + 64, "side by side"
    for number in order:
        del three[number]
    one = block(180)
    assert one.data_ptr() == first < behind.data_ptr(), order
    del one, behind
    assert tensor_memory.statistics().free_blocks == 1 and tensor_memory.statistics().blocks == 0
print(tensor_memory.statistics().bytes)
"""


def test_neighbours_that_are_freed_make_room_for_one():
    assert int(python(_NEIGHBOURS)) == 182 * MIB


_SECOND_STEP = """
memory.keep_freed_memory()
def block(size):
    return torch.empty(size << 20, dtype=torch.uint8)
for step in range(2):
    small = [block(5) for _ in range(20)]
    if not step:
        kept = block(1)
    large = block(60)  # where it was in the first step: none of the small ones has gone there
    print(tensor_memory.statistics().bytes)
    del small, large
"""


def test_small_ones_leave_the_place_of_a_large_one_alone():
    first, second = python(_SECOND_STEP).split()
    assert first == second


@given(st.lists(st.tuples(st.booleans(), st.integers(SMALLEST, 4 * MIB), st.integers(0)), max_size=60))
def test_any_order_of_requests_leaves_what_was_there_whole(steps):
    """Blocks never overlap; in the end what is free is as if nothing had been asked for, in as few pieces."""
    before = tensor_memory.statistics()
    held: list[torch.Tensor] = []
    for free, size, which in steps:
        if free and held:
            del held[which % len(held)]
        else:
            held.append(block(size))
            assert held[-1].data_ptr() % 64 == 0
            ends = places(held)
            assert all(end <= start for (_, end), (start, _) in zip(ends, ends[1:], strict=False))
    del held
    after = tensor_memory.statistics()
    assert after.blocks == before.blocks
    assert after.bytes - after.free_bytes == before.bytes - before.free_bytes
    # One piece more where the reserve has grown behind a block in use.
    assert after.free_blocks - before.free_blocks in (0, after.bytes > before.bytes)


_STEPS = st.sampled_from(["make", "make", "make", "free", "free", "give back"])


@given(st.lists(st.tuples(_STEPS, st.integers(SMALLEST // 4, MIB), st.integers(0)), max_size=40))
def test_elements_stay_what_they_are(steps):
    """Whatever else is made, freed and given back to the system."""
    held: dict[int, torch.Tensor] = {}
    for number, (step, size, which) in enumerate(steps):
        if step == "make":
            held[number] = torch.full((size,), number, dtype=torch.int16)
        elif step == "give back":
            tensor_memory.give_back()
        elif held:
            value = sorted(held)[which % len(held)]
            assert bool((held.pop(value) == value).all())
    assert all(bool((tensor == value).all()) for value, tensor in held.items())


def test_storages_grow_and_are_copied():
    before = blocks()
    tensor = torch.arange(100_000)
    copy = tensor.clone()
    tensor.resize_(1_000_000)
    assert torch.equal(tensor[:100_000], copy)
    lazy = torch._lazy_clone(copy)
    lazy += 1
    assert torch.equal(lazy - 1, copy)
    del tensor, copy, lazy
    assert blocks() == before


def test_threads_make_tensors_and_others_free_them():
    """Each of eight threads frees those of its neighbour, whose elements must be what that wrote."""
    before, count, rounds = blocks(), 8, 200
    handed: list[list[torch.Tensor]] = [[] for _ in range(count)]
    wrong: list[int] = []

    def work(number: int) -> None:
        generator = torch.Generator().manual_seed(number)
        for _ in range(rounds):
            size = int(torch.randint(SMALLEST, 16 * SMALLEST, (), generator=generator))
            handed[number].append(torch.full((size,), number, dtype=torch.uint8))
            other = (number + 1) % count
            if handed[other]:
                tensor = handed[other].pop(0)
                if not bool((tensor == other).all()):
                    wrong.append(other)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    handed.clear()
    assert wrong == [] and blocks() == before


_BUSY = """
import signal, threading
memory.keep_freed_memory()
kept = torch.arange(100_000)
stop = threading.Event()
def work():
    while not stop.is_set():
        torch.empty(1 << 20)
busy = [threading.Thread(target=work, daemon=True) for _ in range(3)]
for each in busy: each.start()
for _ in range(50):  # a child that found the lock taken would wait for ever
    child = os.fork()
    if child == 0:
        signal.alarm(60)
        fresh = torch.ones(100_000)
        good = bool((kept == torch.arange(100_000)).all()) and float(fresh.sum()) == 100_000
        del fresh
        kept.zero_()
        os._exit(0 if good else 1)
    assert os.waitpid(child, 0)[1] == 0
stop.set()
for each in busy: each.join()
print(bool((kept == torch.arange(100_000)).all()))
"""


def test_a_child_has_a_reserve_of_its_own_whatever_threads_were_doing():
    assert python(_BUSY, OMP_NUM_THREADS="1") == "True"


def test_tensors_that_outlive_the_interpreter_are_freed():
    code = "memory.keep_freed_memory()\nsys.kept = torch.ones(1 << 20)\nimport builtins; builtins.kept = torch.ones(9)"
    assert python(code) == ""


_PROFILED = """
with torch.profiler.profile(profile_memory=True) as profile:
    kept = torch.empty(1 << 20, dtype=torch.uint8)
    torch.empty(3 << 20, dtype=torch.uint8)
print([(event.name, event.self_cpu_memory_usage) for event in profile.events() if event.self_cpu_memory_usage])
"""


def test_the_profiler_sees_what_it_sees_of_torchs_own():
    seen = python("memory.keep_freed_memory()" + _PROFILED)
    assert seen == python(_PROFILED, **{VARIABLE: "none"}) and f"{3 * MIB})" in seen


def test_errors_are_torchs_own():
    with pytest.raises(RuntimeError, match="can't allocate memory") as caught:
        block(1 << 60)
    assert memory.ran_out(caught.value)
    with pytest.raises(RuntimeError, match="negative"):
        torch.empty(-1)


_LIMITED = """
import resource
memory.keep_freed_memory()
bool((torch.empty(1 << 20, dtype=torch.uint8).fill_(7) == 7).all())  # what that takes once
status = open("/proc/self/status").read()
used = int(status.split(sys.argv[1] + ":")[1].split()[0]) << 10
limit = getattr(resource, sys.argv[2])
resource.setrlimit(limit, (used + (300 << 20), -1))
def block(size):
    return torch.empty(size << 20, dtype=torch.uint8)
names = [torch.empty(1) for _ in range(10_000)]  # for Python's own memory of those below
del names[::2]
def fails(make):
    try:
        make()
    except RuntimeError as error:
        return memory.ran_out(error)
    return False
held = [block(50).fill_(7) for _ in range(5)]
print(fails(lambda: block(150)), end=" ")
del held[1:3]  # goes back to the system at once, as it has no more
other = ctypes.create_string_buffer(80 << 20)  # by the C library
print(bool((held[0] == 7).all() and (held[1] == 7).all()), end=" ")
del other
memory.give_back_freed_memory()
del held  # and its room serves other sizes
one = block(240)
del one  # kept for the next one, until the C library lacks it
small = [torch.empty(tensor_memory.SMALLEST - 1, dtype=torch.uint8) for _ in range(3_600)]  # 225 MiB of the C library's
print(len(small), end=" ")
del small
memory.give_back_freed_memory()
other = ctypes.create_string_buffer(240 << 20)  # by the C library
print(fails(lambda: block(240)))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="Linux's limits")
@pytest.mark.parametrize("counted, limit", [("VmSize", "RLIMIT_AS"), ("VmData", "RLIMIT_DATA")])
def test_where_memory_is_limited_there_is_as_much_as_without_it(counted, limit):
    code = f"sys.argv[1:] = [{counted!r}, {limit!r}]\n" + _LIMITED
    assert python(code) == "True True 3600 True"


def test_freed_memory_is_given_back():
    def resident() -> int:
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")

    kept = [torch.ones(16 * MIB) for _ in range(3)]
    behind = torch.full((SMALLEST,), 7.0)
    before, held = resident(), tensor_memory.statistics()
    del kept[1]
    assert resident() > before - 16 * MIB, "kept for the next one"
    memory.give_back_freed_memory()
    assert resident() < before - 48 * MIB
    assert bool((behind == 7).all()) and all(bool((tensor == 1).all()) for tensor in kept)
    assert tensor_memory.statistics().bytes <= held.bytes
    del kept, behind
    memory.give_back_freed_memory()
    assert resident() < before - 3 * 48 * MIB
    assert bool((torch.ones(16 * MIB) == 1).all()), "pages that were given back come again"


def build(source: Path, library: Path, *flags: str) -> None:
    """Compiles it for this torch, as `make` does."""
    if not shutil.which("g++"):
        pytest.skip("no C++ compiler (g++)")
    sys.path.insert(0, str(REPOSITORY))
    torch_here = pytest.importorskip("custom_ops.build").find_torch()
    sys.path.pop(0)
    command = ["g++", "-shared", "-fPIC", *flags, str(source), *torch_here.flags("c10"), "-o", str(library)]
    subprocess.run(command, check=True)


_TELLS = """
memory.keep_freed_memory()
kept = torch.empty(1 << 20)
statistics = tensor_memory.statistics()
print(None if statistics is None else statistics.blocks)
"""


def test_a_library_of_another_torch_is_left_alone(tmp_path):
    source, library = Path(tensor_memory.__file__).with_name("tensor_memory_torch.cpp"), tmp_path / "other.so"
    build(source, library, '-DTENSOR_MEMORY_TORCH="2.12.9 0123abc"')
    code = f"sys.stderr = sys.stdout\n{_TELLS}"
    said = python(code, **{VARIABLE: str(library), "POPTORCH_LOG_LEVEL": "DEBUG"})
    assert f"{library} is for torch 2.12.9 0123abc, not {torch.__version__}" in said and "run `make`" in said
    assert said.splitlines()[-1] == "None"
    assert python(code, **{VARIABLE: str(library)}) == "None", "by default nothing is said"


_OTHERS = """
#include <c10/core/CPUAllocator.h>
struct Others final : c10::Allocator {
  c10::DataPtr allocate(size_t size) override { return c10::GetDefaultCPUAllocator()->allocate(size); }
  void copy_data(void* to, const void* from, size_t size) const override { default_copy_data(to, from, size); }
};
extern "C" void install() { c10::SetCPUAllocator(new Others, 1); }
"""


def test_an_allocator_that_a_program_gave_torch_stays(tmp_path):
    source, library = tmp_path / "others.cpp", tmp_path / "others.so"
    source.write_text(_OTHERS)
    build(source, library)
    said = python(
        f"sys.stderr = sys.stdout\nctypes.CDLL({str(library)!r}).install()\n{_TELLS}", POPTORCH_LOG_LEVEL="DEBUG"
    )
    assert "torch has another allocator" in said and said.splitlines()[-1] == "0"


def test_what_is_no_library_is_left_alone(tmp_path):
    (tmp_path / "none.so").write_bytes(b"no library")
    assert python(_TELLS, **{VARIABLE: str(tmp_path / "none.so")}) == "None"


def test_it_can_be_switched_off():
    switched = forks(
        "import torch\nfrom poptorch.device import memory\nfrom poptorch.device.native import tensor_memory",
        ({VARIABLE: "none"}, _TELLS),
        ({}, _TELLS),
        without=(VARIABLE,),
    )
    assert [out.strip() for out, _ in switched] == ["None", "1"]


@pytest.mark.skipif(not Path("/proc/self/smaps").exists(), reason="Linux's account of a process's memory")
def test_huge_pages_are_asked_for_as_torch_asks_for_them():
    code = (
        "memory.keep_freed_memory()\nplace = torch.empty(64 << 20).data_ptr()\nfound = None\n"
        "for line in open('/proc/self/smaps'):\n"
        "    first = line.split()[0]\n"
        "    if '-' in first and ':' not in first:\n"
        "        low, high = (int(number, 16) for number in first.split('-'))\n"
        "        inside = low <= place < high\n"
        "    elif first == 'VmFlags:' and inside:\n"
        "        found = 'hg' in line.split()\n"
        "print(found)"
    )
    assert python(code, THP_MEM_ALLOC_ENABLE="1") == "True"
    assert python(code, THP_MEM_ALLOC_ENABLE="0") == "False"
