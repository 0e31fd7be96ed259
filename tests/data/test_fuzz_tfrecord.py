"""Mutated TFRecord files and indexes: a sample that is returned is right, or there is an error."""

from __future__ import annotations

import random

import numpy as np
import pytest
from fuzzing import mutated, run_cases
from google.protobuf.message import DecodeError
from test_tfrecord import entry, field, one_by_one, packed
from tfrecord import example_pb2

from data.tfrecord import records as tfrecord
from data.tfrecord import varint
from data.tfrecord.dataset import open_tfrecords

T = 6
VOCAB = 50257


def examples() -> list[bytes]:
    """Serialized Examples of every kind that is read."""
    rows = np.random.default_rng(0).integers(0, VOCAB, (9, T + 1)).tolist()
    small = [[1, 2, 3, 4, 5, 6, 7], [9, 8, 7, 6, 5, 4, 3]]
    usual = [packed(row) for row in rows[:3] + small] + [packed(rows[3][:T]), packed(rows[4][:4] + [-100] * 3)]
    other = entry(b"input_mask", field(3, packed([1] * 7))) + entry(b"name", field(1, field(1, b"x")))
    return [field(1, entry(b"input_ids", field(3, ids))) for ids in usual] + [
        field(1, entry(b"input_ids", field(3, one_by_one(rows[5])))),
        field(1, other + entry(b"input_ids", field(3, packed(rows[6])))),
        field(1, entry(b"input_ids", field(3, packed(rows[7])), swapped=True) + other),
        field(1, other) + field(1, entry(b"input_ids", field(3, packed(rows[8][:3]) + one_by_one(rows[8][3:])))),
    ]


def by_protobuf(example: bytes) -> list[int] | None:
    """The sample of an Example as Google's parser reads it, None if it has none."""
    try:
        ids = list(example_pb2.Example.FromString(example).features.feature["input_ids"].int64_list.value)
    except DecodeError:
        return None
    real = [i for i in ids if i != -100]
    if len(ids) not in (T, T + 1) or len(real) < 2 or real != ids[: len(real)]:
        return None
    return real + [-100] * (T + 1 - len(real)) if 0 <= min(real) and max(real) < VOCAB else None


def by_protobuf_alone(example: bytes) -> list[list[int] | None]:
    """Samples of the map entries `input_ids` by themselves: what is wrong with others is not the reader's concern."""
    key = field(1, b"input_ids")
    entries = (example[at : at + 2 + example[at + 1]] for at in range(len(example) - 1) if example[at] == 10)
    return [by_protobuf(field(1, entry)) for entry in entries if key in entry]


EXAMPLES = examples()
RECORDS = [tfrecord.record(example) for example in EXAMPLES]
SAMPLES = [by_protobuf(example) for example in EXAMPLES]


def index_of(records: list[bytes]) -> bytes:
    ends = np.cumsum([len(record) for record in records])
    return b"".join(b"%d %d\n" % (end - len(record), len(record)) for end, record in zip(ends, records))


def changed(rng: random.Random) -> tuple[bytes, bytes | None, list[list[int]]]:
    """A mutated file, an index or none, and the samples that it may give."""
    records, samples = list(RECORDS), list(SAMPLES)
    kind = rng.randrange(9)
    if kind < 5:  # damaged content under CRCs that are right, which only the parser can tell
        for _ in range(rng.randint(1, 3)):
            row = rng.randrange(1, len(records) - 1)  # the first and the last are read when a file is opened
            content = mutated(rng, EXAMPLES[row])
            records[row] = tfrecord.record(content)
            samples += [by_protobuf(content), *by_protobuf_alone(content)]
        return b"".join(records), index_of(records) if rng.random() < 0.5 else None, samples
    if kind == 5:  # damaged numbers in the usual frame
        row = rng.randrange(5)
        payload = mutated(rng, varint.encode(np.array(SAMPLES[row]))[0].tobytes())
        content = tfrecord.example_head(len(payload)) + payload
        records[row] = tfrecord.record(content)
        return b"".join(records), index_of(records), [*samples, by_protobuf(content)]
    if kind == 6:  # whole records swapped, repeated or left out, under an index that may be the old one
        records = rng.choices(records, k=rng.randint(1, len(records)))
        return b"".join(records), rng.choice([None, index_of(records), index_of(RECORDS)]), samples
    if kind == 7:
        return b"".join(records), mutated(rng, index_of(records)), samples
    return mutated(rng, b"".join(records)), rng.choice([None, index_of(records)]), samples


def run(count: int, folder) -> None:
    assert None not in SAMPLES
    path = folder / "a.tfrecord"

    def case(rng: random.Random) -> tuple[bool, int]:
        data, index, allowed = changed(rng)
        path.write_bytes(data)
        path.with_suffix(".index").unlink(missing_ok=True)
        if index is not None:
            path.with_suffix(".index").write_bytes(index)
        wanted = {"max_len": T, "real_vocab_size": VOCAB, "val_num": rng.choice([0, 0, 2]), "seed": 1}
        try:
            dataset, held_out = open_tfrecords([str(path)], **wanted)
        except ValueError as error:
            assert "a.tfrecord" in str(error) or "a.index" in str(error) or "--val-num" in str(error)
            return False, 0
        read = 0
        for samples in (dataset, held_out or ()):
            try:
                inputs, labels = samples.__getitems__(range(len(samples))) if len(samples) else ((), ())
                rows = [[int(x[0]), *y.tolist()] for x, y in zip(inputs, labels)]
            except ValueError as error:
                assert "a.tfrecord, record" in str(error)
                rows = []
            for number in range(len(samples)):
                try:
                    one = samples[number].tolist()
                except ValueError:
                    assert not rows
                    continue
                assert one in allowed and (not rows or rows[number] == one)
                read += 1
        return True, read

    opened, samples = run_cases(count, case)
    assert opened >= count / 2 and samples >= count


def test_mutated_files(tmp_path):
    run(400, tmp_path)


@pytest.mark.long
def test_many_mutated_files(tmp_path):
    run(20_000, tmp_path)
