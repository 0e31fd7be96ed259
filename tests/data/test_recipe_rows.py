"""Rows as published recipes store them: TFRecords of inputs and labels, and webdataset's tars, read and written."""

from __future__ import annotations

import io
import pickle
import tarfile

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tfrecord import example_pb2
from tfrecord.writer import TFRecordWriter

from data import prepare
from data.bad_data import BadData
from data.building.rows import RowWriter
from data.loading.datasets import open_dataset
from data.tfrecord import records
from data.webdataset.rows import open_rows
from tokenizer import Tokenizer, train_bpe

VOCAB = 60_000
TEXTS = [
    "the river flows to the sea " * 5,
    "it rains",
    "a town has a market " * 9,
    "the bridge",
    "wet",
    "the river " * 20,
    "the sea",
]


def settings_of(**changes):
    return {**dict(max_len=8, seed=1, val_num=0, real_vocab_size=VOCAB, num_samples=1), **changes}


def samples_of(dataset):
    ids = np.full((len(dataset), dataset.max_len + 1), -7, np.int32)
    dataset.read(np.arange(len(dataset)), ids)
    return ids.tolist()


def npy(values, dtype=np.int64):
    file = io.BytesIO()
    np.save(file, np.asarray(values, dtype))
    return file.getvalue()


def pth(values):
    file = io.BytesIO()
    torch.save(values, file)
    return file.getvalue()


def tar(path, members):
    with tarfile.open(str(path), "w") as file:
        for name, content in members:
            member = tarfile.TarInfo(name)
            member.size = len(content)
            file.addfile(member, io.BytesIO(content))
    return str(path)


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    path = tmp_path_factory.mktemp("small") / "tokenizer.json"
    path.write_text(train_bpe(TEXTS * 3, 300).to_json(), encoding="utf-8")
    return path


def prepared(small, folder, *flags):
    (folder / "t.txt").write_text("\n".join(TEXTS), encoding="utf-8")
    words = ["--input", folder / "t.txt", "--output", folder / "out", "--tokenizer", small, "--workers", 1, *flags]
    try:
        return prepare.main([str(word) for word in words])
    except SystemExit as error:
        return error.code


def documents(small):
    tokenizer = Tokenizer.from_folder(small.parent)
    return [[*map(int, tokenizer.encode(text)), tokenizer.eot_id] for text in TEXTS]


def cut(ids, length):
    return [ids[start : start + length] for start in range(0, len(ids) - length + 1, length)]


# ---- TFRecord: inputs and labels -----------------------------------------------------------------------------------


def test_inputs_and_labels_of_1023_ids_as_the_tfrecord_package_writes_them(tmp_path):
    rows = np.random.default_rng(0).integers(0, VOCAB, (5, 1024))
    writer = TFRecordWriter(str(tmp_path / "a.tfrecord"))
    for row in rows:
        writer.write({"inputs": (row[:-1].tolist(), "int"), "labels": (row[1:].tolist(), "int")})
    writer.close()
    train, _ = open_dataset("tfrecord", tfrecord_path=[str(tmp_path / "*.tfrecord")], **settings_of(max_len=1023))
    assert samples_of(train) == rows.tolist()
    inputs, labels = train.__getitems__([3])
    assert inputs[0].tolist() == rows[3, :-1].tolist() and labels[0].tolist() == rows[3, 1:].tolist()


@given(ids=st.lists(st.integers(0, 2**31 - 1) | st.integers(0, 300), min_size=2, max_size=40))
def test_what_is_written_is_what_protocol_buffers_read(ids):
    payload = [b"".join(varint(number) for number in part) for part in (ids[:-1], ids[1:])]
    example = records.pair_example(*payload)
    read = example_pb2.Example.FromString(example).features.feature
    assert sorted(read) == ["inputs", "labels"]
    assert list(read["inputs"].int64_list.value) == ids[:-1] and list(read["labels"].int64_list.value) == ids[1:]
    assert records.int64_feature(example).tolist() == ids


def varint(number):
    out = b""
    while number > 0x7F:
        out, number = out + bytes([number & 0x7F | 0x80]), number >> 7
    return out + bytes([number])


@pytest.mark.parametrize(
    ("inputs", "labels", "told"),
    [
        ([1, 2, 3], [1, 2, 3], "its 'labels' are not its 'inputs' shifted by one: they differ at position 0"),
        ([1, 2, 3], [2, 3], "3 'inputs' and 2 'labels'"),
        ([1, 2, 3], [2, 3, 70000], "token id 70000"),
        ([1, 2, 3, 4], [2, 3, 4, 5], "--max-len 3 takes records of 4 or 3"),
    ],
)
def test_records_of_another_kind_are_refused_with_file_and_place(tmp_path, inputs, labels, told):
    writer = TFRecordWriter(str(tmp_path / "a.tfrecord"))
    writer.write({"inputs": (inputs, "int"), "labels": (labels, "int")})
    writer.close()
    with pytest.raises(BadData, match="a.tfrecord, record 0, byte 0: ") as error:
        open_dataset("tfrecord", tfrecord_path=[str(tmp_path)], **settings_of(max_len=3))
    assert told in str(error.value)


def test_one_of_the_two_is_not_enough(tmp_path):
    writer = TFRecordWriter(str(tmp_path / "a.tfrecord"))
    writer.write({"inputs": ([1, 2, 3], "int")})
    writer.close()
    with pytest.raises(BadData, match="or with 'inputs' and 'labels'; it has 'inputs'"):
        open_dataset("tfrecord", tfrecord_path=[str(tmp_path)], **settings_of(max_len=3))


def test_prepared_as_the_replication_has_them(small, tmp_path):
    """A control token and 8 ids a record; long documents without their rest, short ones joined."""
    flags = ("--format", "tfrecord", "--records", "first", "--features", "inputs-labels", "--num-output", 1)
    assert prepared(small, tmp_path, *flags, "--control-code", "<|endoftext|>", "--seq-length", 9) == 0
    train, _ = open_dataset(
        "tfrecord", tfrecord_path=[str(tmp_path / "out" / "corpus")], **settings_of(max_len=8, real_vocab_size=300)
    )
    end = Tokenizer.from_folder(small.parent).eot_id
    long = [ids[:8] for ids in documents(small) if len(ids) >= 8]
    short = cut(sum([ids for ids in documents(small) if len(ids) < 8], []), 8)
    assert sorted(samples_of(train)) == sorted([end, *row] for row in long + short) and short


# ---- Tar files -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", ["npy", "npy uint16", "pth", "pth of a row"])
def test_rows_of_1024_reshaped_to_two_of_512(tmp_path, form):
    rows = np.random.default_rng(0).integers(0, VOCAB, (7, 1024))
    content = {
        "npy": npy,
        "npy uint16": lambda row: npy(row, np.uint16),
        "pth": lambda row: pth(torch.from_numpy(row)),
        "pth of a row": lambda row: pth(torch.from_numpy(row)[None].int()),
    }[form]
    suffix = form.split()[0]
    members = [(f"{n:06d}.input_id.{suffix}", content(row)) for n, row in enumerate(rows)]
    tar(tmp_path / "b.tar", members[4:])
    tar(tmp_path / "a.tar", [("notes.json", b"{}"), *members[:4]])
    train, _ = open_dataset("webdataset", tar_paths=[str(tmp_path / "*.tar")], **settings_of(max_len=512))
    assert samples_of(train) == [[*half, -100] for half in rows.reshape(14, 512).tolist()]
    assert "14 samples of 512 ids from 7 rows of 1,024 ids in 2 tar files" in train.summary()
    inputs, labels = train.__getitems__([13, 0])
    assert inputs[0].tolist() == rows[6, 512:].tolist() and labels[0, -1] == -100
    for max_len, count in ((1023, 7), (1024, 7), (2, 3584)):
        found, _ = open_rows([str(tmp_path)], max_len=max_len, real_vocab_size=VOCAB, val_num=0, seed=1)
        assert len(found) == count
    assert (
        samples_of(open_rows([str(tmp_path)], max_len=1023, real_vocab_size=VOCAB, val_num=0, seed=1)[0])
        == rows.tolist()
    )


def test_whole_rows_are_held_out(tmp_path):
    rows = np.arange(40).reshape(10, 4)
    path = tar(tmp_path / "a.tar", [(f"{n}.npy", npy(row)) for n, row in enumerate(rows)])
    train, held_out = open_rows([path], max_len=2, real_vocab_size=VOCAB, val_num=3, seed=1)
    assert len(held_out) == 4 and len(train) == 16
    both = samples_of(train) + samples_of(held_out)
    assert sorted(both) == [[*pair, -100] for pair in rows.reshape(20, 2).tolist()]
    assert {row[0] // 4 for row in samples_of(held_out)}.isdisjoint({row[0] // 4 for row in samples_of(train)})
    with pytest.raises(ValueError, match="--val-num 19"):
        open_rows([path], max_len=2, real_vocab_size=VOCAB, val_num=19, seed=1)


class Harmless:
    """What a pickle may do when it is read: here it would make a list, and is not let."""

    def __reduce__(self):
        return (sorted, ([3, 1],))


GOOD = ("0.npy", npy([1, 2, 3, 4]))


@pytest.mark.parametrize(
    ("member", "told"),
    [
        (("1.npy", npy([1, 2, 3])), "3 ids, where 4 are expected"),
        (("1.npy", npy([1, 2, 3, 70_000])), "token id 70000 at position 3 is outside"),
        (("1.npy", npy([1, 2, 3, -1])), "token id -1 at position 3"),
        (("1.npy", npy([1.0] * 4, np.float32)), "an array of float32, where token ids are expected"),
        (("1.npy", npy([[1, 2], [3, 4]])), "of shape (2, 2), where one row"),
        (("1.npy", npy([1, 2, 3, 4])[:-1]), "31 bytes behind a header that promises 32"),
        (("1.npy", b"\x93NUMPY\x01\x00"), "not an .npy file"),
        (("1.npy", b"nothing"), "not an .npy file"),
        (("1.pth", pth(torch.ones(4))), "a tensor of torch.float32"),
        (("1.pth", pth([1, 2, 3, 4])), "a list, where a tensor of token ids is expected"),
        (("1.pth", pth(torch.arange(4))[:-40]), "not a tensor that torch.load reads"),
        (("1.pth", pickle.dumps(Harmless(), protocol=2)), "not a tensor that torch.load reads without running code"),
        (("1.pth", pth({"a": Harmless()})), "not a tensor that torch.load reads without running code"),
    ],
)
def test_a_bad_member_is_refused_with_file_and_member(tmp_path, member, told):
    path = tar(tmp_path / "a.tar", [GOOD, member])
    with pytest.raises(BadData) as error:
        open_rows([path], max_len=4, real_vocab_size=VOCAB, val_num=0, seed=1)
    assert f"{path}, member {member[0]}: " in str(error.value) and told in str(error.value)


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (
            lambda whole: whole[: len(whole) // 2],
            "behind member 11.npy: no mark of the end and no further member: cut off",
        ),
        (lambda whole: whole[:7680] + b"\xff" * 20 + whole[7700:], "behind member 2.npy: no mark of the end"),
        (lambda whole: whole[: len(whole) // 2 - 600], "member 11.npy: the file ends in it: cut off"),
        (lambda whole: whole[:700], "member "),
        (lambda whole: whole[:512] + b"\xff" * 200 + whole[712:], "member "),
        (lambda whole: b"no tar" * 200, "damaged, or no tar file"),
        (lambda whole: b"", "damaged, or no tar file"),
    ],
)
def test_a_damaged_tar_is_refused_by_name(tmp_path, content, told):
    path = tar(tmp_path / "a.tar", [(f"{n}.npy", npy(range(200))) for n in range(20)])
    whole = (tmp_path / "a.tar").read_bytes()
    (tmp_path / "a.tar").write_bytes(content(whole))
    with pytest.raises(ValueError, match="a.tar") as error:
        open_rows([path], max_len=200, real_vocab_size=VOCAB, val_num=0, seed=1)
    assert told in str(error.value)


def test_a_packed_tar_and_one_without_rows(tmp_path):
    with tarfile.open(str(tmp_path / "a.tar.gz"), "w:gz") as file:
        member = tarfile.TarInfo("0.npy")
        member.size = len(GOOD[1])
        file.addfile(member, io.BytesIO(GOOD[1]))
    with pytest.raises(ValueError, match="a.tar.gz.*unpack it first"):
        open_rows([str(tmp_path / "a.tar.gz")], max_len=4, real_vocab_size=VOCAB, val_num=0, seed=1)
    path = tar(tmp_path / "b.tar", [("0.json", b"{}")])
    with pytest.raises(ValueError, match="b.tar: no member NAME.npy or NAME.pth"):
        open_rows([path], max_len=4, real_vocab_size=VOCAB, val_num=0, seed=1)
    path = tar(tmp_path / "c.tar", [("0.a.npy", GOOD[1]), ("0.b.npy", GOOD[1])])
    with pytest.raises(ValueError, match="c.tar, member 0.b.npy: a second row under the key 0"):
        open_rows([path], max_len=4, real_vocab_size=VOCAB, val_num=0, seed=1)
    path = tar(tmp_path / "d.tar", [GOOD])
    with pytest.raises(ValueError, match="--max-len 3?.*rows of .*d.tar have 4 ids, which are samples of 2, 4 or 3"):
        open_rows([path], max_len=5, real_vocab_size=VOCAB, val_num=0, seed=1)


def test_long_names_and_folders_are_read_as_short_ones(tmp_path):
    """GNU's and pax's ways to write a long name, and members that are no files: by tarfile, with the same rows."""
    rows = [npy(range(n, n + 8)) for n in range(3)]
    names = ["a/" + "long" * 40 + f"/{n}.input_id.npy" for n in range(3)]
    for form in (tarfile.GNU_FORMAT, tarfile.PAX_FORMAT, tarfile.USTAR_FORMAT):
        with tarfile.open(str(tmp_path / "a.tar"), "w", format=form) as file:
            folder = tarfile.TarInfo("a")
            folder.type = tarfile.DIRTYPE
            file.addfile(folder)
            for name, content in zip(names if form != tarfile.USTAR_FORMAT else ["0.npy", "1.npy", "2.npy"], rows):
                member = tarfile.TarInfo(name)
                member.size = len(content)
                file.addfile(member, io.BytesIO(content))
        train, _ = open_rows([str(tmp_path / "a.tar")], max_len=7, real_vocab_size=VOCAB, val_num=0, seed=1)
        assert samples_of(train) == [list(range(n, n + 8)) for n in range(3)]


@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_any_change_of_a_tar_is_read_or_refused(tmp_path_factory, data):
    folder = tmp_path_factory.mktemp("tar")
    members = [
        (f"{n}.npy" if n % 2 else f"{n}.pth", npy(range(8)) if n % 2 else pth(torch.arange(8))) for n in range(4)
    ]
    path = tar(folder / "a.tar", members)
    content = bytearray((folder / "a.tar").read_bytes())
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    (folder / "a.tar").write_bytes(bytes(content[: data.draw(st.integers(0, len(content)))]))
    try:
        train, _ = open_rows([path], max_len=4, real_vocab_size=VOCAB, val_num=0, seed=1)
        samples_of(train)
    except ValueError as error:
        assert "a.tar" in str(error)


@pytest.mark.parametrize(("ends", "length"), [("end", 32), ("both", 16)])
def test_prepared_as_little_gpt_has_them(small, tmp_path, capsys, ends, length):
    """All documents in one stream, with the end at both sides of each, in rows that are reshaped for training."""
    flags = ("--format", "webdataset", "--seq-length", length, "--document-ends", ends)
    assert prepared(small, tmp_path, *flags) == 0
    end = Tokenizer.from_folder(small.parent).eot_id
    stream = sum([[end] * (ends == "both") + ids for ids in documents(small)], [])
    rows = cut(stream, length)
    pattern = str(tmp_path / "out" / "corpus" / "*.tar")
    train, _ = open_dataset("webdataset", tar_paths=[pattern], **settings_of(max_len=length // 2, real_vocab_size=300))
    assert samples_of(train) == [[*part, -100] for row in rows for part in (row[: length // 2], row[length // 2 :])]
    told = capsys.readouterr().err.splitlines()
    assert f"{len(rows)} rows of {length} ids; {len(stream) % length} ids dropped" in told
    assert told[-1].endswith(f"--dataset webdataset --input-files '{pattern}' --max-len {length}")


def test_many_rows_go_to_several_tars(tmp_path):
    from data.webdataset.writer import TarWriter

    writer = RowWriter(TarWriter(tmp_path, "c", rows_a_tar=3), 4, "stream", 9)
    paths = writer.write([np.arange(5, dtype=np.uint16)] * 7)
    assert [path.name for path in paths] == [f"c-{n:06d}.tar" for n in range(4)]
    train, _ = open_rows([str(tmp_path)], max_len=3, real_vocab_size=VOCAB, val_num=0, seed=1)
    assert samples_of(train) == [[9, *row] for row in cut([*range(5)] * 7, 3)]
    assert sorted(path.name for path in tmp_path.iterdir()) == [path.name for path in paths]
    fewer = RowWriter(TarWriter(tmp_path, "c"), 4, "stream")
    fewer.write([np.arange(8, dtype=np.int32)])
    assert [path.name for path in tmp_path.iterdir()] == ["c-000000.tar"]
    with pytest.raises(ValueError, match="fewer than a row of --seq-length 40"):
        RowWriter(TarWriter(tmp_path, "c"), 40, "stream").write([np.arange(8)])
    with pytest.raises(ValueError, match="has other tar files"):
        TarWriter(tmp_path, "d")


@pytest.mark.parametrize(
    ("flags", "told"),
    [
        (["--records", "stream"], "--records is for --format tfrecord or webdataset, not pkl"),
        (["--control-code", "a"], "--control-code is for --format tfrecord or webdataset, not pkl"),
        (["--format", "tfrecord", "--control-code", "a"], "--control-code needs --records stream or first"),
        (["--format", "tfrecord", "--features", "inputs-labels"], "has no padding: add --records stream or first"),
        (["--format", "webdataset", "--features", "inputs-labels"], "is for --format tfrecord, not webdataset"),
        (["--format", "webdataset", "--records", "windows"], "webdataset has stream or first"),
        (["--format", "webdataset", "--control-code", "river boat"], "--control-code river boat: no entry"),
        (["--format", "webdataset", "--seq-length", "5000"], "fewer than a row of --seq-length 5000"),
    ],
)
def test_flags_that_do_not_go_together(small, tmp_path, capsys, flags, told):
    assert prepared(small, tmp_path, *flags) == 2
    assert told in capsys.readouterr().err and not (tmp_path / "out").exists()
