"""Mutated corpora `.pkl` and caches: a returned sample is one of the articles that are there, or there is an error."""

from __future__ import annotations

import io
import pickle
import random
import shutil

import pytest
from fuzzing import mutated, run_cases
from test_datasets import slow_windows

from data.articles.pickle_file import write_articles
from data.loading.datasets import open_dataset

T = 6
STRIDE = 4
VOCAB = 50257


class Plain(pickle.Unpickler):
    """Python's own machine, which may load nothing."""

    def find_class(self, module: str, name: str) -> type:
        raise pickle.UnpicklingError(f"{module}.{name}")


def by_python(content: bytes) -> list[list[int]] | None:
    """The articles of a pickle, None if Python does not read any."""
    if any(code in content for code in b"rjpgh"):  # memo entries: a large number alone fills Python's memory
        content = b""
    try:
        articles = Plain(io.BytesIO(content)).load()
    except Exception:
        return None
    right = isinstance(articles, list) and all(isinstance(ids, list) for ids in articles)
    return articles if right and all(type(i) is int for ids in articles for i in ids) else None


def corpora() -> list[bytes]:
    rng = random.Random(0)
    articles = [[rng.randrange(VOCAB) for _ in range(size)] for size in (12, 3, 0, 7, 20, 6)]
    small = [[rng.randrange(256) for _ in range(size)] for size in (9, 8, 30)]
    streamed = io.BytesIO()
    write_articles(streamed, articles, VOCAB - 1)
    return [
        streamed.getvalue(),
        pickle.dumps(small, 2),
        *(pickle.dumps(articles, protocol) for protocol in range(1, 6)),
    ]


def run(count: int, folder) -> None:
    valid = corpora()
    path = folder / "c.pkl"
    originals = [samples for content in valid for samples in slow_windows(pickle.loads(content), T, STRIDE)[0]]

    def read(right: list[list[int]] | None, allowed: list) -> tuple[bool, int]:
        try:
            dataset, _ = open_dataset(
                str(path), max_len=T, stride=STRIDE, seed=1, val_num=0, real_vocab_size=VOCAB, num_samples=1
            )
            inputs, labels = dataset.__getitems__(range(len(dataset)))
        except ValueError as error:
            assert "c.pkl" in str(error)
            return False, 0
        rows = list(zip(inputs.tolist(), labels.tolist()))
        if right is not None:
            assert rows == slow_windows(right, T, STRIDE)[0]
        return True, len(rows)

    def case(rng: random.Random) -> tuple[bool, int]:
        for left in folder.iterdir():
            shutil.rmtree(left) if left.is_dir() else left.unlink()
        content = rng.choice(valid)
        kind = rng.randrange(4)
        if kind < 2:  # ids alone: the instructions around them stay
            place = rng.randrange(10, len(content) - 10)
            content = content[:place] + bytes([content[place] ^ 1 << rng.randrange(8)]) + content[place + 1 :]
        elif kind < 3:
            content = mutated(rng, content)
        path.write_bytes(content)
        right = by_python(content)
        opened, samples = read(right, originals)
        caches = [file for cache in folder.glob("c.pkl.*") if cache.is_dir() for file in cache.iterdir()]
        if caches and kind == 3:
            file = rng.choice(caches)
            data = file.read_bytes()
            head = 128 if file.name == "tokens.npy" else len(data)  # a changed id in the cache is not noticed
            file.write_bytes(mutated(rng, data[:head]) + data[head:])
            read(right, originals)
        return opened, samples

    opened, samples = run_cases(count, case)
    assert opened >= count / 2 and samples >= count


def test_mutated_files(tmp_path):
    run(300, tmp_path)


@pytest.mark.long
def test_many_mutated_files(tmp_path):
    run(10_000, tmp_path)
