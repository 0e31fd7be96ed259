"""The kernels for dropout: their random numbers, their masks, and values and gradients against float64."""

from __future__ import annotations

import ctypes.util
import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from poptorch import notices
from poptorch.device import native
from poptorch.device.alibi import with_alibi
from poptorch.device.dropout_attention import dropout_attention
from poptorch.device.native import wide_products
from poptorch.device.residual_dropout import residual_dropout

needs_library = pytest.mark.skipif(not native.available(), reason="the kernels are not built (run `make`)")
widths = pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
GROUP = 128
SCORES, FLAT = 0, 1  # streams


# -- random numbers ----------------------------------------------------------------------------------------------------


def philox(counter: list[np.ndarray], key: int) -> list[np.ndarray]:
    """Philox 4x32-10 over arrays of uint64 that hold 32 bits, from its definition (Salmon et al., 2011)."""
    low = np.uint64(0xFFFFFFFF)
    a, b, c, d = (np.asarray(word, dtype=np.uint64) for word in counter)
    key0, key1 = key & 0xFFFFFFFF, key >> 32
    for _ in range(10):
        first, second = a * np.uint64(0xD2511F53), c * np.uint64(0xCD9E8D57)
        a, c = (second >> np.uint64(32)) ^ b ^ np.uint64(key0), (first >> np.uint64(32)) ^ d ^ np.uint64(key1)
        b, d = second & low, first & low
        key0, key1 = (key0 + 0x9E3779B9) & 0xFFFFFFFF, (key1 + 0xBB67AE85) & 0xFFFFFFFF
    return [a, b, c, d]


def drawn(columns: np.ndarray, rows, sequence, stream: int, key: int) -> np.ndarray:
    """The 16 bits that decide on the elements in `columns`, as kernels.h has it; arguments broadcast."""
    columns, rows, sequence = np.broadcast_arrays(columns, rows, sequence)
    block = columns // GROUP * 16 + columns % 16
    words = philox([block, rows, sequence, np.full_like(block, stream)], key)
    word = np.choose(columns // 16 % 4, words)
    return np.where(columns % GROUP < 64, word & np.uint64(0xFFFF), word >> np.uint64(16))


# The vectors that come with Random123, the authors' library: counter, key, result.
KNOWN = [
    ("00000000 00000000 00000000 00000000", "00000000 00000000", "6627e8d5 e169c58d bc57ac4c 9b00dbd8"),
    ("ffffffff ffffffff ffffffff ffffffff", "ffffffff ffffffff", "408f276d 41c83b0e a20bc7c6 6d5451fd"),
    ("243f6a88 85a308d3 13198a2e 03707344", "a4093822 299f31d0", "d16cfe09 94fdcceb 5001e420 24126ea1"),
]


def words(text: str) -> tuple[int, ...]:
    return tuple(int(word, 16) for word in text.split())


@pytest.mark.parametrize("counter, key, result", KNOWN)
def test_known_answers(counter, key, result, kernels):
    assert native.philox(words(counter), words(key)) == words(result)
    reference = philox(list(words(counter)), words(key)[0] | words(key)[1] << 32)
    assert tuple(int(word) for word in reference) == words(result)


def scores_mask(query: torch.Tensor, dropout: float, key: int) -> torch.Tensor:
    """(B, H, T, T) of what is kept at and below the diagonal: what reaches the values if these are the identity."""
    length = query.shape[2]
    identity = torch.eye(length, dtype=query.dtype).expand(*query.shape[:2], length, length)
    found, _ = native.attention_forward(query, query, identity, 0.1, dropout, [key])
    return found > 0


@widths
def test_the_mask_of_scores_is_the_one_described(dtype, kernels):
    samples, heads, length, key = 2, 3, 301, 0x0123456789ABCDEF
    found = scores_mask(torch.randn(samples, heads, length, 4).to(dtype), 0.25, key)
    rows, columns = np.arange(length)[:, None], np.arange(length)[None, :]
    sequence = np.arange(samples * heads)[:, None, None]
    expected = drawn(columns, rows, sequence, SCORES, key) < 0.75 * 65536
    expected &= columns <= rows
    assert np.array_equal(found.numpy().reshape(-1, length, length), expected)


@pytest.mark.parametrize("count", [1, 127, 128, 8192, 70_001])
def test_the_mask_of_a_flat_tensor_is_the_one_described(count, kernels):
    key = 0xFEDCBA9876543210
    found = native.dropout_add(torch.ones(count), None, 0.5, [key])
    expected = drawn(np.arange(count), 0, 0, FLAT, key) < 32768
    assert np.array_equal(found.numpy(), 2.0 * expected)


def chi_square(kept: torch.Tensor, valid: torch.Tensor, share: float) -> float:
    """How far (in standard deviations of a chi-square) the counts of each of the first dimension are from expected."""
    count = valid.flatten(1).sum(1).double()
    some = count > 30
    z = (kept.flatten(1).sum(1) - count * share)[some] / (count[some] * share * (1 - share)).sqrt()
    degrees = len(z)
    return float(((z**2).sum() - degrees) / math.sqrt(2 * degrees))


def correlation(first: torch.Tensor, second: torch.Tensor, valid: torch.Tensor, share: float) -> float:
    """The correlation of two masks where `valid`, in standard deviations."""
    a, b = (mask[valid].double() - share for mask in (first, second))
    return float((a * b).sum() / (share * (1 - share)) / math.sqrt(len(a)))


@needs_library
@pytest.mark.parametrize("dropout", [0.1, 0.5])
def test_statistics_of_the_masks(dropout):
    heads, length, share = 12, 512, native.keeps(dropout)
    query = torch.randn(2, heads, length, 4)
    mask, other = (scores_mask(query, dropout, key).flatten(0, 1) for key in (1, 2))  # two calls: neighbouring keys
    valid = torch.ones(length, length, dtype=torch.bool).tril().expand_as(mask)
    by = {"head": (0, 1, 2), "row": (1, 0, 2), "column": (2, 0, 1)}
    for name, order in by.items():
        assert abs(chi_square(mask.permute(order), valid.permute(order), share)) < 4, name
    pairs = {
        "calls": (mask, other, valid),
        "heads": (mask[1:], mask[:-1], valid[1:]),
        "samples": (mask[:heads], mask[heads:], valid[:heads]),
        "rows": (mask[:, 1:], mask[:, :-1], valid[:, :-1]),
    }
    for distance in (1, 8, 16, 64, 128):  # places that share a word, a block or a vector
        pairs[f"columns {distance} apart"] = (mask[..., distance:], mask[..., :-distance], valid[..., distance:])
    for name, (first, second, where) in pairs.items():
        assert abs(correlation(first, second, where, share)) < 4, name


# -- attention ---------------------------------------------------------------------------------------------------------


def operands(samples: int, heads: int, length: int, width: int) -> list[torch.Tensor]:
    """Query, key and value as views of one projection, and a gradient of the context in another layout."""
    generator = torch.Generator().manual_seed(length + width)
    parts = torch.randn(samples, length, 3 * heads * width, generator=generator).split(heads * width, 2)
    views = [part.view(samples, length, heads, width).transpose(1, 2) for part in parts]
    return [*views, torch.randn(samples, heads, length, width, generator=generator)]


def exact(query, key, value, grad, scale: float, kept: torch.Tensor, share: float) -> list[torch.Tensor]:
    """Context and gradients in float64 with the mask `kept`."""
    leaves = [tensor.double().requires_grad_() for tensor in (query, key, value)]
    length = query.shape[2]
    future = torch.ones(length, length, dtype=torch.bool).triu(1)
    scores = (leaves[0] @ leaves[1].transpose(-1, -2) * scale).masked_fill(future, -torch.inf)
    context = torch.softmax(scores, -1) * kept / share @ leaves[2]
    return [context.detach(), *torch.autograd.grad(context, leaves, grad.double())]


SIZES = [(1, 1, 1, 8), (2, 3, 47, 80), (1, 2, 128, 64), (2, 2, 49, 5), (1, 2, 300, 128), (1, 1, 515, 16)]


@pytest.mark.parametrize("dropout", [0.0, 0.3])
@pytest.mark.parametrize("size", SIZES)
def test_attention_is_that_of_float64_under_the_same_mask(size, dropout, kernels):
    query, key, value, grad = operands(*size)
    scale, random_key = 0.3, 987654321
    kept = scores_mask(query, dropout, random_key)
    context, log_sums = native.attention_forward(query, key, value, scale, dropout, [random_key])
    grads = native.attention_backward(grad, query, key, value, context, log_sums, scale, dropout, [random_key])
    expected = exact(query, key, value, grad, scale, kept, native.keeps(dropout))
    for found, wanted in zip([context, *grads], expected, strict=True):
        assert (found - wanted).norm() <= 2e-6 * wanted.norm() + 1e-6


def biased(query, key, value, grad, scale: float, kept: torch.Tensor, share: float, slopes, bias) -> list[torch.Tensor]:
    """exact() with slopes of the heads and `bias` (n, T) of the keys, and the gradient of that."""
    leaves = [tensor.double().requires_grad_() for tensor in (query, key, value, bias)]
    samples, _, length, _ = query.shape
    place = torch.arange(float(length), dtype=torch.float64)
    scores = leaves[0] @ leaves[1].mT * scale
    scores = scores + torch.tensor(slopes).double()[:, None, None] * (place - place[:, None])
    scores = scores + leaves[3].repeat_interleave(samples // len(bias), 0)[:, None, None, :]
    future = torch.ones(length, length, dtype=torch.bool).triu(1)
    context = torch.softmax(scores.masked_fill(future, -torch.inf), -1) * kept / share @ leaves[2]
    return [context.detach(), *torch.autograd.grad(context, leaves, grad.double())]


@widths
@pytest.mark.parametrize("dropout", [0.0, 0.3])
@pytest.mark.parametrize("size", [*SIZES, (4, 3, 200, 24)])
def test_a_bias_is_added_to_the_scores(size, dropout, dtype, kernels):
    """Slopes of the heads and a bias of the keys: one for every two samples where the samples are four."""
    full = operands(*size)
    samples, heads, length, _ = size
    query, key, value, grad = (tensor.to(dtype) for tensor in full)
    slopes = [0.5**number for number in range(heads)]
    bias = torch.randn(max(1, samples // 2), length, generator=torch.Generator().manual_seed(2))
    kept, scale = scores_mask(full[0], dropout, 9), 0.3
    context, log_sums = native.attention_forward(query, key, value, scale, dropout, [9], slopes, bias)
    grad_bias = torch.empty(samples, heads, length)
    settings = (scale, dropout, [9], slopes, bias, grad_bias)
    grads = native.attention_backward(grad, query, key, value, context, log_sums, *settings)
    expected = biased(query, key, value, grad, scale, kept, native.keeps(dropout), slopes, bias)
    grad_bias = grad_bias.view(len(bias), -1, length).sum(1)
    # Gradients of scores add up to 0: those of a single key are what rounding leaves of it.
    near = 2e-6 if dtype == torch.float32 else 2**-7
    for found, wanted in zip([context, *grads, grad_bias], expected, strict=True):
        assert (found - wanted).norm() <= near * wanted.norm() + (1e-6 if dtype == torch.float32 else 0.05)


@pytest.mark.parametrize("kernels", ["portable", "avx2", "avx512"], indirect=True)
@pytest.mark.parametrize("size", SIZES)
def test_attention_of_bfloat16_is_that_of_float32_rounded_on_the_way_out(size, kernels):
    narrow = [tensor.bfloat16() for tensor in operands(*size)]
    results = []
    for query, key, value, grad in (narrow, [tensor.float() for tensor in narrow]):
        context, log_sums = native.attention_forward(query, key, value, 0.3, 0.2, [5])
        rounded = context.bfloat16().to(context.dtype)  # what the backward pass is given in either case
        grads = native.attention_backward(grad, query, key, value, rounded, log_sums, 0.3, 0.2, [5])
        assert {each.dtype for each in (context, *grads)} == {query.dtype}
        results.append([log_sums, *(each.bfloat16() for each in (context, *grads))])
    assert all(torch.equal(found, expected) for found, expected in zip(*results, strict=True))


def outcome(query, key, value, grad, scale: float, dropout: float, random_key: int = 5) -> list[torch.Tensor]:
    """Context and gradients by the kernel."""
    context, log_sums = native.attention_forward(query, key, value, scale, dropout, [random_key])
    return [
        context,
        *native.attention_backward(grad, query, key, value, context, log_sums, scale, dropout, [random_key]),
    ]


def distances(found: list[torch.Tensor], expected: list[torch.Tensor]) -> list[float]:
    return [float((mine - wanted).norm() / wanted.norm()) for mine, wanted in zip(found, expected, strict=True)]


@needs_library
def test_processors_with_units_for_bfloat16_use_them():
    assert (native.choose(None) == "avx512_bf16") == wide_products.available()


@pytest.mark.parametrize("scale", [0.125, 0.3])
@pytest.mark.parametrize("size", SIZES[1:])
def test_attention_of_bfloat16_is_no_worse_than_torchs(size, scale, kernels):
    narrow = [tensor.bfloat16() for tensor in operands(*size)]
    expected = exact(*narrow, scale, torch.ones(()), 1.0)
    leaves = [tensor.detach().requires_grad_() for tensor in narrow[:3]]
    context = F.scaled_dot_product_attention(*leaves, is_causal=True, scale=scale)
    theirs = [context.detach(), *torch.autograd.grad(context, leaves, narrow[3])]
    for mine, other in zip(distances(outcome(*narrow, scale, 0.0), expected), distances(theirs, expected), strict=True):
        assert mine < 1.2 * other  # 1.02 at most when this was written, 0.46 at least


@pytest.mark.parametrize("size", SIZES[1:])
def test_attention_of_bfloat16_is_that_of_float64_under_the_mask_of_float32(size, kernels):
    full = operands(*size)
    narrow = [tensor.bfloat16() for tensor in full]
    kept = scores_mask(full[0], 0.3, 77)
    expected = exact(*narrow, 0.3, kept, native.keeps(0.3))
    assert max(distances(outcome(*narrow, 0.3, 0.3, 77), expected)) < 2**-8  # one rounding


def bounded(query, key, value, grad, context, scale: float, kept: torch.Tensor, share: float):
    """Context and gradients in float64 for the rounded `context`, each with the sum of its terms' magnitudes."""
    query, key, value, grad, context = (each.double() for each in (query, key, value, grad, context))
    future = torch.ones(query.shape[2], query.shape[2], dtype=torch.bool).triu(1)
    probabilities = torch.softmax((query @ key.mT * scale).masked_fill(future, -torch.inf), -1)
    dropped = probabilities * kept / share
    of_scores = dropped * (grad @ value.mT) - probabilities * (grad * context).sum(-1, keepdim=True)
    of_scores = of_scores * scale
    products = [(dropped, value), (of_scores, key), (of_scores.mT, query), (dropped.mT, grad)]
    return [(left @ right, left.abs() @ right.abs()) for left, right in products]


@settings(deadline=None, max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_each_element_of_bfloat16_is_good_to_two_roundings_of_its_terms(kernels, data):
    """One of the operand that the kernel makes, one of the result; of any sizes, and a value of its own width."""
    samples, heads = data.draw(st.integers(1, 2)), data.draw(st.integers(1, 2))
    length = data.draw(st.one_of(st.integers(1, 9), st.integers(10, 300)))
    width, value_width = data.draw(st.integers(1, 70)), data.draw(st.integers(1, 70))
    dropout = data.draw(st.sampled_from([0.0, 0.3]))
    generator = torch.Generator().manual_seed(data.draw(st.integers(0, 2**31)))
    query, key, value, grad = (
        torch.randn(samples, length, heads, each, generator=generator).bfloat16().transpose(1, 2)
        for each in (width, width, value_width, value_width)
    )
    scale = data.draw(st.sampled_from([1.0, -1.0])) * width**-0.5
    found = outcome(query, key, value, grad, scale, dropout)
    kept = scores_mask(query.float(), dropout, 5)
    expected = bounded(query, key, value, grad, found[0], scale, kept, native.keeps(dropout))
    for mine, (wanted, terms) in zip(found, expected, strict=True):
        assert ((mine - wanted).abs() <= 1.01 * 2**-7 * terms + 1e-4).all()


@pytest.mark.parametrize("columns", [True, False])
def test_alibi_of_bfloat16_has_the_digits_of_float32(columns, kernels):
    """Its columns hold scores of hundreds that cancel: these are exact in bfloat16, and their products in float32."""
    query, key, value, _ = (tensor.bfloat16() for tensor in operands(1, 4, 700, 64))
    slopes, scale = (0.5, 0.25, 0.0078125, 0.7071), 0.125
    widened = with_alibi(query, key, value, slopes, scale) if columns else (query, key, value)
    found = native.attention_forward(*widened, scale, 0.0, [0], None if columns else slopes)[0][..., :64]
    place = torch.arange(700.0, dtype=torch.float64)
    scores = query.double() @ key.double().mT * scale
    scores += torch.tensor(slopes, dtype=torch.float64)[:, None, None] * (place - place[:, None])
    future = torch.ones(700, 700, dtype=torch.bool).triu(1)
    expected = torch.softmax(scores.masked_fill(future, -torch.inf), -1) @ value.double()
    assert distances([found], [expected])[0] < 2**-8


@needs_library
def test_operands_of_any_layout_and_large_scores():
    query, key, value, grad = (tensor.mT.contiguous().mT for tensor in operands(2, 2, 130, 16))
    query = query * 40  # scores up to hundreds
    query.requires_grad_(), key.requires_grad_(), value.requires_grad_()
    torch.manual_seed(3)
    context = dropout_attention(query, key, value, 0.2, 0.5)
    torch.manual_seed(3)
    kept = scores_mask(torch.zeros(2, 2, 130, 4), 0.2, native.new_key())
    expected = exact(*(t.detach() for t in (query, key, value, grad)), 0.5, kept, native.keeps(0.2))
    grads = torch.autograd.grad(context, (query, key, value), grad)
    for found, wanted in zip([context.detach(), *grads], expected, strict=True):
        assert (found - wanted).norm() <= 1e-4 * wanted.norm()  # scores of 100 have seven digits, too


@pytest.fixture
def threads():
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


@needs_library
@widths
def test_any_number_of_threads_computes_the_same(dtype, threads):
    query, key, value, grad = (tensor.to(dtype) for tensor in operands(3, 3, 200, 32))
    x, found = torch.randn(100_000), []
    for count in (1, 2, 5):
        threads(count)
        context, log_sums = native.attention_forward(query, key, value, 0.3, 0.4, [7])
        grads = native.attention_backward(grad, query, key, value, context, log_sums, 0.3, 0.4, [7])
        found.append([context, log_sums, *grads, native.dropout_add(x, x, 0.4, [7])])
    for others in found[1:]:
        assert all(torch.equal(a, b) for a, b in zip(found[0], others, strict=True))


@needs_library
@widths
def test_each_of_several_parts_has_the_mask_of_its_key(dtype):
    """Micro-batches that run as one: n keys for n equal parts, as if each were alone."""
    query, key, value, grad = (tensor.to(dtype) for tensor in operands(6, 2, 50, 8))
    x, keys = torch.randn(6, 77), [3, 4, 5]

    def of_part(part: slice, keys: list[int]) -> list[torch.Tensor]:
        tensors = [tensor[part] for tensor in (query, key, value)]
        context, log_sums = native.attention_forward(*tensors, 0.3, 0.4, keys)
        grads = native.attention_backward(grad[part], *tensors, context, log_sums, 0.3, 0.4, keys)
        return [context, *grads, native.dropout_add(x[part], x[part], 0.4, keys)]

    alone = [of_part(slice(2 * number, 2 * number + 2), [key]) for number, key in enumerate(keys)]
    for found, parts in zip(of_part(slice(None), keys), zip(*alone, strict=True), strict=True):
        assert torch.equal(found, torch.cat(parts))


@needs_library
def test_samples_of_one_mask_for_all_differ_between_heads_and_samples():
    mask = scores_mask(torch.zeros(2, 2, 64, 4), 0.5, 1).flatten(0, 1)
    assert len({tuple(each.flatten().tolist()) for each in mask}) == 4


# -- residual sum ------------------------------------------------------------------------------------------------------


def test_dropout_and_the_sum_after_it(kernels):
    x, residual = (torch.randn(3, 50, 7).mT.requires_grad_() for _ in range(2))
    torch.manual_seed(1)
    total = residual_dropout(x, residual, 0.25)
    torch.manual_seed(1)
    kept = native.dropout_add(torch.ones(x.shape), None, 0.25, [native.new_key()]) > 0
    share = native.keeps(0.25)
    assert 0.6 < kept.float().mean() < 0.9
    torch.testing.assert_close(total, torch.where(kept, x / share, 0.0) + residual)
    grad = torch.randn(total.shape)
    grad_x, grad_residual = torch.autograd.grad(total, (x, residual), grad)
    torch.testing.assert_close(grad_x, torch.where(kept, grad / share, 0.0))
    assert torch.equal(grad_residual, grad)


@needs_library
def test_dropout_alone_stores_nothing():
    x = torch.randn(1000, requires_grad=True)
    torch.manual_seed(1)
    dropped = residual_dropout(x, None, 0.5)
    kept = dropped != 0
    assert dropped.grad_fn.saved_tensors == ()
    torch.testing.assert_close(dropped, torch.where(kept, 2 * x, 0.0))
    (grad,) = torch.autograd.grad(dropped.sum(), x)
    assert torch.equal(grad, 2.0 * kept)


@pytest.mark.parametrize("dropout", [1e-9, 0.1, 0.5, 1 - 1e-9])
def test_what_is_kept_is_scaled_by_the_share_that_is_really_kept(dropout):
    assert 1 <= native.threshold(dropout) <= 65536
    assert abs(native.keeps(dropout) - (1 - dropout)) <= 1 / 65536


# -- without the library -----------------------------------------------------------------------------------------------


@pytest.fixture
def library_named(monkeypatch):
    def named(value: str) -> None:
        monkeypatch.setenv(native.VARIABLE, value)
        native.library.cache_clear()

    yield named
    monkeypatch.undo()
    native.library.cache_clear()


def test_plain_torch_serves_without_a_library(library_named):
    library_named("none")
    assert not native.available()
    query, key, value, _ = operands(1, 2, 16, 4)
    torch.manual_seed(1)
    first = dropout_attention(query, key, value, 0.5, 0.3)
    torch.manual_seed(1)
    assert torch.equal(first, dropout_attention(query, key, value, 0.5, 0.3)) and first.isfinite().all()
    x = torch.ones(1000)
    assert set(residual_dropout(x, x, 0.5).tolist()) == {1.0, 3.0}


@pytest.mark.parametrize("case", ["no library", "another version", "other symbols"])
def test_a_library_that_does_not_fit_is_told_once_and_not_used(case, library_named, tmp_path, monkeypatch):
    path = tmp_path / "kernels.so"
    if case == "no library":
        path.write_bytes(b"no library")
    elif case == "other symbols":
        path = ctypes.util.find_library("c")
    else:
        monkeypatch.setattr(native, "VERSION", native.VERSION + 1)
        path = native.LIBRARY
        if not path.is_file():
            pytest.skip("the kernels are not built (run `make`)")
    monkeypatch.setattr(notices, "_said", set())
    said = []
    monkeypatch.setattr(notices.logger, "log", lambda level, message: said.append(message))
    library_named(str(path))
    assert not native.available() and not native.available()
    assert len(said) == 1 and "plain torch serves" in said[0] and "`make`" in said[0]


@needs_library
@widths
@pytest.mark.parametrize("bad", [math.nan, 3e38])
def test_what_is_not_finite_stays_so(kernels, dtype, bad):
    """A NaN, or scores beyond float32, in one query's row: it and no other row is NaN, as plain torch has it."""
    torch.manual_seed(0)
    query, key, value = (torch.randn(1, 1, 40, 16).to(dtype) for _ in range(3))
    query[0, 0, 9] = bad
    out = dropout_attention(query, key, value, 0.1, 1.0)
    assert out[0, 0].isnan().any(-1).nonzero().flatten().tolist() == [9]
    expected = dropout_attention(query, key, value, 0.1, 1.0, philox=False)
    assert torch.equal(out.isnan().any(-1), expected.isnan().any(-1))


@needs_library
def test_the_default_type_of_the_program_does_not_matter(kernels):
    torch.manual_seed(0)
    operands = [torch.randn(1, 2, 40, 16) for _ in range(3)]
    expected, _ = native.attention_forward(*operands, 1.0, 0.1, [5])
    torch.set_default_dtype(torch.float16)
    try:
        found, log_sums = native.attention_forward(*operands, 1.0, 0.1, [5])
    finally:
        torch.set_default_dtype(torch.float32)
    assert found.dtype == log_sums.dtype == torch.float32 and torch.equal(found, expected)
