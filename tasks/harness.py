"""lm-evaluation-harness on a checkpoint through PopTorch: python tasks/harness.py --tasks lambada_openai,hellaswag …

    pip install -r requirements-evaluation.txt
    python tasks/harness.py --pretrained-checkpoint DIR --tasks piqa,winogrande --limit 100

Tasks are the harness's own, by name, and YAML files of one's own in the folder --include-path. Their data come from the
Hugging Face hub, or where there is none from --task-data TASK=FILE.

A PopTorch model that is running in a program of one's own is evaluated there:

    from tasks.harness import HarnessModel
    lm_eval.simple_evaluate(HarnessModel(LogitsScorer(executor, rows, window), tokenizer), tasks=["piqa"])
"""

from __future__ import annotations

import argparse
import importlib.util
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any, Sequence

if __package__ in (None, ""):  # started as a script: modules are found from the repository
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from command_line.checks import give_up, is_first_process, leave_to_first_process, not_installed, refuse  # noqa: E402
from command_line.flags import PATH, TEXT, Flag, whole  # noqa: E402
from command_line.interruption import exit_status, interruptible  # noqa: E402
from tasks.parsing import parse_evaluate_args  # noqa: E402

if TYPE_CHECKING:
    from model.config import GPT2Config

PROGRAM = "tasks/harness.py"
ABOUT = "lm-evaluation-harness on a GPT-2 checkpoint."
FLAGS = (
    Flag("--tasks", "", TEXT, "names of tasks, with commas between them"),
    Flag("--include-path", None, PATH, "folder of further task files"),
    Flag(
        "--task-data",
        None,
        TEXT,
        "TASK=FILE: a task's documents from a .jsonl, .csv or .parquet file, not the hub",
        True,
    ),
    Flag("--limit", None, whole(1), "documents of each task; all, if not given"),
    Flag("--num-fewshot", None, whole(0), "examples before each question; the task's own number, if not given"),
)
# Flags of the programs that evaluate by protocols; the harness has its own tasks.
UNREAD = (
    *("task", "valid_data", "text", "all", "data_dir", "protocols", "protocol_batch", "overlapping_eval"),
    *("eod_mask_loss", "strict_lambada", "log_interval"),
)


def __getattr__(name: str) -> Any:
    """HarnessModel, imported when it is asked for: the harness takes a second, and --help does not need it."""
    if name != "HarnessModel":
        raise AttributeError(f"module {__name__} has no attribute {name}")
    from tasks.harness_model import HarnessModel

    return HarnessModel


def evaluate(args: argparse.Namespace) -> tuple[dict[str, Any], GPT2Config]:
    """What the harness finds, and of which model.

    Raises ValueError, OSError for data, NonFiniteError for the model's outputs.
    """
    from lm_eval import simple_evaluate
    from lm_eval.tasks import TaskManager

    from tasks.harness_data import read_task_data, write_tasks
    from tasks.harness_model import HarnessModel
    from tasks.session import Session

    names = args.tasks.split(",")
    files = read_task_data(args.task_data or (), names)
    session = Session(args)
    manager = TaskManager(include_path=args.include_path)
    unknown = [name for name in names if name not in manager.all_tasks]
    if unknown:
        raise ValueError(
            f"--tasks {','.join(unknown)}: the harness has no such task; --include-path DIR adds one's own"
        )
    model = HarnessModel(session.scorer, session.tokenizer)
    with tempfile.TemporaryDirectory() as folder:
        if files:
            write_tasks(Path(folder), files, {name: manager.task_index[name].yaml_path for name in files})
            further = [args.include_path] if args.include_path else []
            manager = TaskManager(include_path=[*further, folder])
        found = simple_evaluate(
            model, tasks=names, task_manager=manager, limit=args.limit, num_fewshot=args.num_fewshot, bootstrap_iters=0
        )
    return found, session.config


def show(args: argparse.Namespace, found: dict[str, Any], config: GPT2Config) -> None:
    """The harness's table, and the results where --record and --json want them.

    Raises TooLate if they cannot be written.
    """
    from lm_eval.utils import make_table

    from tasks.records import keep
    from tasks.report import write_json

    print(make_table(found), flush=True)
    if args.record:
        for task, values in found["results"].items():
            of = {"config": config.to_dict(), "num_fewshot": args.num_fewshot, "harness": {task: values}}
            shots = f".{args.num_fewshot}-shot" if args.num_fewshot else ""
            keep(args.pretrained_checkpoint, f"harness.{task}{shots}", of, args.fp16)
    if args.json:
        write_json(args.json, found["results"])


@interruptible
def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line (default: the program's own). Returns the exit status."""
    # A task that needs no file named.
    args = parse_evaluate_args(argv, PROGRAM, "TEXT8", ABOUT, {"the harness": FLAGS}, UNREAD)
    for line in args.notes if is_first_process() else ():
        print(line)
    if importlib.util.find_spec("lm_eval") is None:
        refuse(PROGRAM, ["lm-evaluation-harness is not installed: pip install -r requirements-evaluation.txt"])
    if not args.tasks:
        refuse(PROGRAM, ["--tasks: name at least one, for instance --tasks lambada_openai,hellaswag"])
    if args.record and args.limit:
        refuse(PROGRAM, [f"--record: with --limit {args.limit} a part is computed, which is no result; leave one out"])
    if args.task_data and args.num_fewshot:
        refuse(PROGRAM, ["--task-data: with --num-fewshot the examples would be of the questions; leave one out"])
    try:
        found, config = evaluate(args)
        if is_first_process():
            show(args, found, config)
    except ModuleNotFoundError as error:
        refuse(PROGRAM, [not_installed(error)])
    except ValueError as error:
        give_up(PROGRAM, error)
    except OSError as error:  # a data set that is not there, or a network that is not
        leave_to_first_process()
        reason = f"{PROGRAM}: the data of a task cannot be had ({error})"
        print(
            f"{reason}\nHINT: the harness's own tasks are fetched from the Hugging Face hub; --include-path DIR takes "
            "task files with data of this machine, --task-data TASK=FILE a task's documents",
            file=sys.stderr,
        )
        return 1
    except RuntimeError as error:
        if "HINT:" not in str(error):
            raise
        leave_to_first_process()
        print(f"{PROGRAM}: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt as stop:
        print(f"{PROGRAM}: stopped, nothing was written", file=sys.stderr)
        return exit_status(stop)
    return 0


if __name__ == "__main__":
    sys.exit(main())
