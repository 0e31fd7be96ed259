"""Megatron-LM's mmap corpus: the files byte by byte, the order of samples against slow transcriptions of the rule."""

from __future__ import annotations

import multiprocessing
import os
import pickle
import resource
import struct

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_run import flags, run_here, write_config

from data.bad_data import BadData
from data.loading.datasets import make_sampler, open_dataset
from data.loading.sampler import OrderedSampler, ResumableSampler, Shard
from data.megatron import dataset as megatron_dataset
from data.megatron import order as megatron_order
from data.megatron.dataset import open_mmap
from data.megatron.files import DTYPES, MmapCorpus, mmap_writer, smallest_dtype
from data.megatron.order import OrderRule, build_order

VOCAB = 50257


def write(prefix, documents, dtype=None, vocab=VOCAB):
    with mmap_writer(prefix, vocab, dtype) as writer:
        for ids in documents:
            writer.write(np.asarray(ids, dtype=np.int64))
    return str(prefix)


def files_by_hand(prefix, documents, code, format_character):
    """The two files as the format's description has them, with struct alone."""
    width = struct.calcsize(format_character)
    sizes = [len(ids) for ids in documents]
    pointers = [width * sum(sizes[:i]) for i in range(len(sizes))]
    index = b"MMIDIDX\x00\x00" + struct.pack("<QBQQ", 1, code, len(sizes), len(sizes) + 1)
    index += struct.pack(f"<{len(sizes)}i", *sizes) + struct.pack(f"<{len(sizes)}q", *pointers)
    index += struct.pack(f"<{len(sizes) + 1}q", *range(len(sizes) + 1))
    flat = [token for ids in documents for token in ids]
    return index, struct.pack(f"<{len(flat)}{format_character}", *flat)


DOCUMENTS = st.lists(st.lists(st.integers(0, 120), max_size=12), min_size=1, max_size=12)


# ---- The files ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("code", "character"), [(1, "B"), (2, "b"), (3, "h"), (4, "i"), (5, "q"), (8, "H")])
def test_files_are_the_format_s(tmp_path, code, character):
    documents = [[1, 2, 3], [], [120], list(range(100))]
    prefix = write(tmp_path / "c", documents, DTYPES[code], vocab=128)
    index, tokens = files_by_hand(prefix, documents, code, character)
    assert (tmp_path / "c.idx").read_bytes() == index
    assert (tmp_path / "c.bin").read_bytes() == tokens
    corpus = MmapCorpus(prefix)
    assert [corpus.document(i).tolist() for i in range(len(corpus))] == documents
    assert corpus.tokens.dtype == DTYPES[code]
    assert [corpus.count_tokens(n) for n in range(5)] == [0, 3, 3, 4, 104]
    assert [corpus.document(i).tolist() for i in range(4)] == [
        pickle.loads(pickle.dumps(corpus)).document(i).tolist() for i in range(4)
    ]
    assert sorted(os.listdir(str(tmp_path))) == ["c.bin", "c.idx"]


def test_the_smallest_type_that_megatron_has():
    assert [smallest_dtype(size).name for size in (1, 50257, 65536, 65537)] == ["uint16", "uint16", "uint16", "int32"]


def test_a_written_id_outside_the_vocabulary_leaves_nothing(tmp_path):
    for ids in ([5, 200], [-1]):
        with pytest.raises(ValueError, match="document 1: token id (200|-1) is outside the vocabulary 0..199"):
            write(tmp_path / "c", [[1, 2], ids], vocab=200)
    with pytest.raises(ValueError, match="no token in 2 documents; nothing written"):
        write(tmp_path / "c", [[], []])
    with pytest.raises(ValueError, match="float32"):
        write(tmp_path / "c", [[1]], np.float32)
    assert os.listdir(str(tmp_path)) == []


def _write_with_a_limit(prefix, results):
    import signal

    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
    try:
        write(prefix, [list(range(1000))] * 200)
    except OSError as error:
        results.put(error.strerror)


def test_a_full_disk_leaves_nothing(tmp_path):
    context = multiprocessing.get_context("fork")
    results = context.Queue()
    process = context.Process(target=_write_with_a_limit, args=(tmp_path / "c", results))
    process.start()
    assert results.get(timeout=300) == "File too large"
    process.join(timeout=300)
    assert os.listdir(str(tmp_path)) == []


def damaged(path, at, content):
    data = bytearray(path.read_bytes())
    data[at : at + len(content)] = content
    path.write_bytes(bytes(data))


def test_damaged_files(tmp_path):
    documents = [[1, 2, 3], [4, 5], [6] * 10]
    prefix = write(tmp_path / "c", documents)
    other = write(tmp_path / "d", [[1, 2, 3], [4, 5, 6], [6] * 9])
    index, tokens = tmp_path / "c.idx", tmp_path / "c.bin"
    good = index.read_bytes(), tokens.read_bytes()
    sizes, pointers = 34, 34 + 12
    for damage, message in [
        (lambda: damaged(index, 0, b"TNTIDX"), r"c.idx, byte 0: .* not an index"),
        (lambda: damaged(index, 9, b"\x02"), "c.idx, byte 9: version 2"),
        (lambda: damaged(index, 17, b"\x09"), "c.idx, byte 17: type code 9 is unknown"),
        (lambda: damaged(index, 17, b"\x06"), "c.idx, byte 17: type code 6 is a float type"),
        (lambda: damaged(index, 17, b"\x07"), "c.idx, byte 17: type code 7 is a float type"),
        (lambda: damaged(index, 17, b"\x04"), "document 1 is said to have 2 tokens from byte 6 on, where byte 12"),
        (lambda: damaged(index, 18, b"\x04"), "c.idx: .* bytes, where 4 sequences and 4 documents take"),
        (lambda: damaged(index, 18, b"\xff" * 8), "c.idx: .* bytes, where 18,446,744,073,709,551,615 sequences"),
        (lambda: damaged(index, sizes, b"\x04"), "c.idx: document 1 is said"),
        (lambda: damaged(index, sizes + 8, b"\x0b"), "c.bin: 30 bytes, where c.idx describes 32 .* cut off"),
        (lambda: damaged(index, sizes, b"\xfd\xff\xff\xff"), "c.idx: document 0 is said to have -3"),
        (lambda: damaged(index, pointers + 16, b"\x08"), "c.idx: document 2 .* byte 8 on, where byte 10 is next"),
        (lambda: index.write_bytes(good[0][:-1]), "c.idx: .* bytes, where"),
        (lambda: index.write_bytes(good[0][:20]), "c.idx: ends after 20 bytes, in the header"),
        (lambda: index.write_bytes(b""), "c.idx, byte 0"),
        (lambda: tokens.write_bytes(good[1][:-2]), "c.bin: 28 bytes, where c.idx describes 30 .* cut off"),
        (lambda: tokens.write_bytes(good[1] + b"12"), "c.bin: 32 bytes, .* not of one corpus"),
        (lambda: tokens.unlink(), "--data-prefix .*c.bin: No such file"),
    ]:
        damage()
        with pytest.raises(ValueError, match=message):
            MmapCorpus(prefix)
        index.write_bytes(good[0])
        tokens.write_bytes(good[1])
    assert MmapCorpus(prefix).count_tokens(3) == 15
    os.replace(other + ".idx", prefix + ".idx")  # another corpus of 15 tokens: only its documents are elsewhere
    assert MmapCorpus(prefix).count_tokens(3) == 15


# ---- The order ----------------------------------------------------------------------------------------------------


def slow_order(sizes, documents, max_len, wanted, seed, separates):
    """The rule as it is written down, with loops: (document index, sample index, shuffle index)."""
    tokens = sum(sizes[d] for d in documents)
    epochs = 1
    while (epochs * tokens - 1) // max_len < wanted:
        epochs += 1
    separate = False
    if epochs > 1 and separates:
        last = wanted - ((epochs - 1) * tokens - 1) // max_len
        separate = last < int(0.8 * ((tokens - 1) // max_len))
    rng = np.random.RandomState(seed)
    if separate:
        first, last = np.array(documents * (epochs - 1), dtype=np.int32), np.array(documents, dtype=np.int32)
        rng.shuffle(first)
        rng.shuffle(last)
        index = np.concatenate([first, last])
    else:
        index = np.array(documents * epochs, dtype=np.int32)
        rng.shuffle(index)
    where = [(position, offset) for position, d in enumerate(index) for offset in range(sizes[d])]  # of every token
    samples = [where[i * max_len] for i in range((epochs * tokens - 1) // max_len + 1)]
    samples[0] = (0, 0)  # Megatron-LM begins there, be the first documents empty or not
    total = len(samples) - 1
    shuffle = np.arange(total, dtype=np.uint32)
    if separate:
        kept = ((epochs - 1) * tokens - 1) // max_len
        head, tail = shuffle[:kept].copy(), shuffle[kept:].copy()
        rng.shuffle(head)
        rng.shuffle(tail)
        shuffle = np.concatenate([head, tail])
    else:
        rng.shuffle(shuffle)
    return index.tolist(), [list(pair) for pair in samples], shuffle.tolist()


@settings(max_examples=300, deadline=None)
@given(
    sizes=st.lists(st.integers(0, 9), min_size=1, max_size=12),
    max_len=st.integers(1, 10),
    wanted=st.integers(1, 60),
    seed=st.integers(0, 2**32 - 1),
    separates=st.booleans(),
    block=st.integers(1, 8),
    data=st.data(),
)
def test_order(monkeypatch_module, sizes, max_len, wanted, seed, separates, block, data):
    monkeypatch_module.setattr(megatron_order, "_BLOCK", block)
    first = data.draw(st.integers(0, len(sizes) - 1))
    documents = list(range(first, data.draw(st.integers(first + 1, len(sizes)))))
    rule = OrderRule(max_len, wanted, seed, separates)
    array = np.array(sizes, dtype=np.int32)
    if sum(sizes[d] for d in documents) <= max_len:
        with pytest.raises(ValueError, match="make no sample"):
            build_order(array, range(first, documents[-1] + 1), rule)
        return
    order = build_order(array, range(first, documents[-1] + 1), rule)
    expected = slow_order(sizes, documents, max_len, wanted, seed, separates)
    assert (order.documents.tolist(), order.samples.tolist(), order.shuffle.tolist()) == expected
    assert (order.documents.dtype, order.samples.dtype, order.shuffle.dtype) == (np.int32, np.int32, np.uint32)


@pytest.fixture(scope="module")
def monkeypatch_module():
    patch = pytest.MonkeyPatch()
    yield patch
    patch.undo()


def test_a_last_epoch_that_is_hardly_used_is_kept_apart():
    """K = 101, T = 10: 10 samples an epoch. 13 samples use 3 of the second one's, 19 use 9."""
    sizes = np.array([50, 51], dtype=np.int32)
    few, most = OrderRule(10, 13, 1), OrderRule(10, 19, 1)
    assert (few.epochs(101), few.separate(101)) == (2, True)
    assert (most.epochs(101), most.separate(101)) == (2, False)
    assert not OrderRule(10, 13, 1, separate_last_epoch=False).separate(101)
    assert set(build_order(sizes, range(2), few).shuffle[:10].tolist()) == set(range(10))
    assert set(build_order(sizes, range(2), most).shuffle[:10].tolist()) != set(range(10))


def test_many_tokens_are_counted_in_64_bits():
    """Three documents of 2^31 - 1 tokens: the third begins beyond 2^32."""
    largest = 2**31 - 1
    order = build_order(np.full(3, largest, dtype=np.int32), range(3), OrderRule(1 << 20, 6143, 7))
    assert len(order.samples) == (3 * largest - 1) // (1 << 20) + 1
    position = order.samples[:, 0].astype(np.int64) * largest + order.samples[:, 1]
    assert position.tolist() == [i << 20 for i in range(len(order.samples))]


# ---- The data set -------------------------------------------------------------------------------------------------


@settings(max_examples=100, deadline=None)
@given(
    documents=DOCUMENTS,
    max_len=st.integers(1, 10),
    wanted=st.one_of(st.none(), st.integers(1, 40)),
    epochs=st.integers(1, 3),
    dtype=st.sampled_from(sorted(DTYPES.values(), key=str)),
)
def test_samples(tmp_path_factory, documents, max_len, wanted, epochs, dtype):
    documents = [*documents, [1] * (max_len + 1), [2]]
    prefix = write(tmp_path_factory.mktemp("corpus") / "c", documents, dtype, vocab=121)
    train = documents[: int(0.997 * len(documents))]
    sizes = [len(ids) for ids in train]
    dataset, held_out = open_mmap(
        prefix, max_len=max_len, seed=3, val_num=0, real_vocab_size=121, epochs=epochs, samples=wanted
    )
    count = wanted or epochs * ((sum(sizes) - 1) // max_len)
    assert held_out is None and len(dataset) == count
    index, samples, shuffle = slow_order(sizes, list(range(len(train))), max_len, count, 3, True)
    text = [token for d in index for token in train[d]]
    expected = [text[slot * max_len : slot * max_len + max_len + 1] for slot in shuffle[:count]]
    assert [dataset[i].tolist() for i in range(count)] == expected
    inputs, labels = pickle.loads(pickle.dumps(dataset)).__getitems__(range(count))
    assert inputs.tolist() == [ids[:-1] for ids in expected]
    assert labels.tolist() == [ids[1:] for ids in expected]


def opened(prefix, **changes):
    arguments = dict(max_len=8, seed=1, val_num=0, real_vocab_size=VOCAB, epochs=1, samples=None)
    return open_mmap(prefix, **dict(arguments, **changes))


def test_an_order_that_is_extended_keeps_what_it_had(tmp_path):
    """The further part is an order of its own, with a seed one higher, over the same documents."""
    documents = [[10 * d + i for i in range(1 + d % 7)] for d in range(100)]
    prefix = write(tmp_path / "c", documents)
    before, _ = opened(prefix, samples=30)
    extended, _ = opened(prefix, samples=75, parts=(30,))
    further, _ = opened(prefix, samples=45, seed=2)
    assert (before.parts, extended.parts, len(extended)) == ((30,), (30, 45), 75)
    mixed = np.random.default_rng(0).permutation(75).tolist()
    copies = [extended, pickle.loads(pickle.dumps(extended))]
    for dataset in copies:
        inputs, labels = dataset.__getitems__(mixed)
        for place, number in enumerate(mixed):
            source, at = (before, number) if number < 30 else (further, number - 30)
            assert inputs[place].tolist() == source[at][:-1].tolist()
            assert labels[place].tolist() == source[at][1:].tolist()
    assert extended.identity() == before.identity() == (before.summary(), 30)
    assert extended.summary().endswith("; the last 45 extend the order of the run before")
    assert opened(prefix, samples=20, parts=(30, 45))[0].parts == (30, 45), "a shorter run keeps the order too"
    assert opened(prefix, samples=80, parts=(30, 45))[0].parts == (30, 45, 5)


def test_ids_outside_the_vocabulary_are_found_while_reading(tmp_path):
    prefix = write(tmp_path / "c", [[1] * 8 + [2**32 + 7], [3]], np.int64, vocab=2**40)
    dataset, _ = opened(prefix)
    with pytest.raises(BadData, match=r"c.bin, sample 0: token id 4294967303 is outside the vocabulary 0..50256"):
        dataset[0]
    prefix = write(tmp_path / "d", [[1] * 5, [100] * 4, [3]], np.int8, vocab=101)
    (tmp_path / "d.bin").write_bytes((tmp_path / "d.bin").read_bytes().replace(b"\x64", b"\xff"))
    with pytest.raises(BadData, match="d.bin, sample 0: token id -1"):
        opened(prefix)[0][0]


def test_held_out_documents(tmp_path):
    """Megatron's validation documents, the last 0.3 %, and where they are too few more from the end."""
    documents = [[d] * 10 for d in range(1000)]
    prefix = write(tmp_path / "c", documents)
    train, held_out = opened(prefix, val_num=3)
    assert {int(i) for n in range(len(train)) for i in train[n]} <= set(range(997))
    assert {int(i) for n in range(3) for i in held_out[n]} <= {997, 998, 999} and len(held_out) == 3
    train, held_out = opened(prefix, val_num=10)
    seen = {int(i) for n in range(len(train)) for i in train[n]}
    assert seen == set(range(991)) and {int(i) for n in range(10) for i in held_out[n]} == set(range(991, 1000))
    for val_num in (1250, 10**9):
        with pytest.raises(ValueError, match=f"--val-num {val_num} holds all of them out"):
            opened(prefix, val_num=val_num)


def test_too_little_data(tmp_path):
    prefix = write(tmp_path / "c", [[1] * 100])
    with pytest.raises(ValueError, match="--data-prefix .*1 documents with 100 tokens leave nothing to train on"):
        opened(prefix)
    prefix = write(tmp_path / "d", [[1] * 8, [2]])
    with pytest.raises(
        ValueError, match="1 documents with 8 tokens make no sample of --max-len 8 . 1; lower --max-len"
    ):
        opened(prefix)


def test_summary(tmp_path):
    dataset, _ = opened(write(tmp_path / "c", [[1] * 50, [2] * 53, [1]]), epochs=2)
    assert dataset.summary() == (
        "24 samples of 9 ids from 2 documents with 103 tokens, 2.00 passes over them; none is padded, the 6 tokens "
        "after the last sample of a pass begin the next"
    )


# ---- The index on disk --------------------------------------------------------------------------------------------


def indexes(folder):
    return sorted(name for name in os.listdir(str(folder)) if "order.cache" in name)


def test_the_index_is_kept_by_all_that_shapes_it(tmp_path, monkeypatch):
    documents = [[d] * 10 for d in range(1000)]
    prefix = write(tmp_path / "c", documents)
    builds = []
    build = megatron_dataset.build_order
    monkeypatch.setattr(megatron_dataset, "build_order", lambda *a: builds.append(a[1:]) or build(*a))
    opened(prefix)
    opened(prefix)
    assert len(builds) == len(indexes(tmp_path)) == 1
    for number, changes in enumerate(
        [{"seed": 2}, {"max_len": 9}, {"samples": 1200}, {"epochs": 2}, {"separate_last_epoch": False}], start=2
    ):
        opened(prefix, **changes)
        assert len(builds) == len(indexes(tmp_path)) == number
    opened(prefix, val_num=5)  # trains on fewer documents, and validates on others
    assert len(builds) == len(indexes(tmp_path)) == 8
    documents[0] = [7] * 10
    os.utime(write(prefix, documents) + ".bin", ns=(1, 1))  # the same sizes, another content
    opened(prefix)
    assert len(builds) == 9


def test_a_damaged_index_is_refused(tmp_path):
    prefix = write(tmp_path / "c", [[d] * 10 for d in range(1000)])
    opened(prefix)
    folder = tmp_path / indexes(tmp_path)[0]
    for name in ("documents.npy", "samples.npy", "shuffle.npy", "meta.json"):
        good = (folder / name).read_bytes()
        for bad in (good[:-1] + b"\xff", good[:-4], b"", good[:40]):
            (folder / name).write_bytes(bad)
            with pytest.raises(ValueError, match=f"{folder.name}.*remove that folder"):
                opened(prefix)
        (folder / name).write_bytes(good)
    opened(prefix)


def _open_in_process(prefix, results):
    built = []
    build = megatron_dataset.build_order
    megatron_dataset.build_order = lambda *a: built.append(1) or build(*a)
    dataset, _ = opened(prefix)
    results.put((len(built), dataset[0].tolist()))


def test_several_processes_build_one_index(tmp_path):
    prefix = write(tmp_path / "c", [[d % 500] * 20 for d in range(20_000)])
    context = multiprocessing.get_context("fork")
    results = context.Queue()
    processes = [context.Process(target=_open_in_process, args=(prefix, results)) for _ in range(4)]
    for process in processes:
        process.start()
    answers = [results.get(timeout=300) for _ in processes]
    for process in processes:
        process.join(timeout=300)
    assert sorted(built for built, _ in answers) == [0, 0, 0, 1]
    assert len({tuple(ids) for _, ids in answers}) == 1 and len(indexes(tmp_path)) == 1


# ---- Sharing out --------------------------------------------------------------------------------------------------


@settings(max_examples=200, deadline=None)
@given(
    count=st.integers(1, 200),
    ranks=st.integers(1, 5),
    block=st.integers(1, 7),
    blocks=st.integers(1, 4),
    groups=st.integers(0, 40),
    ordered=st.booleans(),
)
def test_no_two_ranks_have_a_sample(count, ranks, block, blocks, groups, ordered):
    def sampler(rank):
        shard = Shard(rank, ranks, block, blocks)
        return OrderedSampler(count, count, shard) if ordered else ResumableSampler(count, 5, shard)

    alone = list(OrderedSampler(count, count)) if ordered else list(ResumableSampler(count, 5))
    group = ranks * block * blocks
    whole = sampler(0).samples_an_epoch if ordered else count
    start = min(groups * group, whole // group * group)
    parts = []
    for rank in range(ranks):
        one = sampler(rank)
        one.set_epoch(0, start)
        parts.append(list(one))
        assert len(parts[-1]) == len(one)
    if ranks == 1:
        assert parts[0] == alone[start:whole]
        return
    # The ranks' blocks, one after the other, are the order of a single process; all make as many whole calls.
    steps = len(parts[0]) // block
    assert steps % blocks == 0
    joined = [i for step in range(steps) for part in parts for i in part[step * block : step * block + block]]
    assert joined == alone[start : start + steps * ranks * block]
    assert min(count, whole) - start - len(joined) < group


def test_an_order_goes_on_over_epochs(tmp_path):
    """105 samples a pass in calls of 10: the second epoch begins with sample 100, nothing is left out."""
    dataset, _ = opened(write(tmp_path / "c", [[1] * 842, [2]]), samples=250)
    assert dataset.samples_a_pass == 105
    sampler = make_sampler(dataset, 1, Shard(0, 1, 10))
    epochs = []
    for epoch in range(3):
        sampler.set_epoch(epoch)
        epochs.append(list(sampler))
    assert [len(epoch) for epoch in epochs] == [100, 100, 50] and sum(epochs, []) == list(range(250))
    sampler.set_epoch(2, 30)
    assert list(sampler) == list(range(230, 250))


def test_open_dataset(tmp_path):
    prefix = write(tmp_path / "c", [[1] * 50, [2] * 53, [1]])
    arguments = dict(max_len=8, stride=8, seed=1, val_num=0, real_vocab_size=VOCAB, num_samples=1)
    dataset, _ = open_dataset("dynamic", data_prefix=prefix, epochs=3, **arguments)
    assert len(dataset) == 36
    dataset, _ = open_dataset("dynamic", data_prefix=prefix, ordered_samples=7, **arguments)
    assert len(dataset) == 7


# ---- Training -----------------------------------------------------------------------------------------------------


def test_a_resumed_run_goes_on_with_the_next_sample(tmp_path):
    """The passes of the order are the run's epochs, and no sample is left out where one ends."""
    write_config(tmp_path)
    prefix = write(tmp_path / "c", [[1 + i % 60 for i in range(400)], [2]])  # 24 samples of 17 a pass
    words = {
        "train_path": "dynamic",
        "data_prefix": prefix,
        "gradient_accumulation": 5,
        "config": tmp_path / "tiny.json",
    }

    def run(*further, **changes):
        done = run_here(flags(tmp_path, **{**words, **changes}) + list(further))
        assert done.status == 0, done.err
        return [line.split(", throughput")[0] for line in done.out.splitlines() if line.startswith("step ")]

    lines = run(epochs=3, save_model_path=tmp_path / "save", save_per_steps=5)
    # 72 samples in calls of 5, of which a pass has 4 whole ones.
    assert [line.split(",")[0] for line in lines] == [f"step {n + 1} of epoch {n // 4}" for n in range(14)]
    again = ["--pretrained-checkpoint", str(tmp_path / "save" / "step_5"), "--resume-training-from-checkpoint"]
    assert run(*again, epochs=3) == lines[5:]
    assert len(run(training_steps=7)) == 7  # more than one pass, as typed
    assert len(run(training_steps=7, epochs=1)) == 4
    two = run(training_steps=7, sample_order="reference")
    assert len(two) == 7


@pytest.mark.parametrize("schedule", ["constant", "cosine"])
def test_a_finished_run_can_be_extended(tmp_path, schedule):
    """By more epochs and by more steps, again and again; what is trained on already does not come in another order."""
    write_config(tmp_path)
    prefix = write(tmp_path / "c", [[1 + (7 * d + i) % 60 for i in range(20)] for d in range(21)])  # 24 samples a pass
    words = {"train_path": "dynamic", "data_prefix": prefix, "gradient_accumulation": 5, "lr_schedule": schedule}
    if schedule == "cosine":
        words.update(lr_decay_steps=6, lr_warmup_steps=1)
    save = {"save_model_path": tmp_path / "save", "save_per_epochs": 0}

    def run(*further, **changes):
        done = run_here(flags(tmp_path, **{**words, **save, **changes}) + list(further))
        assert done.status == 0, done.err
        return done.out, [line.split(", loss")[0] for line in done.out.splitlines() if line.startswith("step ")]

    def numbers(first, last):
        return [f"step {n + 1} of epoch {n // 4}" for n in range(first, last)]

    assert run(epochs=1)[1] == numbers(0, 4)
    said = run("--resume", "latest", epochs=1)[0]
    assert "all 4 steps are done already: raise --epochs or --training-steps to go on" in said
    out, steps = run("--resume", "latest", epochs=2)
    assert steps == numbers(4, 9) and "24 extend the order of the run before" in out
    assert run("--resume", "latest", training_steps=12)[1] == numbers(9, 12)
    assert run("--resume", "latest", training_steps=3)[1] == []  # fewer are as good
    # In the middle of a run: the rest of its order comes first.
    whole = run_here(flags(tmp_path, **words, epochs=2))
    run(epochs=2, save_model_path=tmp_path / "second", save_per_steps=3)
    resume = ["--resume", str(tmp_path / "second" / "step_6")]
    done = run_here(flags(tmp_path, **words, epochs=4) + resume)
    losses = [
        [line.split(", lr")[0] for line in text.splitlines() if line.startswith("step ")]
        for text in (whole.out, done.out)
    ]
    assert done.status == 0 and losses[1][:3] == losses[0][6:9] and len(losses[1]) == 19 - 6, done.err
    other = write(tmp_path / "d", [[1 + (5 * d + i) % 60 for i in range(20)] for d in range(21)])
    refused = run_here(flags(tmp_path, **{**words, "data_prefix": other}, epochs=4) + resume)
    assert refused.status == 2 and "--train-path" in refused.err


def test_damaged_data_end_the_program_with_status_2(tmp_path):
    write_config(tmp_path)
    prefix = write(tmp_path / "c", [[60] * 99, [70] * 100, [2]])
    done = run_here(flags(tmp_path, train_path="dynamic", data_prefix=prefix))
    assert done.status == 2 and "token id 70 is outside the vocabulary 0..60" in done.err
    os.truncate(prefix + ".bin", 100)
    done = run_here(flags(tmp_path, train_path="dynamic", data_prefix=prefix))
    assert done.status == 2 and "c.bin: 100 bytes, where c.idx describes 400" in done.err


@pytest.mark.parametrize("name", ["c.bin", "c.idx"])
def test_a_file_that_shrinks_while_it_is_read(tmp_path, name):
    """Touching what is gone of a mapped file would end the process with a signal."""
    prefix = write(tmp_path / "c", [[60] * 5000] * 3)
    dataset, _ = opened(prefix)
    whole = (tmp_path / name).read_bytes()
    (tmp_path / "new").write_bytes(b"another corpus")
    os.rename(str(tmp_path / name), str(tmp_path / "old"))
    os.rename(str(tmp_path / "new"), str(tmp_path / name))
    dataset[0]  # what was mapped is still there
    os.truncate(str(tmp_path / "old"), 50)
    with pytest.raises(BadData, match=f"{name}: 50 bytes, where there were {len(whole):,} when"):
        dataset[0]


def test_documents_that_are_isolated_end_in_the_end_token(tmp_path):
    dataset, _ = opened(write(tmp_path / "c", [[1, 2, 3, 9], [], [4] * 20 + [9]] * 400))
    dataset.check_document_ends(9)
    dataset, _ = opened(write(tmp_path / "d", [[1, 2, 3, 9]] * 5 + [[4] * 20] + [[8]]))
    with pytest.raises(ValueError, match="document 5 of .*d ends in id 4 and not in 9, .*--append-eod"):
        dataset.check_document_ends(9)
