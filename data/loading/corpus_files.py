"""Training and held-out samples of corpora in `.pkl` files: how they are cut, coded and put together."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple, Sequence

import numpy as np

from data.articles.corpus import PickleCorpus, open_corpus
from data.batches import SampleDataset
from data.loading.first_windows import FirstWindowDataset
from data.loading.several import CodedDataset, SeveralDatasets
from data.loading.stream import StreamDataset
from data.loading.windows import WindowDataset, seeded_order, split_by_article

WINDOWS = ("article", "stream", "first")
SHORT = ("half", "pad", "skip")
LAST = ("drop", "pad")
_STRIDE = 128  # of windows over an article, as in the reference


class Cut(NamedTuple):
    """How samples are cut from a corpus.

    Attributes:
        windows: over each article, over all of them as one text, or the first of each article only.
        stride: ids from one window to the next; None: 128 over an article, and over a stream such that each id is
            predicted once.
        short: articles shorter than a window, with --windows article: padded from half a window on, padded whatever
            their length, or left out.
        last: what is left at the end of a stream, dropped or padded.
    """

    windows: str = "article"
    stride: int | None = None
    short: str = "half"
    last: str = "drop"


def open_corpora(
    paths: Sequence[str],
    cut: Cut,
    *,
    max_len: int,
    val_num: int,
    seed: int,
    real_vocab_size: int,
    codes: Sequence[int] = (),
    validation_paths: Sequence[str] = (),
) -> tuple[SampleDataset, SampleDataset | None]:
    """Training and validation samples, the latter of `validation_paths`, or `val_num` held out of each corpus, or None.

    `codes` has a control code for each corpus and its validation file, or is empty. Of several corpora, or validation
    files, the result is a `SeveralDatasets`. Raises ValueError naming flag and file as `open_corpus` does, and for a
    corpus that is too short.
    """
    train: list[SampleDataset] = []
    held_out: list[SampleDataset] = []
    own = max_len - bool(codes)  # ids of a sample that are the corpus's, less one
    for number, path in enumerate(paths):
        corpus = open_corpus(path, real_vocab_size)
        some, others = _split(corpus, own, cut, val_num, seed, _once(own, codes))
        train.append(CodedDataset(some, codes[number]) if codes else some)
        if others is not None:
            held_out.append(CodedDataset(others, codes[number]) if codes else others)
    for number, path in enumerate(validation_paths):
        try:
            corpus = open_corpus(path, real_vocab_size)
            some = _whole(corpus, own, cut._replace(stride=_once(own, codes)), _once(own, codes))
        except ValueError as error:
            raise ValueError(str(error).replace("--train-path", "--validation-files")) from error
        held_out.append(CodedDataset(some, codes[number]) if codes else some)
    return _together(train, paths), _together(held_out, validation_paths or paths) if held_out else None


def _once(own: int, codes: Sequence[int]) -> int:
    """The stride with which each id of a text is predicted once: a control code predicts the first id of a window."""
    return own + bool(codes)


def _together(parts: Sequence[SampleDataset], paths: Sequence[str]) -> SampleDataset:
    return parts[0] if len(parts) == 1 else SeveralDatasets(parts, names_of(paths))


def names_of(paths: Sequence[str]) -> list[str]:
    """What corpora are called in messages: the ends of their paths, as long as they must be to differ.

    The .pkl of a text file has the text's name (data/loading/text_file.py).
    """
    parts = []
    for path in map(Path, paths):
        text = path.parent.name.split(".prepared-")[0].lstrip(".")
        of_text = ".prepared-" in path.parent.name
        parts.append((*path.parent.parent.parts, Path(text).stem) if of_text else (*path.parent.parts, path.stem))
    depth = next((n for n in range(1, 100) if len({part[-n:] for part in parts}) == len(parts)), 100)
    return ["/".join(part[-depth:]) for part in parts]


def _whole(corpus: PickleCorpus, max_len: int, cut: Cut, once: int) -> SampleDataset:
    if cut.windows == "stream":
        least = 2 if once == max_len else 1  # behind a control code a single id is something to predict
        return StreamDataset(corpus, max_len, once if cut.stride is None else cut.stride, cut.last, least=least)
    if cut.windows == "first":
        return FirstWindowDataset(corpus, max_len)
    return WindowDataset(corpus, max_len, _STRIDE if cut.stride is None else cut.stride, short=cut.short)


def _split(
    corpus: PickleCorpus, max_len: int, cut: Cut, val_num: int, seed: int, once: int
) -> tuple[SampleDataset, SampleDataset | None]:
    """Samples to train on, and `val_num` or a few more that share no text with them. Raises ValueError for too few."""
    if val_num == 0:
        return _whole(corpus, max_len, cut, once), None
    if cut.windows == "article":
        stride = _STRIDE if cut.stride is None else cut.stride
        return split_by_article(corpus, max_len, stride, val_num, seed, cut.short, once)
    if cut.windows == "first":
        order = seeded_order(len(corpus), seed, 0)
        if val_num >= len(order):
            raise ValueError(f"--val-num {val_num}: {corpus.path} has {len(order):,} articles, a sample each; lower it")
        held_out = np.sort(order[:val_num])
        return (
            FirstWindowDataset(corpus, max_len, np.sort(order[val_num:])),
            FirstWindowDataset(corpus, max_len, held_out),
        )
    at = len(corpus.tokens) - ((val_num - 1) * once + max_len + 1)  # the last ids are held out
    if at <= max_len:
        raise ValueError(
            f"--val-num {val_num}: a stream of {len(corpus.tokens):,} ids has no more samples of --max-len {max_len}; "
            "lower one of the two, or name --validation-files"
        )
    stride = once if cut.stride is None else cut.stride
    return StreamDataset(corpus, max_len, stride, cut.last, end=at), StreamDataset(corpus, max_len, once, begin=at)
