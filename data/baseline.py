"""What a model that knows only how often each token occurs would reach: the loss to beat."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Iterable, Sequence

if __package__ in (None, ""):
    # Started as a script: the repository and not data/ is where modules are found.
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from corpora.program import ProgramParser, reported  # noqa: E402

if TYPE_CHECKING:
    import numpy as np

_CHUNK = 1 << 24  # np.bincount works on int64: a copy of the ids, bounded


def unigram_cross_entropy(
    train_tokens: np.ndarray | Iterable[np.ndarray], held_out_tokens: np.ndarray | Iterable[np.ndarray], vocab: int
) -> float:
    """Cross-entropy in nats a token of held-out ids under the add-one smoothed frequencies of the training ids.

    Both are one array of ids or several, of any shape; ids below 0 (labels that are padding) do not count.
    p(t) = (count(t) + 1) / (N + vocab). Raises ValueError for ids of `vocab` or more, or if nothing is held out.
    """
    import numpy as np

    train, held_out = _counts(train_tokens, vocab), _counts(held_out_tokens, vocab)
    if held_out.sum() == 0:
        raise ValueError("no held-out token to compute a cross-entropy of; hold out more with --val-num")
    log_p = np.log(train + 1.0) - np.log(float(train.sum() + vocab))
    return float(-(held_out * log_p).sum() / held_out.sum())


def _counts(ids: np.ndarray | Iterable[np.ndarray], vocab: int) -> np.ndarray:
    import numpy as np

    counts = np.zeros(vocab, dtype=np.int64)
    for array in [ids] if hasattr(ids, "reshape") else ids:
        flat = np.asarray(array).reshape(-1)
        for start in range(0, len(flat), _CHUNK):
            part = flat[start : start + _CHUNK]
            part = part[part >= 0]
            if len(part) and int(part.max()) >= vocab:
                raise ValueError(f"token id {int(part.max())} is outside the vocabulary 0..{vocab - 1}")
            counts += np.bincount(part, minlength=vocab)
    return counts


def main(argv: Sequence[str] | None = None) -> int:
    """Print the baseline for the split that train_gpt2.py makes with the same flags."""
    parser = ProgramParser("data.baseline", main.__doc__)
    parser.add_argument("--train-path", required=True)
    parser.add_argument("--max-len", type=int, required=True)
    parser.add_argument("--stride", type=int, required=True)
    parser.add_argument("--val-num", type=int, required=True)
    parser.add_argument("--seed", type=int, default=1234)
    parser.add_argument("--real-vocab-size", type=int, default=50257)
    args = parser.parse_args(argv)

    def show() -> None:
        # They bring torch, which --help need not wait for.
        from data.loading.datasets import open_dataset
        from data.loading.text_file import prepared

        train, held_out = open_dataset(
            prepared(args.train_path, max_len=args.max_len),
            max_len=args.max_len,
            stride=args.stride,
            seed=args.seed,
            val_num=args.val_num,
            real_vocab_size=args.real_vocab_size,
            num_samples=1,
        )
        if held_out is None:
            raise ValueError("--val-num 0 holds nothing out; give 1 or more")
        labels = held_out.__getitems__(range(len(held_out)))[1].numpy()
        loss = unigram_cross_entropy(train.article_ids(), labels, args.real_vocab_size)
        print(f"held-out cross-entropy of a unigram model of the training text: {loss:.4f}")

    return reported("data.baseline", show, goes_on=False)


if __name__ == "__main__":
    sys.exit(main())
