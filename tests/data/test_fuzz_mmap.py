"""Mutated Megatron mmap files and order caches: a returned sample is the one that is there, or there is an error.

The format has no checksums. A changed id in the .bin is therefore a different corpus and not a damaged one; that the
samples are those of the files as they are is held against a reader of two dozen lines that follows the format's text.
"""

from __future__ import annotations

import random
import shutil
import struct

import numpy as np
import pytest
from fuzzing import mutated, run_cases

from data.megatron.dataset import open_mmap
from data.megatron.files import mmap_writer

T = 5
VOCAB = 300
SEED = 3
CODES = {1: "B", 2: "b", 3: "h", 4: "i", 5: "q", 8: "H"}


def header_is_right(idx: bytes) -> bool:
    """Magic, version, type, and as many bytes as the counts ask for."""
    if len(idx) < 34 or idx[:9] != b"MMIDIDX\0\0":
        return False
    version, code, sequences, documents = struct.unpack_from("<QBQQ", idx, 9)
    return version == 1 and code in CODES and len(idx) == 34 + 12 * sequences + 8 * documents


def documents_of(idx: bytes, tokens: bytes) -> list[list[int]] | None:
    """The documents; None for files that contradict each other."""
    if not header_is_right(idx):
        return None
    _, code, count, _ = struct.unpack_from("<QBQQ", idx, 9)
    width = struct.calcsize(CODES[code])
    sizes = struct.unpack_from(f"<{count}i", idx, 34)
    pointers = struct.unpack_from(f"<{count}q", idx, 34 + 4 * count)
    place, documents = 0, []
    for size, pointer in zip(sizes, pointers):
        if size < 0 or pointer != place or place + size * width > len(tokens):
            return None
        documents.append(list(struct.unpack_from(f"<{size}{CODES[code]}", tokens, place)))
        place += size * width
    return documents if place == len(tokens) else None


def samples_of(documents: list[list[int]], wanted: int) -> list[list[int]]:
    """The order of the reference application over the training documents, by the rule's text."""
    documents = documents[: int(0.997 * len(documents))]
    total = sum(map(len, documents))
    epochs = 1
    while (epochs * total - 1) // T < wanted:
        epochs += 1
    rng = np.random.RandomState(SEED)
    order = np.tile(np.arange(len(documents), dtype=np.int32), epochs)
    rng.shuffle(order)
    stream = [token for document in order for token in documents[document]]
    count = (epochs * total - 1) // T
    shuffle = np.arange(count, dtype=np.uint32)
    rng.shuffle(shuffle)
    return [stream[i * T : i * T + T + 1] for i in shuffle[:wanted]]


def corpora(folder) -> list[tuple[bytes, bytes]]:
    """Valid pairs of files, of several types and with empty documents."""
    rng = np.random.default_rng(0)
    pairs = []
    for number, (dtype, largest) in enumerate((("uint16", VOCAB), ("int32", VOCAB), ("uint8", 256), ("int64", VOCAB))):
        prefix = folder / f"valid-{number}"
        with mmap_writer(prefix, VOCAB, np.dtype(dtype)) as writer:
            for size in (7, 0, 12, 1, 30, 5, 0):
                writer.write(rng.integers(0, largest, size))
        pairs.append(((folder / f"valid-{number}.idx").read_bytes(), (folder / f"valid-{number}.bin").read_bytes()))
    return pairs


def consistent(rng: random.Random, idx: bytes) -> bytes:
    """Two sizes changed, and the pointers to fit: another cut of the same tokens, which nothing contradicts."""
    _, code, count, _ = struct.unpack_from("<QBQQ", idx, 9)
    width = struct.calcsize(CODES[code])
    sizes = list(struct.unpack_from(f"<{count}i", idx, 34))
    give, take = rng.sample(range(count), 2)
    moved = rng.randint(0, sizes[give])
    sizes[give] -= moved
    sizes[take] += moved
    pointers = [width * sum(sizes[:i]) for i in range(count)]
    return idx[:34] + struct.pack(f"<{count}i{count}q", *sizes, *pointers)[: 12 * count] + idx[34 + 12 * count :]


def run(count: int, folder) -> None:
    pairs = corpora(folder)
    prefix = folder / "c"
    passed_header = 0

    def read(files: tuple[bytes, bytes], wanted: int) -> tuple[bool, int]:
        documents = documents_of(*files)
        try:
            dataset, _ = open_mmap(
                str(prefix), max_len=T, seed=SEED, val_num=0, real_vocab_size=VOCAB, epochs=1, samples=wanted,
                separate_last_epoch=False,
            )  # fmt: skip
        except ValueError as error:
            assert str(prefix) in str(error)
            return False, 0
        assert documents is not None, "opened files that contradict each other"
        right = samples_of(documents, wanted)
        assert len(dataset) == wanted
        good = 0
        for number in range(wanted):
            in_vocabulary = all(0 <= token < VOCAB for token in right[number])
            try:
                sample = dataset[number].tolist()
            except ValueError as error:
                assert "outside" in str(error) and not in_vocabulary
                continue
            assert sample == right[number]
            good += 1
        return True, good

    def case(rng: random.Random) -> tuple[bool, int]:
        nonlocal passed_header
        for path in folder.glob("c.*"):
            shutil.rmtree(path) if path.is_dir() else path.unlink()
        idx, tokens = rng.choice(pairs)
        wanted = rng.choice([3, 9, 40])
        kind = rng.randrange(10)
        if kind < 3:
            tokens = mutated(rng, tokens)
        elif kind < 5:  # of the same size
            changed = mutated(rng, tokens)
            tokens = (changed + tokens[len(changed) :])[: len(tokens)]
        elif kind < 6:
            idx = idx[:34] + (mutated(rng, idx[34:]) + idx[34:])[: len(idx) - 34]
        elif kind < 7:
            idx = mutated(rng, idx)
        elif kind < 8:
            idx, tokens = idx, rng.choice(pairs)[1]
        else:
            idx = consistent(rng, idx)
        passed_header += header_is_right(idx)
        prefix.with_suffix(".idx").write_bytes(idx)
        prefix.with_suffix(".bin").write_bytes(tokens)
        opened, good = read((idx, tokens), wanted)
        caches = [path for folder_ in folder.glob("c.idx.*") for path in folder_.iterdir()]
        if caches and rng.random() < 0.5:  # the order that is kept is damaged between two runs
            path = rng.choice(caches)
            path.write_bytes(mutated(rng, path.read_bytes()))
            good += read((idx, tokens), wanted)[1]
        return opened, good

    opened, samples = run_cases(count, case)
    assert passed_header >= count / 2 and opened >= count / 3 and samples >= count


def test_mutated_files(tmp_path):
    run(150, tmp_path)


@pytest.mark.long
def test_many_mutated_files(tmp_path):
    run(10_000, tmp_path)
