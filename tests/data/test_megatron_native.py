"""megatron_data.so against numpy, whose results it must repeat to the bit; and what serves without it."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data.bad_data import BadData
from data.megatron import native as megatron_native
from data.megatron.dataset import open_mmap
from data.megatron.files import DTYPES, mmap_writer
from data.megatron.order import OrderRule, build_order


@pytest.fixture(autouse=True)
def _built():
    if megatron_native.native_library() is None:
        pytest.skip("megatron_data.so is not built: run `make`")


@pytest.fixture
def without(monkeypatch):
    """Take the library away, or give it back."""

    def switch(away):
        monkeypatch.setattr(megatron_native, "native_library", (lambda: None) if away else library)

    library = megatron_native.native_library
    yield switch


@settings(max_examples=100, deadline=None)
@given(
    count=st.one_of(st.integers(0, 40), st.integers(600, 3000)),
    seed=st.integers(0, 2**32 - 1),
    before=st.integers(0, 700),
    dtype=st.sampled_from([np.int32, np.uint32, np.int64, np.int16]),
)
def test_a_shuffle_is_numpy_s_and_leaves_its_generator(count, seed, before, dtype):
    ours, theirs = np.random.RandomState(seed), np.random.RandomState(seed)
    for rng in (ours, theirs):
        rng.random_sample(before)
        rng.standard_normal()  # leaves a second one in the generator's state
    one, other = np.arange(count).astype(dtype), np.arange(count).astype(dtype)
    megatron_native.shuffle(ours, one)
    theirs.shuffle(other)
    assert np.array_equal(one, other) and one.dtype == dtype
    assert ours.standard_normal() == theirs.standard_normal()
    assert ours.randint(0, 2**31, 1300).tolist() == theirs.randint(0, 2**31, 1300).tolist()


def test_a_part_of_an_array_is_shuffled_where_it_is():
    one, other = np.arange(5000), np.arange(5000)
    megatron_native.shuffle(np.random.RandomState(1), one[1000:4000])
    np.random.RandomState(1).shuffle(other[1000:4000])
    assert np.array_equal(one, other)


@settings(max_examples=100, deadline=None)
@given(
    sizes=st.lists(st.integers(0, 30), min_size=1, max_size=200),
    max_len=st.integers(1, 40),
    wanted=st.integers(1, 300),
    seed=st.integers(0, 99),
)
def test_an_order_is_numpy_s(sizes, max_len, wanted, seed):
    array, documents = np.array(sizes, dtype=np.int32), range(len(sizes))
    if sum(sizes) <= max_len:
        return
    orders = []
    for library in (megatron_native.native_library, lambda: None):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(megatron_native, "native_library", library)
            orders.append(build_order(array, documents, OrderRule(max_len, wanted, seed)))
    for name in ("documents", "samples", "shuffle"):
        one, other = (getattr(order, name) for order in orders)
        assert one.dtype == other.dtype and np.array_equal(one, other)


def test_positions_beyond_31_bits_are_64_bits_wide():
    sizes, documents = np.array([3, 4], dtype=np.int32), np.array([0, 1, 0], dtype=np.int32)
    index = np.full((4, 2), -1, dtype=np.int64)
    assert megatron_native.sample_index(sizes, documents, 3, index)
    assert index.tolist() == [[0, 0], [1, 0], [1, 3], [2, 2]]
    assert not megatron_native.sample_index(sizes, documents, 3, np.empty((5, 2), dtype=np.int64))  # there are no 5


def test_an_order_that_begins_with_empty_documents_begins_at_its_first(tmp_path, without):
    """Megatron-LM's sample_index[0] is [0, 0] there; later entries never lie in an empty document."""
    sizes = np.array([0, 0, 5, 0, 4, 0], dtype=np.int32)
    documents = [[], [], [1, 2, 3, 4, 5], [], [6, 7, 8, 9], []]
    seed = next(s for s in range(99) if set(np.random.RandomState(s).permutation(6)[:2]) <= {0, 1, 3, 5})
    read = []
    for away in (False, True):
        without(away)
        order = build_order(sizes, range(6), OrderRule(4, 2, seed))
        assert sizes[order.documents[:2]].tolist() == [0, 0]
        assert order.samples[0].tolist() == [0, 0] and sizes[order.documents[order.samples[1:, 0]]].all()
        folder = tmp_path / str(away)
        folder.mkdir()
        # A document more: the last 0.3 % are not trained on.
        dataset = corpus(folder, [*documents, [10]], np.uint16, max_len=4, seed=seed, epochs=1)
        assert dataset.order.samples[0].tolist() == [0, 0]
        ids = np.empty((2, 5), dtype=np.int32)
        dataset.read(np.arange(2), ids)
        read.append(sorted(ids.tolist()))
    whole = [token for d in order.documents for token in documents[d]]
    assert read == [sorted([whole[0:5], whole[4:9]])] * 2


def corpus(folder, documents, dtype, vocab=121, max_len=7, seed=3, epochs=2):
    with mmap_writer(folder / "c", vocab, dtype) as writer:
        for ids in documents:
            writer.write(np.asarray(ids, dtype=np.int64))
    shaping = {"max_len": max_len, "seed": seed, "epochs": epochs, "samples": None}
    return open_mmap(str(folder / "c"), val_num=0, real_vocab_size=121, **shaping)[0]


@pytest.mark.parametrize("dtype", DTYPES.values())
def test_samples_are_those_that_numpy_reads(tmp_path, without, dtype, monkeypatch):
    rng = np.random.default_rng(0)
    dataset = corpus(tmp_path, [rng.integers(0, 121, rng.integers(0, 30)) for _ in range(400)], dtype)
    order = rng.permutation(len(dataset))
    answered = []
    native = megatron_native.read_samples
    monkeypatch.setattr(megatron_native, "read_samples", lambda *a: answered.append(native(*a)) or answered[-1])
    read = []
    for away in (False, True):
        without(away)
        read.append(np.empty((len(order), 8), dtype=np.int32))
        dataset.read(order, read[-1])
    assert answered == [True, False] and np.array_equal(*read)


@pytest.mark.parametrize("dtype", [np.int8, np.uint8, np.int16, np.uint16, np.int32, np.int64])
def test_an_id_outside_the_vocabulary_is_said_where(tmp_path, dtype):
    dataset = corpus(tmp_path, [[1] * 20, [121, 2, 3] * 8, [4]], dtype, vocab=122)
    with pytest.raises(BadData, match="c.bin, sample .*: token id 121 is outside the vocabulary 0..120"):
        dataset.__getitems__(range(len(dataset)))


def test_arrays_that_point_outside_are_left_to_numpy():
    tokens, sizes = np.arange(10, dtype=np.uint16), np.array([4, 6], dtype=np.int32)
    pointers, documents = np.array([0, 8], dtype=np.int64), np.array([1, 0], dtype=np.int32)
    ids = np.empty((1, 5), dtype=np.int32)

    def read(begin, **changes):
        arrays = dict(tokens=tokens, sizes=sizes, pointers=pointers, documents=documents)
        arrays.update(changes)
        return megatron_native.read_samples(**arrays, begins=np.array([begin], np.int64), vocabulary=10, ids=ids)

    assert read((0, 3)) and ids.tolist() == [[7, 8, 9, 0, 1]]
    for begin in ((1, 0), (0, -1), (2, 0), (-1, 0)):
        assert not read(begin)
    assert not read((0, 0), documents=np.array([2, 0], dtype=np.int32))
    assert not read((0, 0), pointers=np.array([0, 80], dtype=np.int64))
    assert not read((0, 0), sizes=np.array([4, 60], dtype=np.int32), pointers=np.array([0, 18], dtype=np.int64))
    assert not read((0, 0), tokens=tokens.astype(np.uint32)) and not read((0, 0), tokens=tokens.astype(">u2"))
