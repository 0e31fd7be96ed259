"""Reading TFRecord files: any order, every source, bad files by name and position, the held-out split."""

from __future__ import annotations

import os
import pickle

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from test_tfrecord import entry, field, one_by_one, packed
from tfrecord.reader import tfrecord_loader
from tfrecord.tools.tfrecord2idx import create_index
from tfrecord.writer import TFRecordWriter
from torch.utils.data import DataLoader

from data.loading.datasets import ResumableSampler, Shard, collate, make_sampler, open_dataset
from data.tfrecord import records as tfrecord
from data.tfrecord import varint
from data.tfrecord.dataset import matching_files, open_tfrecords
from data.tfrecord.files import TFRecordFiles

VOCAB = 50257
T = 8


def write(path, rows, feature="input_ids"):
    """A file by the tfrecord package."""
    writer = TFRecordWriter(str(path))
    for row in rows:
        writer.write({feature: (list(row), "int")})
    writer.close()


def write_examples(path, examples):
    path.write_bytes(b"".join(map(tfrecord.record, examples)))


def index(path):
    """An index by the tfrecord package."""
    create_index(str(path), str(path.with_suffix(".index")))


def rows_of(count, seed=0, length=T + 1, largest=VOCAB - 1):
    return np.random.default_rng(seed).integers(0, largest + 1, (count, length)).tolist()


def open_all(*patterns, max_len=T, val_num=0, vocab=VOCAB, seed=1):
    return open_tfrecords(
        [str(p) for p in patterns], max_len=max_len, real_vocab_size=vocab, val_num=val_num, seed=seed
    )


def samples_of(dataset):
    return [dataset[i].tolist() for i in range(len(dataset))]


def refused(*patterns, **changes) -> str:
    with pytest.raises(ValueError) as error:
        dataset, _ = open_all(*patterns, **changes)
        dataset.__getitems__(range(len(dataset)))
    return str(error.value)


# ---- What is read ------------------------------------------------------------------------------------------------


@settings(max_examples=40, deadline=None)
@given(sizes=st.lists(st.integers(1, 9), min_size=1, max_size=4), indexed=st.booleans(), data=st.data())
def test_samples_in_any_order(tmp_path_factory, sizes, indexed, data):
    folder = tmp_path_factory.mktemp("records")
    rows = rows_of(sum(sizes), seed=sum(sizes))
    for number, end in enumerate(np.cumsum(sizes)):
        path = folder / f"{number}.tfrecord"
        write(path, rows[end - sizes[number] : end])
        if indexed:
            bounds = TFRecordFiles([path], T, VOCAB).bounds[0]
            lines = [f"{a} {b - a}\n" for a, b in zip(bounds, bounds[1:])]
            path.with_suffix(".index").write_text("".join(lines))
    dataset, held_out = open_all(folder / "*.tfrecord")
    assert held_out is None and len(dataset) == len(rows)
    assert dataset.files.scanned == ([] if indexed else dataset.files.paths)
    wanted = data.draw(st.lists(st.integers(0, len(rows) - 1), max_size=20))
    inputs, labels = dataset.__getitems__(wanted)
    assert inputs.tolist() == [rows[i][:-1] for i in wanted] and labels.tolist() == [rows[i][1:] for i in wanted]


def test_many_records_and_more_files_than_may_be_open(tmp_path, monkeypatch):
    monkeypatch.setattr("data.open_files._MOST", 3)
    monkeypatch.setattr("data.tfrecord.files._CHUNK", 50)
    rows = rows_of(200)
    for number in range(10):
        write(tmp_path / f"{number}.tfrecord", rows[number * 20 : number * 20 + 20])
    before = len(os.listdir("/proc/self/fd"))
    dataset, _ = open_all(tmp_path)
    order = np.random.default_rng(0).permutation(200)
    assert dataset.__getitems__(order)[1].tolist() == [rows[i][1:] for i in order]
    assert len(os.listdir("/proc/self/fd")) - before == 3
    del dataset
    assert len(os.listdir("/proc/self/fd")) == before


def test_every_wire_variant_is_the_same_sample(tmp_path):
    (row,) = rows_of(1)
    others = entry(b"input_mask", field(3, packed([1] * 9))) + entry(b"name", field(1, field(1, b"x")))
    write_examples(
        tmp_path / "a.tfrecord",
        [
            field(1, entry(b"input_ids", field(3, packed(row)))),
            field(1, entry(b"input_ids", field(3, one_by_one(row)))),
            field(1, entry(b"input_ids", field(3, packed(row)), swapped=True)),
            field(1, others + entry(b"input_ids", field(3, packed(row)))),
            field(1, entry(b"input_ids", field(3, packed(row))) + others),
            field(1, entry(b"input_ids", field(3, packed(row[:4]) + one_by_one(row[4:])))),
        ],
    )
    assert samples_of(open_all(tmp_path)[0]) == [row] * 6


def test_padded_and_older_records(tmp_path):
    """max_len ids train on max_len - 1 positions, and so do several kinds in one batch."""
    full, older, padded = rows_of(1)[0], rows_of(1, 1, T)[0], [5, 70000 % VOCAB, 6, 200, 7, -100, -100, -100, -100]
    kinds = [full, older, padded, older[:5] + [-100] * 3]
    expected = [full, older + [-100], padded, older[:5] + [-100] * 4]
    write(tmp_path / "a.tfrecord", kinds)
    dataset, _ = open_all(tmp_path)
    assert samples_of(dataset) == expected
    inputs, labels = dataset.__getitems__([0, 1, 2, 3])
    assert inputs[2].tolist() == padded[:5] + [0, 0, 0] and labels[2].tolist() == padded[1:]
    assert labels[1].tolist() == older[1:] + [-100] and inputs[1].tolist() == older
    write_examples(tmp_path / "b.tfrecord", [field(1, entry(b"input_ids", field(3, one_by_one(padded))))])
    assert samples_of(open_all(tmp_path / "b.tfrecord")[0]) == [padded]
    write(tmp_path / "c.tfrecord", [older] * 3)
    assert samples_of(open_all(tmp_path / "c.tfrecord")[0]) == [older + [-100]] * 3


def test_large_ids(tmp_path):
    rows = [[0, 127, 128, 16383, 16384, 2**21 - 1, 2**21, 2**28, 2**31 - 2]] * 2 + rows_of(2)
    write(tmp_path / "a.tfrecord", rows)
    assert samples_of(open_all(tmp_path, vocab=2**31 - 1)[0]) == rows


def test_the_tfrecord_package_reads_what_is_padded(tmp_path):
    ids = [5, 6, 7, -100]
    payload = varint.encode(np.array(ids[:3]))[0].tobytes() + tfrecord.PADDING_BYTES
    write_examples(tmp_path / "a.tfrecord", [tfrecord.example_head(len(payload)) + payload])
    (read,) = tfrecord_loader(str(tmp_path / "a.tfrecord"), None, {"input_ids": "int"})
    assert read["input_ids"].tolist() == ids


@pytest.mark.parametrize("workers", [0, 2])
def test_workers_share_an_epoch_without_repeats(tmp_path, workers):
    rows = [[i] * (T + 1) for i in range(70)]
    write(tmp_path / "a.tfrecord", rows[:40])
    write(tmp_path / "b.tfrecord", rows[40:])
    dataset, _ = open_all(tmp_path)
    sampler = ResumableSampler(len(dataset), seed=3)
    loader = DataLoader(dataset, batch_size=8, sampler=sampler, collate_fn=collate, num_workers=workers)
    seen = [int(row[0]) for inputs, _ in loader for row in inputs]
    assert seen == list(sampler) and sorted(seen) == list(range(70))
    assert {i < 40 for i in seen[:20]} == {True, False}  # across files, not one after the other
    sampler.set_epoch(0, start=24)
    assert [int(row[0]) for inputs, _ in loader for row in inputs] == seen[24:]


@pytest.mark.parametrize("workers", [0, 2])
def test_ranks_and_workers_together_see_every_record_once(tmp_path, workers):
    """3 ranks of calls of 4: 70 records make 5 steps of 12, and the 10 that are left fill no step of all ranks."""
    write(tmp_path / "a.tfrecord", [[i] * (T + 1) for i in range(70)])
    seen: list[list[int]] = []
    for rank in range(3):
        dataset, _ = open_all(tmp_path)
        sampler = make_sampler(dataset, 3, Shard(rank, 3, 4))
        loader = DataLoader(dataset, batch_size=4, sampler=sampler, collate_fn=collate, num_workers=workers)
        seen.append([int(row[0]) for inputs, _ in loader for row in inputs])
    order = list(make_sampler(dataset, 3))
    steps = [rank[4 * step : 4 * step + 4] for step in range(5) for rank in seen]
    assert [len(rank) for rank in seen] == [20, 20, 20] and sum(steps, []) == order[:60]


def test_a_spawned_process_opens_the_files_itself(tmp_path):
    write(tmp_path / "a.tfrecord", rows_of(3))
    dataset, _ = open_all(tmp_path)
    copy = pickle.loads(pickle.dumps(dataset))
    assert torch.equal(copy[2], dataset[2]) and not pickle.loads(pickle.dumps(dataset)).files._files._open


# ---- Which files -------------------------------------------------------------------------------------------------


def test_matching_files(tmp_path):
    for name in ("b.tfrecord", "a.tfrecord", "c[1].tfrecord", "a.index"):
        (tmp_path / name).write_bytes(b"")
    a, b, c = (tmp_path / name for name in ("a.tfrecord", "b.tfrecord", "c[1].tfrecord"))
    for patterns in ([tmp_path / "*.tfrecord"], [tmp_path], [c, b, a], [b, c, tmp_path / "a*.tfrecord"]):
        assert matching_files(list(map(str, patterns))) == [a, b, c]
    for patterns, message in (
        ([tmp_path / "x*"], "x.*no such file"),
        ([a, tmp_path / "*.tfrecord"], "named twice"),
        ([tmp_path / "*"], "a.index: an index"),
    ):
        with pytest.raises(ValueError, match=message):
            matching_files(list(map(str, patterns)))


# ---- Bad files ---------------------------------------------------------------------------------------------------


@pytest.fixture
def shard(tmp_path):
    write(tmp_path / "a.tfrecord", rows_of(5))
    return tmp_path / "a.tfrecord"


def test_a_truncated_file(shard):
    whole = shard.read_bytes()
    index(shard)
    lines = shard.with_suffix(".index").read_text()
    for size in range(len(whole)):
        shard.write_bytes(whole[:size])
        message = refused(shard)
        assert str(shard.with_suffix("")) in message
        assert ("a.tfrecord: the file is empty" if size == 0 else "cut off") in message
    shard.with_suffix(".index").unlink()
    bounds = {int(line.split()[0]) for line in lines.splitlines()}
    for size in set(range(1, len(whole))) - bounds:
        shard.write_bytes(whole[:size])
        assert "truncated" in refused(shard) and "record " in refused(shard)
    # tfrecord2idx of a truncated file counts what is left of the last record as one
    shard.write_bytes(whole[:-7])
    index(shard)
    assert "a.tfrecord, record 4, " in refused(shard)


def test_every_damaged_byte_is_found(shard):
    """Each byte of a record is under one of its two CRCs or is one."""
    whole = shard.read_bytes()
    for place in range(len(whole)):
        shard.write_bytes(whole[:place] + bytes([whole[place] ^ 1 << place % 8]) + whole[place + 1 :])
        message = refused(shard)
        assert "a.tfrecord, record " in message and "damaged" in message, message


def test_an_index_of_another_file(shard, tmp_path):
    write(tmp_path / "b.tfrecord", [[i] * (T + 1) for i in range(5)])
    index(tmp_path / "b.tfrecord")
    (tmp_path / "b.index").rename(tmp_path / "a.index")
    message = refused(shard)
    assert "a.index" in message and "tfrecord2idx" in message
    # the same number of bytes in all, cut elsewhere
    size = shard.stat().st_size
    (tmp_path / "a.index").write_text(f"0 30\n30 {size - 30}\n")
    assert "a.tfrecord, record 0, byte 0: the record has" in refused(shard)
    index(shard)
    starts = [int(line.split()[0]) for line in (tmp_path / "a.index").read_text().splitlines()] + [size]
    starts[2] += 1
    (tmp_path / "a.index").write_text("".join(f"{a} {b - a}\n" for a, b in zip(starts, starts[1:])))
    assert "a.tfrecord, record 1, byte" in refused(shard)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "its 0 records make 0 bytes"),
        ("0 10\n", "line 1"),
        ("5 40\n", "line 1"),
        ("0 40\n41 40\n", "line 2"),
        ("0 40\n0 40\n", "line 2"),
        ("0 -40\n", "not an index"),
        ("a b\n", "not an index"),
        ("0\n", "not an index"),
        ("0 40", "not an index"),
        ("0 40 40\n", "not an index"),
        ("0 99999999999999999999\n", "a.index"),
        ("\n\n", "not an index"),
        ("\x00\xff", "not an index"),
    ],
)
def test_a_damaged_index(shard, text, message):
    shard.with_suffix(".index").write_text(text)
    refusal = refused(shard)
    assert message in refusal and "a.index" in refusal and "again" in refusal


def test_not_tfrecord_files(tmp_path):
    path = tmp_path / "a.tfrecord"
    for data, message in (
        (b"", "a.tfrecord: the file is empty"),
        (b"\x1f\x8b" + b"0" * 100, "record 0, byte 0: the file is compressed"),
        (b"plain text, and more of it", "record 0, byte 0: no record begins here"),
        (tfrecord.record(b"plain text"), "record 0, byte 0: "),
        (tfrecord.record(b""), "record 0, byte 0: not an Example"),
    ):
        path.write_bytes(data)
        assert message in refused(path)
    path.unlink()
    path.mkdir()
    assert "no such file" in refused(path)


def test_other_lengths_are_refused_with_the_numbers(tmp_path):
    path = tmp_path / "a.tfrecord"
    for length in (0, 1, T - 1, T + 2, 100):
        write(path, [range(length)])
        message = refused(path)
        assert f"record 0, byte 0: it has {length} ids, and --max-len 8 takes records of 9 or 8" in message
        assert (f"or use --max-len {length - 1}" in message) == (length > 2)
    write(path, rows_of(3) + [[1] * 5])
    assert "record 3" in refused(path) and "it has 5 ids" in refused(path)


def test_ids_outside_the_vocabulary(tmp_path):
    path = tmp_path / "a.tfrecord"
    for bad in (VOCAB, 2**21, 2**31, 2**40, 2**63 - 1, -1, -101):
        rows = rows_of(4)
        rows[2][3] = bad
        write(path, rows)
        message = refused(path)
        assert "a.tfrecord, record 2, byte" in message and f"token id {bad} at position 3 is outside" in message
        write_examples(path, [field(1, entry(b"input_ids", field(3, one_by_one(rows[2]))))])
        assert f"record 0, byte 0: token id {bad} at position 3" in refused(path)
    for row, message in (
        ([1, 2, -100, 3, 4, 5, 6, 7, 8], "token id -100 at position 2"),
        ([-100] * 9, "fewer than two ids"),
        ([1] + [-100] * 8, "fewer than two ids"),
    ):
        write(path, rows_of(2) + [row])
        assert message in refused(path) and "record 2" in refused(path)


def test_ids_that_are_no_numbers(tmp_path):
    path = tmp_path / "a.tfrecord"
    (row,) = rows_of(1)
    good = field(1, entry(b"input_ids", field(3, packed(row))))
    for payload in (b"\x01" * 8 + b"\x80", b"\x80" * 12 + b"\x01" * 9, b"\xff" * 30):
        write_examples(path, [good, tfrecord.example_head(len(payload)) + payload, good])
        assert "a.tfrecord, record 1, byte" in refused(path)


def test_a_file_that_shrinks_or_goes_away_while_it_is_read(shard):
    dataset, _ = open_all(shard)
    shard.write_bytes(shard.read_bytes()[:60])
    with pytest.raises(ValueError, match="a.tfrecord, record [12], byte .*truncated"):
        dataset.__getitems__(range(5))
    moved = pickle.loads(pickle.dumps(dataset))
    shard.unlink()
    with pytest.raises(ValueError, match="a.tfrecord: cannot be read: No such file"):
        moved[0]


# ---- The held-out split ------------------------------------------------------------------------------------------


def windows(article, stride):
    window = T + 1
    starts = [*range(0, len(article) - window, stride), len(article) - window]
    return [article[start : start + window] for start in starts]


@settings(max_examples=30, deadline=None)
@given(
    sizes=st.lists(st.integers(T + 1, 60), min_size=4, max_size=8),
    stride=st.integers(1, T - 2),
    val_num=st.integers(1, 12),
    seed=st.integers(0, 3),
)
def test_whole_articles_are_held_out(tmp_path_factory, sizes, stride, val_num, seed):
    folder = tmp_path_factory.mktemp("split")
    random = np.random.default_rng(5)
    articles = [random.permutation(np.arange(1000 * i, 1000 * i + size)).tolist() for i, size in enumerate(sizes)]
    half = len(articles) // 2
    write(folder / "a.tfrecord", [row for article in articles[:half] for row in windows(article, stride)])
    write(folder / "b.tfrecord", [row for article in articles[half:] for row in windows(article, stride)])
    try:
        train, val = open_all(folder, val_num=val_num, seed=seed)
    except ValueError as error:
        assert "--val-num" in str(error)
        return
    trained = {row[0] // 1000 for row in samples_of(train)}
    validated = {row[0] // 1000 for row in samples_of(val)}
    assert trained | validated == set(range(len(sizes))) and not trained & validated
    assert len(val) >= val_num
    assert len(train) == sum(len(windows(articles[i], stride)) for i in trained)
    for article in validated:
        labels = [i for row in samples_of(val) if row[0] // 1000 == article for i in row[1:]]
        assert set(labels) == set(articles[article][1:])  # every id is predicted, by few windows
        assert len(samples_of(val)) <= sum(2 * len(articles[i]) // T + 1 for i in validated)


def test_split_depends_on_the_seed_and_on_nothing_else(tmp_path):
    write(tmp_path / "a.tfrecord", [[i] * 4 + [i + 1] * 5 for i in range(1, 400, 2)])
    chosen = [samples_of(open_all(tmp_path, val_num=5, seed=seed)[1]) for seed in (0, 0, 1)]
    assert chosen[0] == chosen[1] != chosen[2] and len(chosen[0]) == 5


def test_nothing_left_to_train_on(tmp_path):
    write(tmp_path / "a.tfrecord", windows(list(range(100)), 3))
    for val_num in (1, 31, 500):
        assert f"--val-num {val_num}: the TFRecord files have" in refused(tmp_path, val_num=val_num)


def test_open_dataset(tmp_path):
    write(tmp_path / "a.tfrecord", rows_of(6))
    settings = dict(max_len=T, stride=4, seed=1, real_vocab_size=VOCAB, num_samples=64)
    train, val = open_dataset("tfrecord", val_num=2, tfrecord_path=[str(tmp_path / "*.tfrecord")], **settings)
    assert (len(train), len(val)) == (4, 2)
    assert train.summary() == "4 samples of 9 ids from 1 TFRecord file"
