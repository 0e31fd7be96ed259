"""device/native/wide_products.py: float32 results of operands of bfloat16 and float32, against products in float64."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from poptorch.device import half_units
from poptorch.device.native import wide_products

BFLOAT16, FLOAT32 = torch.bfloat16, torch.float32
TYPES = [dtype for dtype in (FLOAT32, BFLOAT16) if wide_products.available(dtype)]
pytestmark = pytest.mark.skipif(not TYPES, reason="this CPU has no AVX-512, or no kernels")
each_type = pytest.mark.parametrize("dtype", TYPES)
bfloat16_only = pytest.mark.skipif(BFLOAT16 not in TYPES, reason="this CPU has no AVX512_BF16")

# Around the sizes of tiles (8 x 48), of what is packed together (16, 32, 64) and of parts (2,048 rows, 1,024 deep, or
# 512 of float32).
ROWS = st.sampled_from([1, 7, 8, 9, 17, 64, 100, 2048, 2057])
COLUMNS = st.sampled_from([1, 15, 16, 17, 47, 48, 49, 97, 130])
DEPTHS = st.sampled_from([1, 2, 3, 15, 16, 17, 31, 32, 33, 65, 511, 512, 513, 1023, 1024, 1025])
# Of the left and the right operand, and of the product.
COMBINATIONS = (
    st.sampled_from(
        [(FLOAT32, FLOAT32, FLOAT32)] * (FLOAT32 in TYPES)
        + [(left, right, BFLOAT16) for left in TYPES for right in TYPES] * (BFLOAT16 in TYPES)
    )
    if TYPES
    else st.none()
)


def operand(rows, columns, dtype, transposed, generator):
    shape = (columns, rows) if transposed else (rows, columns)
    values = torch.randn(shape, generator=generator).to(dtype)
    return values.t() if transposed else values


def exact(left, right, dtype):
    """The product of the rounded operands, and the sum of the products' sizes, by which rounding is measured."""
    left, right = left.to(dtype).double(), right.to(dtype).double()
    return left @ right, left.abs() @ right.abs()


@settings(max_examples=120, deadline=None)
@given(ROWS, DEPTHS, COLUMNS, COMBINATIONS, st.booleans(), st.booleans(), st.booleans(), st.integers(0, 1000))
def test_product(rows, depth, columns, types, left_transposed, right_transposed, add, seed):
    left_type, right_type, dtype = types
    generator = torch.Generator().manual_seed(seed)
    left = operand(rows, depth, left_type, left_transposed, generator)
    right = operand(depth, columns, right_type, right_transposed, generator)
    before = torch.randn(rows, columns, generator=generator)
    out = before.clone()
    assert wide_products.multiply(left, right, out, add, dtype) is out
    expected, size = exact(left, right, dtype)
    error = (out.double() - expected - (before.double() if add else 0.0)).abs()
    assert (error <= (size + before.abs()) * 2.0**-24 * (depth + 2)).all()


@each_type
@pytest.mark.parametrize(("rows", "columns"), [(5, 50), (200, 130)])
@pytest.mark.parametrize("add", [False, True])
@pytest.mark.parametrize("depth", [8_191, 8_192, 16_383, 16_384, 20_001])
def test_deep_products_do_not_depend_on_threads(rows, columns, add, depth, dtype):
    generator = torch.Generator().manual_seed(depth)
    left = operand(rows, depth, dtype, False, generator)
    right = operand(depth, columns, torch.float32, False, generator)
    before, threads = torch.randn(rows, columns, generator=generator), torch.get_num_threads()
    found = []
    try:
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            found.append(wide_products.multiply(left, right, before.clone(), add, dtype))
    finally:
        torch.set_num_threads(threads)
    expected, size = exact(left, right, dtype)
    error = (found[0].double() - expected - (before.double() if add else 0.0)).abs()
    assert (error <= (size + before.abs()) * 2.0**-24 * (depth + 2)).all()
    assert torch.equal(found[0], found[1]) and torch.equal(found[0], found[2])


@each_type
def test_whole_numbers_are_exact(dtype):
    left = (torch.arange(40 * 70) % 17 - 8.0).view(40, 70)
    right = (torch.arange(70 * 60) % 13 - 6.0).view(70, 60)
    out = wide_products.multiply(left, right, torch.empty(40, 60), dtype=dtype)
    assert torch.equal(out, (left.long() @ right.long()).float())


@bfloat16_only
def test_operands_are_rounded_to_nearest_even():
    halfway = torch.tensor([[1.0 + 2.0**-8, 1.0 + 3 * 2.0**-8, 1.0 + 2.0**-8 + 2.0**-20]])
    out = wide_products.multiply(halfway.t().contiguous(), torch.ones(1, 1), torch.empty(3, 1))
    assert torch.equal(out, halfway.t().bfloat16().float())


@each_type
@pytest.mark.parametrize("depth", [5, 1500])
def test_infinities_and_nan(depth, dtype):
    left, right = torch.ones(3, depth), torch.ones(depth, 20)
    left[1, depth - 1], left[2, 0] = torch.inf, torch.nan
    out = wide_products.multiply(left, right, torch.empty(3, 20), dtype=dtype)
    assert torch.equal(out[0], torch.full((20,), float(depth)))
    assert out[1].isposinf().all() and out[2].isnan().all()


@each_type
def test_views_are_read_where_they_lie(dtype):
    """Heads side by side, every other row, and one whose elements are apart in both dimensions."""
    wide = torch.randn(50, 3, 64)
    weight = torch.randn(64, 30)
    for left in (wide[:, 1], wide[::2, 2], wide[:, 0, ::2]):
        right = weight[: left.shape[1]]
        out = wide_products.multiply(left, right, torch.empty(50, 40)[: len(left), :30], dtype=dtype)
        assert out.stride(0) == 40
        torch.testing.assert_close(out.double(), exact(left, right, dtype)[0], rtol=1e-5, atol=1e-5)


@each_type
def test_what_lies_beside_the_result_is_left_alone(dtype):
    memory = torch.full((12, 100), 7.0)
    wide_products.multiply(torch.randn(10, 33), torch.randn(33, 50), memory[1:11, 3:53], dtype=dtype)
    beside = torch.ones_like(memory, dtype=torch.bool)
    beside[1:11, 3:53] = False
    assert (memory[beside] == 7.0).all()


@each_type
def test_a_product_without_depth(dtype):
    out, operands = torch.ones(2, 3), (torch.empty(2, 0), torch.empty(0, 3))
    assert torch.equal(wide_products.multiply(*operands, out, add=True, dtype=dtype), torch.ones(2, 3))
    assert torch.equal(wide_products.multiply(*operands, out, dtype=dtype), torch.zeros(2, 3))


@each_type
@pytest.mark.parametrize(("rows", "depth", "columns"), [(300, 1100, 20), (2100, 64, 500)])
def test_threads_and_other_rows_change_nothing(rows, depth, columns, dtype):
    left, right = torch.randn(rows, depth), torch.randn(depth, columns)
    threads, results = torch.get_num_threads(), []
    try:
        for count in (1, 2, 5):
            torch.set_num_threads(count)
            results.append(wide_products.multiply(left, right, torch.empty(rows, columns), dtype=dtype))
    finally:
        torch.set_num_threads(threads)
    assert torch.equal(results[0], results[1]) and torch.equal(results[0], results[2])
    some = wide_products.multiply(left[13:30], right, torch.empty(17, columns), dtype=dtype)
    assert torch.equal(some, results[0][13:30])


@bfloat16_only
def test_a_cpu_with_better_units_leaves_products_to_torch(monkeypatch):
    """AMX, which torch's library has and the kernel has not."""
    flags = half_units._flags()
    monkeypatch.setattr(half_units, "_flags", lambda: flags | {"amx_bf16"})
    assert not wide_products.available()
    assert wide_products.available(FLOAT32) == (FLOAT32 in TYPES)
