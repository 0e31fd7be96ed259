"""What evaluate_wiki.py and evaluate_lambada.py have in common: the flags' way to results."""

from __future__ import annotations

import argparse
import sys
from typing import Sequence

from command_line.checks import give_up, is_first_process, leave_to_first_process, not_installed, refuse
from command_line.collection import no_collection
from command_line.interruption import Interruption, exit_status, interruptible
from corpora.refusal import TooLate
from tasks.parsing import parse_evaluate_args

_NOTICE = "the evaluation ends after the current call and prints what it has."


@interruptible
def main(program: str, task: str, argv: Sequence[str] | None = None) -> int:
    """Evaluate by the flags (default: the command line's), `task` if they name none. Returns the exit status."""
    args = parse_evaluate_args(argv, program, task)
    for line in args.notes if is_first_process() else ():
        print(line)
    try:
        return _evaluate(args)
    except ModuleNotFoundError as error:
        refuse(program, [not_installed(error)])
    except ValueError as error:
        give_up(program, error)
    except RuntimeError as error:
        if "HINT:" not in str(error):
            raise
        print(f"{program}: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt as stop:
        print(f"{program}: stopped at once, nothing was written", file=sys.stderr)
        return exit_status(stop)


def _evaluate(args: argparse.Namespace) -> int:
    with no_collection():
        from model import ranks
        from tasks import report
        from tasks.session import Session, run_all
    session = Session(args)
    planned = session.plan()
    with Interruption(_NOTICE) as interruption:
        results = run_all(planned, lambda: interruption.asked)
    trouble = next((result.trouble for result in results if result.trouble), None)
    unwritten: list[TooLate] = []
    if ranks.is_first():
        print(report.table(results, session.config))
        try:
            if args.json:
                report.write_json(args.json, report.as_json(results, args.pretrained_checkpoint, session.config))
        except TooLate as error:
            unwritten.append(error)
        try:
            if args.record:
                print("\n".join(report.kept(results, args.pretrained_checkpoint, session.config, args.fp16)))
        except TooLate as error:
            unwritten.append(error)
        for line in report.last_lines(results, args.strict_lambada):
            print(line, flush=True)
    if unwritten:
        raise TooLate("\n  ".join(map(str, unwritten)))
    if trouble is not None:
        leave_to_first_process()  # all have the same scores
        raise trouble
    return interruption.status if interruption.asked else 0
