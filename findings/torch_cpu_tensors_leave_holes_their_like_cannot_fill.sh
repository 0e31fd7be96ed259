#!/usr/bin/env bash
# torch 2.13.0 with glibc 2.36: of tensors of 1 MiB every second one is freed, and as many are made again. A good guess is
# that these go where those were. Few do: the process grows by 101 to 198 of their 210 MB, from one start to the next,
# by 168 most often, while as much lies free.
# torch's CPU allocator calls posix_memalign(64), which takes 96 bytes more from the heap than it keeps and gives the
# rest back: a hole of exactly the size kept is too small for the next request of that size. NumPy, with malloc, fills
# each hole. So what a training step frees between tensors that stay is lost to the next step's tensors of that size,
# though nothing leaks. (Blocks so large come from the heap once a larger one has been freed: malloc's threshold for
# mapping them by itself moves.) Source: c10/core/impl/alloc_cpu.cpp, glibc's _int_memalign, sourceware bugs 14581 and
# 30723. Date: 2026-11-30.
set -euo pipefail
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
python3 -m venv "$dir/venv"
"$dir/venv/bin/pip" install --quiet torch==2.13.0 numpy==2.4.6
cd "$dir"
"$dir/venv/bin/python" - <<'PY'
import ctypes, importlib.metadata, platform
import numpy as np
import torch

libc = ctypes.CDLL("libc.so.6")
names = "arena ordblks smblks hblks hblkhd usmblks fsmblks uordblks fordblks keepcost".split()
Statistics = type("Statistics", (ctypes.Structure,), {"_fields_": [(name, ctypes.c_size_t) for name in names]})
libc.mallinfo2.restype = Statistics

SIZE, COUNT = 1 << 20, 200

def grown(make):
    """Bytes that the heap grows by for COUNT arrays after every second one of 2 COUNT was freed, and bytes free before."""
    every = [make() for _ in range(2 * COUNT)]
    kept = every[::2]
    del every
    before = libc.mallinfo2()
    again = [make() for _ in range(COUNT)]
    after = libc.mallinfo2()
    assert len(kept) == len(again) == COUNT
    return after.arena - before.arena, before.fordblks

del_me = np.empty(30 << 20, dtype=np.uint8)
del del_me  # from now on malloc takes blocks of up to 30 MiB from the heap
found = {
    "numpy": grown(lambda: np.empty(SIZE, dtype=np.uint8)),
    "torch": grown(lambda: torch.empty(SIZE, dtype=torch.uint8)),
}
print(f"version: torch {importlib.metadata.version('torch')}, {' '.join(platform.libc_ver())}")
print("expected: the arrays that are made again go where as many of their size were freed")
for name, (more, free) in found.items():
    print(f"seen: {name}: {COUNT * SIZE / 1e6:.0f} MB again with {free / 1e6:.0f} MB free: the heap grows by {more / 1e6:.0f} MB")
assert found["numpy"][0] < 0.05 * COUNT * SIZE and found["torch"][0] > 0.4 * COUNT * SIZE
PY
