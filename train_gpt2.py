"""GPT-2 pretraining with PopTorch: python train_gpt2.py --model gpt2 --max-len 1024 --train-path generated …

argv -> flags -> model -> placement -> executor -> the loop in `train`. --help lists the flags.
"""

from __future__ import annotations

import argparse
import sys
import time
from typing import TYPE_CHECKING, Sequence

from arguments import parse_train_args
from command_line.checks import (
    BadFlags,
    first_speaks,
    is_first_process,
    leave_to_first_process,
    not_installed,
    refuse,
    speaker,
)
from command_line.collection import no_collection
from command_line.commands import command_to_resume, left_to_launcher
from command_line.interruption import Interruption, exit_status, interruptible
from data.bad_data import BadData
from model.disk_space import CheckpointNotWritten
from training import folder_lock
from training.arithmetic import arithmetic

if TYPE_CHECKING:  # torch is imported in main(), after the flags were read: --help and mistakes answer at once
    from training.log.run_log import RunLog
    from training.run import TrainingRun

PROGRAM = "train_gpt2.py"


def validate(run: TrainingRun, log: RunLog, interruption: Interruption) -> None:
    """Loss and perplexity of the held-out samples, of several data sets the mean."""
    if run.validator is None:
        return
    with run.limit.timing("validation"):
        loss = run.validator.loss()
    first = log.validation(run.position.step, loss, run.validator.losses)
    run.check_finite(loss)
    if run.judges(first):
        with interruption.deferred():
            run.judge(loss)


def train(run: TrainingRun, log: RunLog, interruption: Interruption) -> None:
    """Every call of the training model that is left, its log line and its checkpoints."""
    args, position = run.args, run.position
    validate(run, log, interruption)
    log.clock.start()
    stop = run.to_stop(interruption.asked)
    while position.step < run.calls and not stop:
        epoch = position.epoch
        run.sampler.set_epoch(epoch, position.samples)
        for call in run.batches():  # input ids and labels: (samples a call, T) each, int32
            if not run.program.is_compiled_for(call):
                with log.clock.paused(), run.limit.timing("compilation"):
                    run.compile(call)
            learning_rate = run.schedule.get_last_lr()[0]
            loss, accuracy = run.program.step(call)
            interruption.at_once = False  # from the first call on there is something to save
            del call  # it can be half a gigabyte, and the next one is under way
            run.schedule.step()
            run.executor.setOptimizer(run.optimizer)  # the device learns of a new rate in no other way
            position.advance(run.samples_a_step, run.sampler.samples_an_epoch)
            finished, epoch_ended = position.step == run.calls, position.epoch > epoch
            run.check_finite(loss)
            log.step(position.step, epoch, loss, accuracy, learning_rate, finished)
            run.limit.call_done()
            note = run.limit.launcher_note() if run.folder is not None else None
            if note is not None:
                print(note, flush=True)
            with log.clock.paused():
                stop = run.to_stop(interruption.asked)
                last = finished or stop
                with interruption.deferred():
                    run.save_if_due(epoch, epoch_ended, last)
                due = args.eval_steps and position.step % args.eval_steps == 0
                if finished or ((epoch_ended or due) and not last):
                    validate(run, log, interruption)
                    stop = run.to_stop(interruption.asked)
            if last or stop or epoch_ended:
                break
    log.ended_early = run.stopped_early
    if position.step > run.last_saved_step:  # the end was decided by the validation, or came while that was made
        with interruption.deferred():
            run.save_if_due(position.epoch, False, last=True)


def report_stop(run: TrainingRun, at_once: bool, argv: Sequence[str]) -> None:
    """After a signal, --time-limit or an error: where the run ended, what is lost, and how to go on.

    Of several processes the first says so.
    """
    if not is_first_process():
        return
    step, checkpoint = run.position.step, run.last_checkpoint
    lines = [f"Stopped at once after step {step}" if at_once else f"Stopped after step {step}"]
    if checkpoint is None:
        lost = "everything since the start" if step else "only the call under way"
        remedy = "--save-per-steps N keeps more next time."
        if not run.args.save_model_path:
            remedy = "--save-model-path DIR keeps more next time."
        elif not step:
            remedy = "A call is shorter with a smaller --device-iterations or --gradient-accumulation."
        lines[0] += f"; no checkpoint was written, {lost} is lost. {remedy}"
    else:
        steps = step - run.last_saved_step
        lost = [f"{steps} step{'s' if steps > 1 else ''}"] * (steps > 0) + ["the call under way"] * at_once
        lines[0] += f"; the last checkpoint is {checkpoint}, lost: {' and '.join(lost) or 'nothing'}. To go on"
        lines[0] += ", in as many processes as this time:" if left_to_launcher() else ":"
        lines.append("  " + command_to_resume(argv, checkpoint))
    print("\n".join(lines), file=sys.stderr, flush=True)


def save_at_last(run: TrainingRun) -> None:
    """What an error would lose is saved; no signal breaks that off. Not by one of several processes alone."""
    if run.position.step > run.last_saved_step and run.alone:
        with Interruption() as interruption, interruption.deferred():
            run.save_if_due(run.position.epoch, False, last=True)


def plan(args: argparse.Namespace) -> bool:
    """Print the plan of --compile-only and leave the estimate of --profile; whether that is all there is to do."""
    if args.compile_only:
        from training.plan_request import planned

        print("\n".join(planned(args)), flush=True)
        if (args.plan_processes or args.plan_device) and not args.profile:  # of machines that are not here
            return True
    if args.profile:
        from training import estimate

        estimate.write(args)
    return False


@interruptible
@first_speaks()
def main(argv: Sequence[str] | None = None) -> int:
    """Run the program with these arguments (default: the command line's). Returns the exit status."""
    started = time.monotonic()
    argv, run = sys.argv[1:] if argv is None else argv, None
    try:
        args = parse_train_args(argv)
        if args.batch_size == "auto":
            from training import micro_batch

            print(micro_batch.choose(args), flush=True)
        for line in arithmetic(args) + args.notes:
            print(line, flush=True)
        with no_collection():
            from training import memory
            from training.log import machine
            from training.log.run_log import RunLog
            from training.run import TrainingRun
        print(machine.device_line(), flush=True)
        if plan(args):
            return 0
        with memory.explained(args):
            run = TrainingRun(args, argv, started)
            if args.compile_only:
                run.compile_only()
                print(run.length())
                return 0
            if run.position.step >= run.calls and not run.ended_before_validation():
                print(run.done_already())
                return 0
            counts = (run.calls, run.position.step, run.samples_a_call)
            log = RunLog(args, run.model.gpt2.config, *counts, run.optimizer, run.approximate)
            if run.folder is not None:
                run.folder.keep_list(log.checkpoints)
                run.keep_numerics = log.numerics
            log.lengths(run.sampler.samples_an_epoch, run.warmup_steps)
            with Interruption(at_once=True, quiet=not is_first_process()) as interruption, log:
                train(run, log, interruption)
    except KeyboardInterrupt as stop:
        if run is None:
            if is_first_process():
                print("Stopped before the first step; nothing is lost.", file=sys.stderr)
        else:
            report_stop(run, at_once=True, argv=argv)
        return exit_status(stop)
    except ModuleNotFoundError as error:
        refuse(PROGRAM, [not_installed(error)])
    except BadData as error:
        if run is None or run.position.step == 0:
            refuse(PROGRAM, [str(error)])
        save_at_last(run)
        print(f"{PROGRAM}: {error}", file=sys.stderr)
        report_stop(run, at_once=False, argv=argv)
        return 2
    except ValueError as error:
        if run is not None and not isinstance(error, BadFlags):
            raise
        refuse(PROGRAM, [str(problem) for problem in error.args])
    except RuntimeError as error:
        if "HINT:" not in str(error):
            raise
        leave_to_first_process()
        print(f"{PROGRAM}: {speaker()}{error}", file=sys.stderr)
        if isinstance(error, CheckpointNotWritten) or (run is not None and not run.alone and run.position.step):
            report_stop(run, at_once=False, argv=argv)
        return 1
    finally:
        folder_lock.release()
    if run.position.step == run.calls:
        return 0
    if run.stopped_early and not run.interrupted:
        print("\n".join(run.why_early()), flush=True)
        return 0
    if not run.interrupted and is_first_process():
        print(f"--time-limit: {args.time_limit:,.0f} seconds leave no time for another call", file=sys.stderr)
    report_stop(run, at_once=False, argv=argv)
    return interruption.status if run.interrupted else 0


if __name__ == "__main__":
    raise SystemExit(main())
