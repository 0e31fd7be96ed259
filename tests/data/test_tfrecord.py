"""The TFRecord format against the tfrecord package and Google's protocol buffers, and wire variants by hand."""

from __future__ import annotations

import struct

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tfrecord import example_pb2
from tfrecord.writer import TFRecordWriter

from data.tfrecord import records as tfrecord
from data.tfrecord import varint

IDS = st.lists(st.integers(0, 2**31 - 1) | st.integers(0, 300), max_size=60)
ANY_INT64 = st.lists(st.integers(-(2**63), 2**63 - 1) | st.integers(-200, 20_000), max_size=40)


def varint_bytes(number: int) -> bytes:
    """One number, word for word from the encoding guide."""
    number &= 2**64 - 1
    out = b""
    while True:
        low, number = number & 0x7F, number >> 7
        if not number:
            return out + bytes([low])
        out += bytes([low | 0x80])


@given(ids=IDS)
def test_encode(ids):
    data, bounds = varint.encode(np.array(ids, np.int32))
    pieces = [varint_bytes(number) for number in ids]
    assert data.tobytes() == b"".join(pieces)
    assert [data[a:b].tobytes() for a, b in zip(bounds, bounds[1:])] == pieces


def test_encode_every_16_bit_number():
    numbers = np.arange(1 << 16, dtype=np.uint16)
    data, bounds = varint.encode(numbers)
    pieces = [varint_bytes(number) for number in range(1 << 16)]
    assert data.tobytes() == b"".join(pieces)
    assert bounds.tolist() == [0, *np.cumsum([len(piece) for piece in pieces]).tolist()]


@given(numbers=ANY_INT64 | IDS, rest=st.sampled_from([b"", b"\x80", b"\xff\xff"]))
def test_decode(numbers, rest):
    pieces = [varint_bytes(number) for number in numbers]
    decoded, ends = varint.decode(np.frombuffer(b"".join(pieces) + rest, np.uint8))
    assert decoded.tolist() == numbers
    assert ends.tolist() == (np.cumsum([len(piece) for piece in pieces], dtype=int) - 1).tolist()


def test_decode_takes_zeros_in_front_and_refuses_too_many_bytes():
    assert varint.decode(np.frombuffer(b"\x85\x80\x80\x00\x07", np.uint8))[0].tolist() == [5, 7]
    with pytest.raises(ValueError, match="more than 10 bytes"):
        varint.decode(np.frombuffer(b"\x80" * 10 + b"\x01", np.uint8))


def test_crc_of_the_published_vectors():
    """RFC 3720, B.4: the CRC-32C of 32 zeros and of 32 ones; the mask is taken off again here."""
    for data, crc in ((b"\x00" * 32, 0x8A9136AA), (b"\xff" * 32, 0x62A8AB43), (bytes(range(32)), 0x46DD794E)):
        rotated = (tfrecord.masked_crc(data) - 0xA282EAD8) & 0xFFFFFFFF
        assert (rotated << 15 | rotated >> 17) & 0xFFFFFFFF == crc


@pytest.mark.parametrize("length", [0, 1, 127, 128, 4000])
def test_a_record_is_that_of_the_tfrecord_package(length, tmp_path):
    ids = np.arange(length) * 7
    writer = TFRecordWriter(str(tmp_path / "a"))
    writer.write({"input_ids": (ids, "int")})
    writer.close()
    payload = varint.encode(ids)[0].tobytes()
    example = tfrecord.example_head(len(payload)) + payload
    if length:  # of an empty list the other writer leaves the field out
        assert tfrecord.record(example) == (tmp_path / "a").read_bytes()
    assert tfrecord.usual_head(len(example)) == tfrecord.example_head(len(payload))


def test_usual_head_of_every_length():
    lengths = {len(tfrecord.example_head(n)) + n: n for n in range(40_000)}
    for length in range(max(lengths)):
        head = tfrecord.example_head(lengths[length]) if length in lengths else None
        assert tfrecord.usual_head(length) == head


# ---- Examples that others write ----------------------------------------------------------------------------------


def field(number: int, value: bytes) -> bytes:
    return varint_bytes(number << 3 | 2) + varint_bytes(len(value)) + value


def packed(ids) -> bytes:
    return field(1, b"".join(map(varint_bytes, ids)))


def one_by_one(ids) -> bytes:
    return b"".join(b"\x08" + varint_bytes(number) for number in ids)


def entry(key: bytes, feature: bytes, swapped: bool = False) -> bytes:
    parts = [field(1, key), field(2, feature)]
    return field(1, b"".join(parts[::-1] if swapped else parts))


OTHERS = entry(b"name", field(1, field(1, b"text"))) + entry(b"score", field(2, field(1, struct.pack("<2f", 1, 2))))
MASK = entry(b"input_mask", field(3, packed([1, 1, 0])))


@settings(max_examples=60)
@given(ids=ANY_INT64)
def test_int64_feature_in_every_wire_variant(ids):
    half = len(ids) // 2
    for example in (
        field(1, entry(b"input_ids", field(3, packed(ids)))),
        field(1, entry(b"input_ids", field(3, one_by_one(ids)))),  # as TensorFlow 1 wrote with proto2
        field(1, entry(b"input_ids", field(3, packed(ids[:half]) + one_by_one(ids[half:])))),
        field(1, entry(b"input_ids", field(3, packed(ids[:half]) + packed(ids[half:])))),
        field(1, entry(b"input_ids", field(3, packed(ids)), swapped=True)),
        field(1, OTHERS + entry(b"input_ids", field(3, packed(ids))) + MASK),
        field(1, MASK) + field(1, OTHERS + entry(b"input_ids", field(3, packed(ids)))),  # in pieces
        field(1, entry(b"input_ids", field(3, packed([9])))) + field(1, entry(b"input_ids", field(3, packed(ids)))),
        field(1, entry(b"input_ids", field(2, field(1, b"\0" * 4)) + field(3, packed(ids)))),
        b"\x78\x05" + field(1, entry(b"input_ids", field(3, packed(ids)) + b"\x4d\0\0\0\0\x59" + b"\0" * 8)),  # unknown
    ):
        proto = example_pb2.Example.FromString(example)
        assert list(proto.features.feature["input_ids"].int64_list.value) == ids
        assert tfrecord.int64_feature(example).tolist() == ids


@pytest.mark.parametrize(
    ("example", "message"),
    [
        (b"", "not an Example with a feature 'input_ids'"),
        (field(1, OTHERS), "it has 'name', 'score'"),
        (field(1, entry(b"input_ids", field(2, field(1, b"\0" * 4)))), "not a list of int64"),
        (field(1, entry(b"input_ids", field(3, packed([1])) + field(1, b""))), "not a list of int64"),
        (field(1, entry(b"input_ids", field(3, field(1, b"\x81")))), "ends in the middle"),
        (field(1, entry(b"input_ids", field(3, packed([1]))))[:-1], "longer than what is left"),
        (b"\x0a", "ends in the middle"),
        (b"\x0b\x0c", "groups"),
        (b"\x00\x00", "not a protocol buffer"),
        (b"\xff" * 11, "more than 10 bytes"),
        (b"plain text", "protocol buffer|longer|middle"),
    ],
)
def test_int64_feature_refuses(example, message):
    with pytest.raises(ValueError, match=message):
        tfrecord.int64_feature(example)
