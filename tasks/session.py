"""A checkpoint ready to be evaluated: the placed model, its tokenizer, and the tasks run on them."""

from __future__ import annotations

import argparse
import math
from pathlib import Path
from typing import Callable, Sequence

import numpy as np

from model import ranks
from model.checkpoint import load_pretrained
from model.config import GPT2Config
from model.gpt2 import GPT2LMHeadModel
from model.ipu_options import forward_options, instance, join_instances, reads_samples
from model.non_finite import NonFiniteError
from model.placement import outline, place, serialize_head
from model.scoring import Item, Scorer, Scores, perplexity
from tasks import texts
from tasks.lambada import encode_rows, item_of, score_bucketed
from tasks.names import FILES, PROTOCOLS
from tasks.progress import Progress
from tasks.protocols import Job, Planner, Result
from tokenizer import Tokenizer, open_tokenizer

Asked = Callable[[], bool]  # whether the run shall end


def fitting_tokenizer(args: argparse.Namespace, config: GPT2Config) -> Tokenizer:
    """The tokenizer of --tokenizer-type. Raises ValueError if the checkpoint's vocabulary is not its."""
    tokenizer = open_tokenizer(args.tokenizer_type, args.pretrained_checkpoint)
    if tokenizer.vocab_size > config.real_vocab_size:
        raise ValueError(
            f"--pretrained-checkpoint {args.pretrained_checkpoint}: its vocabulary has {config.real_vocab_size:,} "
            f"entries, the tokenizer {tokenizer.vocab_size:,}. Put the tokenizer.json it was trained with into that "
            "folder"
        )
    if tokenizer.vocab_size < config.real_vocab_size and ranks.is_first():
        print(f"the tokenizer has {tokenizer.vocab_size:,} entries, the vocabulary {config.real_vocab_size:,}")
    return tokenizer


def load_model(args: argparse.Namespace) -> GPT2LMHeadModel:
    """The checkpoint of the flags, in the precision to compute in. Raises ValueError naming file or flag."""
    gpt2 = load_pretrained(args.pretrained_checkpoint, at_least=args.seq_length)
    config = gpt2.config
    args.layers_per_ipu = layers = args.layers_per_ipu or [config.n_layer]
    args.seq_length = args.seq_length or config.n_positions  # still 0 for a name on the hub
    if sum(layers) != config.n_layer:
        raise ValueError(f"--layers-per-ipu: {sum(layers)} blocks, but the checkpoint has {config.n_layer}")
    if config.vocab_size % args.embedding_serialization_factor:
        raise ValueError(
            f"--embedding-serialization-factor {args.embedding_serialization_factor}: does not divide the vocabulary, "
            f"padded to {config.vocab_size:,} rows; choose a power of 2 up to 16"
        )
    return gpt2.half() if args.fp16 else gpt2.float()


class Session:
    """A checkpoint and what it takes to evaluate it.

    Raises ValueError for flags and files that cannot be used, RuntimeError with a HINT for processes that do not meet.
    """

    def __init__(self, args: argparse.Namespace) -> None:
        self.args = args
        join_instances(args)
        gpt2 = load_model(args)
        self.config = gpt2.config
        self.tokenizer = fitting_tokenizer(args, self.config)
        placement = place(gpt2, args.layers_per_ipu, training=False) if len(args.layers_per_ipu) > 1 else []
        if placement and ranks.is_first():
            print("\n".join(placement))
        serialize_head(gpt2, args.embedding_serialization_factor)
        outline(gpt2)
        self.scorer = Scorer(gpt2, lambda: forward_options(args), args.batch_size, instance(), reads=reads_samples())
        protocol = (args.eod_mask_loss, args.protocol_batch, self.config.padding_id)
        self._planner = Planner(self.tokenizer, args.seq_length, args.overlapping_eval, *protocol)

    def plan(self) -> list[Evaluation]:
        """Every evaluation that the flags ask for, all files read. Raises ValueError for one that is of no use."""
        args = self.args
        folder = Path(args.data_dir)
        if args.all:
            files = [(task, texts.as_stored(folder / file)) for task, file in FILES.items() if file]
            there = [(task, path) for task, path in files if path.is_file()]
            if not there:
                raise ValueError(
                    f"--all: no evaluation data in {folder}; bash data/evaluation_download.sh {folder} fetches them"
                )
        else:
            there = [(args.task, texts.as_stored(Path(args.valid_data or folder / FILES[args.task])))]
        planned: list[Evaluation] = []
        for task, path in there:
            if task == "LAMBADA":
                planned.append(LambadaEvaluation(self, path, args.protocols))
            else:
                planned += [CorpusEvaluation(self, job) for job in self._planner.jobs(task, path, args.protocols)]
        return planned

    def trouble(self, items: Sequence[Item], scores: Scores) -> NonFiniteError | None:
        """The error for items whose scores, of all processes, are not finite; None: all are finite."""
        number = scores.first_non_finite()
        return None if number is None else self.scorer.non_finite(items[number])

    def progress(self, name: str, items: int, tokens: int) -> Progress:
        """Silent in all processes but the first."""
        interval = self.args.log_interval
        return Progress(name, items, tokens, interval, quiet=not ranks.is_first())


class Evaluation:
    """Something to run."""

    def run(self, asked: Asked) -> list[Result]:
        """Its results; of the part that was reached when `asked` became true."""
        raise NotImplementedError


class CorpusEvaluation(Evaluation):
    """A corpus under one protocol."""

    def __init__(self, session: Session, job: Job) -> None:
        self._session, self._job = session, job

    def run(self, asked: Asked) -> list[Result]:
        job, cut = self._job, self._job.cut
        total = sum(len(item.targets) for item in cut)
        with self._session.progress(f"{job.task} {job.protocol}", len(cut), total) as progress:
            scores = self._session.scorer.score(cut, cut.length, cut.width, progress.until(asked))
        result = job.result(ranks.combine(scores))
        result.trouble = self._session.trouble(cut, scores)
        return [result]


class LambadaEvaluation(Evaluation):
    """Both protocols of LAMBADA: one pass over the rows, and a second over the few whose encodings differ.

    `protocols` are those whose results are wanted; None: both.
    """

    def __init__(self, session: Session, path: Path, protocols: Sequence[str] | None = None) -> None:
        self._session, self._path, self._protocols = session, path, protocols or PROTOCOLS["LAMBADA"]
        numbers, passages = zip(*texts.numbered_texts(path))
        self._rows, self._plain = encode_rows(passages, session.tokenizer)
        window = session.args.seq_length
        for number, row in zip(numbers, self._rows):
            if len(row.target) > window:
                raise ValueError(
                    f"{path}, line {number}: its last word has {len(row.target)} tokens, more than --seq-length "
                    f"{window} can hold; raise that, or take the line out"
                )
        self._extra = [number for number, row in enumerate(self._rows) if not row.is_plain]
        self._items = [item_of(row.context, row.target, window) for row in self._rows]
        self._items += [item_of(self._plain[n][:-1], self._plain[n][-1:], window) for n in self._extra]

    def run(self, asked: Asked) -> list[Result]:
        total = sum(len(item.targets) for item in self._items)
        passages, items = len(self._rows), len(self._items)
        with self._session.progress("LAMBADA", passages, total) as progress:
            until = progress.until(asked)
            # A reader knows passages; a few are scored twice.
            scores = score_bucketed(self._session.scorer, self._items, lambda done: until(done * passages // items))
        ranks.combine(scores)
        trouble = self._session.trouble(self._items, scores)
        rows, counts = self._rows, scores.counts
        hits = np.asarray([scores.hits[n, : len(row.target)].all() for n, row in enumerate(rows)])
        losses = scores.losses.sum(axis=1, dtype=np.float64)
        whole = self._result("last-word", counts[: len(rows)] > 0, hits, losses[: len(rows)])

        last_at = np.arange(len(rows))
        last_at[self._extra] = len(rows) + np.arange(len(self._extra))
        width = np.maximum(counts[last_at] - 1, 0)
        done = counts[last_at] > 0
        last = self._result("last-bpe", done, scores.hits[last_at, width], scores.losses[last_at, width])
        last.trouble = whole.trouble = trouble
        return [result for result in (last, whole) if result.protocol in self._protocols]

    def _result(self, protocol: str, done: np.ndarray, hits: np.ndarray, losses: np.ndarray) -> Result:
        rows = int(done.sum())
        values = {}
        if rows:
            mean = float(losses[done].mean(dtype=np.float64))
            # Of scores that are not finite the largest is no choice of the model's.
            correct = int(hits[done].sum()) if math.isfinite(mean) else math.nan
            values = {"correct": correct, "accuracy": correct / rows, "ppl": perplexity(mean)}
        counts = {"bpe": sum(map(len, self._plain)), "scored": rows, "rows": len(self._rows)}
        window = self._session.args.seq_length
        return Result(
            "LAMBADA", protocol, [str(self._path)], "none", window, None, counts, values, rows == len(done), "LAMBADA"
        )


def run_all(planned: Sequence[Evaluation], asked: Asked) -> list[Result]:
    """The results of all evaluations; of those reached when `asked` became true."""
    results: list[Result] = []
    for evaluation in planned:
        if ranks.agree(asked()):  # the other processes would wait for one that has gone
            break
        results += evaluation.run(asked)
    return results
