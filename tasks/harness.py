"""lm-evaluation-harness on a checkpoint through PopTorch: python -m tasks.harness --tasks lambada_openai,hellaswag …

    pip install -r requirements-evaluation.txt
    python -m tasks.harness --pretrained-checkpoint DIR --tasks piqa,winogrande --limit 100

Tasks are the harness's own, by name, and YAML files of one's own in the folder --include-path. A PopTorch model that is
running in a program of one's own is evaluated there:

    lm_eval.simple_evaluate(HarnessModel(LogitsScorer(executor, rows, window), tokenizer), tasks=["piqa"])
"""

from __future__ import annotations

import argparse
import json
import sys
from typing import Any, Sequence

import numpy as np

from command_line.checks import refuse
from command_line.interruption import INTERRUPTED
from model.scoring import Item, ItemScorer
from tasks.lambada import item_of, score_bucketed
from tasks.parsing import parse_evaluate_args
from tasks.ranks import combine, is_first
from tasks.windows import RollingWindows
from tokenizer import Tokenizer

try:
    from lm_eval.api.model import LM
except ModuleNotFoundError:  # the extra is not installed: main() says so
    LM = object

PROGRAM = "tasks/harness.py"


class HarnessModel(LM):
    """A scorer as a model of the harness: log-likelihoods. Text generation is refused.

    Args:
        scorer: a Scorer of a checkpoint (model/scoring.py), or the LogitsScorer of a PopTorch model that is running.
        tokenizer: of the checkpoint; a context that is empty becomes <|endoftext|>.
    """

    def __init__(self, scorer: ItemScorer, tokenizer: Tokenizer) -> None:
        super().__init__()
        self._scorer, self._tokenizer = scorer, tokenizer
        self._window = scorer.window

    def loglikelihood(self, requests: Sequence[Any]) -> list[tuple[float, bool]]:
        """(log-likelihood in nats, whether it is the greedy one) of each continuation after its context."""
        items = [self._item(*request.args) for request in requests]
        found = combine(score_bucketed(self._scorer, items))
        losses = found.losses.sum(axis=1, dtype=np.float64)
        return [(-float(loss), bool(hits[:count].all())) for loss, hits, count in zip(losses, found.hits, found.counts)]

    def loglikelihood_rolling(self, requests: Sequence[Any]) -> list[float]:
        """Log-likelihood in nats of each whole text, after <|endoftext|>, in windows that share no target."""
        texts = [self._tokenizer.encode(request.args[0]) for request in requests]
        cuts = [RollingWindows([text], self._window, self._tokenizer.eot_id) for text in texts]
        length = max(cut.length for cut in cuts)
        items = [item for cut in cuts for item in cut]
        losses = combine(self._scorer.score(items, length, None)).losses.sum(axis=1, dtype=np.float64)
        ends = np.cumsum([len(cut) for cut in cuts])
        return [-float(part.sum()) for part in np.split(losses, ends[:-1])]

    def generate_until(self, requests: Sequence[Any]) -> list[str]:
        """Refused: ValueError."""
        raise ValueError("tasks that generate text are not available; choose tasks of log-likelihoods")

    def _item(self, context: str, continuation: str) -> Item:
        """The harness's rule: white space at the end of the context belongs to the continuation."""
        spaces = len(context) - len(context.rstrip())
        if spaces and context.rstrip():
            context, continuation = context[:-spaces], context[-spaces:] + continuation
        if not context:
            target = self._tokenizer.encode(continuation)
            return item_of([self._tokenizer.eot_id], target[-self._window :], self._window)
        before, whole = self._tokenizer.encode(context), self._tokenizer.encode(context + continuation)
        return item_of(before, whole[len(before) :], self._window)


def parse_own(argv: Sequence[str]) -> tuple[argparse.Namespace, list[str]]:
    """The flags that are the harness's; the rest are those of the evaluation programs."""
    parser = argparse.ArgumentParser(PROGRAM, add_help=False, allow_abbrev=False)
    parser.add_argument("--tasks", default="", help="names of tasks, with commas between them")
    parser.add_argument("--include-path", default=None, help="folder of further task files")
    parser.add_argument("--limit", type=int, default=None, help="documents of each task (default: all)")
    parser.add_argument("--num-fewshot", type=int, default=None, help="examples before each question")
    if "-h" in argv or "--help" in argv:
        print(parser.format_help().replace("usage: ", "the harness's own flags: "))
    return parser.parse_known_args(argv)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line (default: the program's own). Returns the exit status."""
    own, rest = parse_own(sys.argv[1:] if argv is None else argv)
    args = parse_evaluate_args(rest, PROGRAM, "TEXT8")  # a task that needs no file named
    if LM is object:
        refuse(PROGRAM, ["lm-evaluation-harness is not installed: pip install -r requirements-evaluation.txt"])
    if not own.tasks:
        refuse(PROGRAM, ["--tasks: name at least one, for instance --tasks lambada_openai,hellaswag"])
    from lm_eval import simple_evaluate
    from lm_eval.tasks import TaskManager
    from lm_eval.utils import make_table

    from tasks.report import write_json
    from tasks.session import Session

    try:
        session = Session(args)
        manager = TaskManager(include_path=own.include_path)
        names = own.tasks.split(",")
        unknown = [name for name in names if name not in manager.all_tasks]
        if unknown:
            raise ValueError(
                f"--tasks {','.join(unknown)}: the harness has no such task; --include-path DIR adds one's own"
            )
        model = HarnessModel(session.scorer, session.tokenizer)
        found = simple_evaluate(
            model, tasks=names, task_manager=manager, limit=own.limit, num_fewshot=own.num_fewshot, bootstrap_iters=0
        )
    except ValueError as error:
        refuse(PROGRAM, [str(error)])
    except OSError as error:  # a data set that is not there, or a network that is not
        reason = f"{PROGRAM}: the data of a task cannot be had ({error})"
        print(
            f"{reason}\nHINT: the harness's own tasks are fetched from the Hugging Face hub; --include-path DIR takes "
            "task files with data of this machine",
            file=sys.stderr,
        )
        return 1
    except KeyboardInterrupt:
        print(f"{PROGRAM}: stopped, nothing was written", file=sys.stderr)
        return INTERRUPTED
    if is_first():
        print(make_table(found))
    if args.json and is_first():
        write_json(args.json, json.loads(json.dumps(found["results"], default=str)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
