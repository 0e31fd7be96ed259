"""device/native/wide_products.py: float32 results of bfloat16 operands, against products in float64."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from poptorch.device import half_units
from poptorch.device.native import wide_products

pytestmark = pytest.mark.skipif(not wide_products.available(), reason="this CPU has no AVX512_BF16, or no kernels")

# Around the sizes of tiles (8 x 48), of what is packed together (16, 32, 64) and of parts (2,048 rows, 1,024 deep).
ROWS = st.sampled_from([1, 7, 8, 9, 17, 64, 100, 2048, 2057])
COLUMNS = st.sampled_from([1, 15, 16, 17, 47, 48, 49, 97, 130])
DEPTHS = st.sampled_from([1, 2, 3, 31, 32, 33, 65, 1023, 1024, 1025])
TYPES = st.sampled_from([torch.float32, torch.bfloat16])


def operand(rows, columns, dtype, transposed, generator):
    shape = (columns, rows) if transposed else (rows, columns)
    values = torch.randn(shape, generator=generator).to(dtype)
    return values.t() if transposed else values


def exact(left, right):
    """The product of the rounded operands, and the sum of the products' sizes, by which rounding is measured."""
    left, right = left.bfloat16().double(), right.bfloat16().double()
    return left @ right, left.abs() @ right.abs()


@settings(max_examples=60, deadline=None)
@given(ROWS, DEPTHS, COLUMNS, TYPES, TYPES, st.booleans(), st.booleans(), st.booleans(), st.integers(0, 1000))
def test_product(rows, depth, columns, left_type, right_type, left_transposed, right_transposed, add, seed):
    generator = torch.Generator().manual_seed(seed)
    left = operand(rows, depth, left_type, left_transposed, generator)
    right = operand(depth, columns, right_type, right_transposed, generator)
    before = torch.randn(rows, columns, generator=generator)
    out = before.clone()
    assert wide_products.multiply(left, right, out, add) is out
    expected, size = exact(left, right)
    error = (out.double() - expected - (before.double() if add else 0.0)).abs()
    assert (error <= (size + before.abs()) * 2.0**-24 * (depth + 2)).all()


@pytest.mark.parametrize(("rows", "columns"), [(5, 50), (200, 130)])
@pytest.mark.parametrize("add", [False, True])
@pytest.mark.parametrize("depth", [16_383, 16_384, 20_001])
def test_deep_products_do_not_depend_on_threads(rows, columns, add, depth):
    generator = torch.Generator().manual_seed(depth)
    left = operand(rows, depth, torch.bfloat16, False, generator)
    right = operand(depth, columns, torch.float32, False, generator)
    before, threads = torch.randn(rows, columns, generator=generator), torch.get_num_threads()
    found = []
    try:
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            found.append(wide_products.multiply(left, right, before.clone(), add))
    finally:
        torch.set_num_threads(threads)
    expected, size = exact(left, right)
    error = (found[0].double() - expected - (before.double() if add else 0.0)).abs()
    assert (error <= (size + before.abs()) * 2.0**-24 * (depth + 2)).all()
    assert torch.equal(found[0], found[1]) and torch.equal(found[0], found[2])


def test_whole_numbers_are_exact():
    left = (torch.arange(40 * 70) % 17 - 8.0).view(40, 70)
    right = (torch.arange(70 * 60) % 13 - 6.0).view(70, 60)
    out = wide_products.multiply(left, right, torch.empty(40, 60))
    assert torch.equal(out, (left.long() @ right.long()).float())


def test_operands_are_rounded_to_nearest_even():
    halfway = torch.tensor([[1.0 + 2.0**-8, 1.0 + 3 * 2.0**-8, 1.0 + 2.0**-8 + 2.0**-20]])
    out = wide_products.multiply(halfway.t().contiguous(), torch.ones(1, 1), torch.empty(3, 1))
    assert torch.equal(out, halfway.t().bfloat16().float())


@pytest.mark.parametrize("depth", [5, 1500])
def test_infinities_and_nan(depth):
    left, right = torch.ones(3, depth), torch.ones(depth, 20)
    left[1, depth - 1], left[2, 0] = torch.inf, torch.nan
    out = wide_products.multiply(left, right, torch.empty(3, 20))
    assert torch.equal(out[0], torch.full((20,), float(depth)))
    assert out[1].isposinf().all() and out[2].isnan().all()


def test_views_are_read_where_they_lie():
    """Heads side by side, every other row, and one whose elements are apart in both dimensions."""
    wide = torch.randn(50, 3, 64)
    weight = torch.randn(64, 30)
    for left in (wide[:, 1], wide[::2, 2], wide[:, 0, ::2]):
        right = weight[: left.shape[1]]
        out = wide_products.multiply(left, right, torch.empty(50, 40)[: len(left), :30])
        assert out.stride(0) == 40
        torch.testing.assert_close(out.double(), exact(left, right)[0], rtol=1e-5, atol=1e-5)


def test_what_lies_beside_the_result_is_left_alone():
    memory = torch.full((12, 100), 7.0)
    wide_products.multiply(torch.randn(10, 33), torch.randn(33, 50), memory[1:11, 3:53])
    beside = torch.ones_like(memory, dtype=torch.bool)
    beside[1:11, 3:53] = False
    assert (memory[beside] == 7.0).all()


def test_a_product_without_depth():
    out = torch.ones(2, 3)
    assert torch.equal(wide_products.multiply(torch.empty(2, 0), torch.empty(0, 3), out, add=True), torch.ones(2, 3))
    assert torch.equal(wide_products.multiply(torch.empty(2, 0), torch.empty(0, 3), out), torch.zeros(2, 3))


@pytest.mark.parametrize(("rows", "depth", "columns"), [(300, 1100, 20), (2100, 64, 500)])
def test_threads_change_nothing(rows, depth, columns):
    left, right = torch.randn(rows, depth), torch.randn(depth, columns)
    threads, results = torch.get_num_threads(), []
    try:
        for count in (1, 2, 5):
            torch.set_num_threads(count)
            results.append(wide_products.multiply(left, right, torch.empty(rows, columns)))
    finally:
        torch.set_num_threads(threads)
    assert torch.equal(results[0], results[1]) and torch.equal(results[0], results[2])


def test_a_cpu_with_better_units_leaves_products_to_torch(monkeypatch):
    """AMX, which torch's library has and the kernel has not."""
    flags = half_units._flags()
    monkeypatch.setattr(half_units, "_flags", lambda: flags | {"amx_bf16"})
    assert not wide_products.available()
