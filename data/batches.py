"""What every data set is: samples of max-len + 1 ids by number, and how they become the combined batch of one call."""

from __future__ import annotations

from typing import Sequence, Tuple

import numpy as np
import torch

NOTHING = -100  # in a sample: no id here. As a label the loss ignores it.
Pair = Tuple[torch.Tensor, torch.Tensor]

_CHUNK = 256 * 1024  # ids read at once, so that the arrays between the steps stay in the cache


class SampleDataset(torch.utils.data.Dataset):
    """Samples by number. A sample is max_len + 1 token ids, int32, `NOTHING` from where there is no id on.

    A data set defines `__len__`, `read` and `summary`. T = max_len: the ids but the last are the inputs, the ids but
    the first their labels.
    """

    max_len: int
    uneven = False  # whether some samples have fewer labels than others
    approximate = ""  # why losses on these samples are not the text's; empty: they are

    def __len__(self) -> int:
        raise NotImplementedError

    def read(self, indices: np.ndarray, ids: np.ndarray) -> None:
        """Write the samples `indices` (int64 (n,), all in range) to `ids` (int32 (n, T + 1)).

        Raises BadData (data/bad_data.py) for what turns out now to be damaged, or outside the vocabulary.
        """
        raise NotImplementedError

    def summary(self) -> str:
        """One line for the start of a run: samples, and the tokens dropped and padded on the way."""
        raise NotImplementedError

    def largest_id(self) -> int:
        """The largest id, of up to 64 samples spread over the data if nothing else is known. Raises as `read` does."""
        count = min(64, len(self))
        ids = np.empty((count, self.max_len + 1), dtype=np.int32)
        self.read(len(self) * np.arange(count, dtype=np.int64) // count, ids)
        return int(ids.max())

    def identity(self) -> tuple[str, int]:
        """What must be the same for a resumed run: a line about the samples, and how many of the first it is about."""
        return self.summary(), len(self)

    def check_document_ends(self, end_id: int) -> None:
        """Raise ValueError if documents meet within samples and `end_id` does not stand between them.

        Here they do not meet: a data set that joins documents overrides this.
        """

    def __getitem__(self, index: int) -> torch.Tensor:
        """Sample `index`, int32 (T + 1,). Raises IndexError."""
        ids = np.empty((1, self.max_len + 1), dtype=np.int32)
        self.read(self._checked([index]), ids)
        return torch.from_numpy(ids[0])

    def __getitems__(self, indices: Sequence[int]) -> Pair:
        """The combined batch of these samples: input ids and labels, int32 (B, T) each. Raises IndexError.

        The DataLoader calls this in place of `__getitem__` for each. The samples are read in pieces, so that beside
        the batch nothing of its size exists.
        """
        wanted = self._checked(indices)
        batch = _empty_batch(len(wanted), self.max_len)
        inputs, labels = (tensor.numpy() for tensor in batch)
        step = max(1, _CHUNK // (self.max_len + 1))
        piece = np.empty((min(step, len(wanted)), self.max_len + 1), dtype=np.int32)
        for start in range(0, len(wanted), step):
            rows = slice(start, start + step)
            ids = piece[: len(wanted[rows])]
            self.read(wanted[rows], ids)
            np.maximum(ids[:, :-1], 0, out=inputs[rows])  # 0 stands in for NOTHING
            labels[rows] = ids[:, 1:]
        return batch

    def _checked(self, indices: Sequence[int]) -> np.ndarray:
        wanted = np.asarray(indices, dtype=np.int64)
        if len(wanted) and not (0 <= wanted.min() and wanted.max() < len(self)):
            raise IndexError(f"sample index outside 0..{len(self) - 1}")
        return wanted


def collate(batch: Pair | list[torch.Tensor]) -> Pair:
    """The `collate_fn` of the DataLoader: batches of `__getitems__` pass through, single samples become one.

    Inputs and labels are tensors of their own: PopTorch copies inputs that are not contiguous.
    """
    if isinstance(batch, tuple):
        return batch
    ids = torch.stack(batch)  # (B, T + 1)
    return ids[:, :-1].clamp(min=0), ids[:, 1:].contiguous()


def _empty_batch(rows: int, max_len: int) -> Pair:
    """Uninitialised input ids and labels, both int32 (B, T); in shared memory if a loader process asks.

    A combined batch can be 65,536 x 1,024 ids twice, 537 MB: a loader process that first fills private memory would
    hold it a second time while handing it over.
    """
    if torch.utils.data.get_worker_info() is None:
        # numpy's memory, not torch's: the C library finds the freed block of the batch before only for plain requests,
        # not for aligned ones.
        return tuple(torch.from_numpy(np.empty((rows, max_len), dtype=np.int32)) for _ in range(2))
    pair = (torch.empty((rows, max_len), dtype=torch.int32), torch.empty((rows, max_len), dtype=torch.int32))
    for tensor in pair:
        tensor.share_memory_()
    return pair
