"""GPT-2 pretraining with PopTorch: python train_gpt2.py --model gpt2 --max-len 1024 --train-path generated …

argv -> flags -> model -> placement -> executor -> the loop in `train`. --help lists the flags.
"""

from __future__ import annotations

import argparse
import shlex
import sys
import time
from typing import TYPE_CHECKING, Any

from arguments import arithmetic, parse_train_args
from model.argument_checks import refuse

if TYPE_CHECKING:  # torch is imported in main(), after the flags were read: --help and mistakes answer at once
    from model.training_run import TrainingRun

PROGRAM = "train_gpt2.py"
INTERRUPTED = 130  # exit status of a program that Ctrl-C ended


def time_text(seconds: float) -> str:
    """Seconds as hours, minutes and seconds: 1:02:03."""
    whole = max(0, round(seconds))
    return f"{whole // 3600}:{whole // 60 % 60:02d}:{whole % 60:02d}"


class Clock:
    """Throughput between log lines: waiting for data counts, validation and saving do not."""

    def __init__(self) -> None:
        self.samples = 0
        self.total_calls, self.total_seconds = 0, 0.0
        self.resume()
        self.seconds = 0.0

    def pause(self) -> None:
        elapsed = time.perf_counter() - self._since
        self.seconds += elapsed
        self.total_seconds += elapsed

    def resume(self) -> None:
        self._since = time.perf_counter()

    def lap(self) -> float:
        """Samples a second since the last lap."""
        self.pause()
        self.resume()
        rate = self.samples / self.seconds
        self.samples, self.seconds = 0, 0.0
        return rate


def log(run: TrainingRun, clock: Clock, loss: float, accuracy: float, learning_rate: float) -> None:
    """One line; benchmarks.yml reads loss, acc and throughput out of it."""
    position = run.position
    rate = clock.lap()
    left = (run.calls - position.step) * clock.total_seconds / max(1, clock.total_calls)
    print(
        f"step {position.step} of epoch {position.epoch}, loss: {loss:.4f}, acc: {accuracy:.4f}, "
        f"lr: {learning_rate:.4g}, throughput: {rate:.2f} samples/sec, {rate * run.args.max_len:,.0f} tokens/sec, "
        f"{time_text(left)} left",
        flush=True,
    )


def validate(run: TrainingRun) -> None:
    """The held-out loss of --val-num."""
    if run.validator is not None:
        loss = run.validator.loss()
        print(f"validation after step {run.position.step}, held-out loss: {loss:.4f}", flush=True)


def train(run: TrainingRun) -> int:
    """Every call of the training model, its log line and its checkpoints. Returns the exit status."""
    from model.interruption import Interruption

    args, position = run.args, run.position
    micro_batches = args.device_iterations * args.gradient_accumulation
    interruption, saved = Interruption(), None
    try:
        validate(run)
        clock = Clock()
        for epoch in range(position.epoch, args.epochs):
            position.epoch = epoch
            run.sampler.set_epoch(epoch, position.samples)
            for input_ids, labels in run.loader:
                if run.rng_state is not None:
                    run.resume_random_numbers(input_ids=input_ids, labels=labels)
                learning_rate = run.schedule.get_last_lr()[0]
                losses, accuracies = run.executor(input_ids=input_ids, labels=labels)
                run.schedule.step()
                run.executor.setOptimizer(run.optimizer)  # the device learns of a new rate in no other way
                position.step += 1
                position.samples += run.samples_a_call
                clock.samples += run.samples_a_call
                clock.total_calls += 1
                if position.step % args.log_steps == 0 or position.step == run.calls:
                    # Output mode Sum: each replica's sum over iterations x accumulation micro-batches.
                    loss, accuracy = (float(out.float().mean()) / micro_batches for out in (losses, accuracies))
                    log(run, clock, loss, accuracy, learning_rate)
                done = interruption.asked or position.step >= run.calls
                if args.save_per_steps and position.step % args.save_per_steps == 0 or (done and args.save_model_path):
                    clock.pause()
                    saved = run.save(f"step_{position.step}")
                    clock.resume()
                if done:
                    break
            if done and position.samples + run.samples_a_call <= len(run.samples):
                break  # in the middle of an epoch
            position.epoch, position.samples = epoch + 1, 0
            clock.pause()
            validate(run)
            if args.save_model_path and args.save_per_epochs and (epoch + 1) % args.save_per_epochs == 0:
                saved = run.save(f"epoch_{epoch}")
            clock.resume()
            if done:
                break
    except KeyboardInterrupt:
        return report_stop(run, saved, "Stopped at once; the call under way is lost.")
    finally:
        interruption.restore()
    if interruption.asked:
        return report_stop(run, saved, f"Stopped after step {position.step}.")
    return 0


def report_stop(run: TrainingRun, saved: Any, what: str) -> int:
    """Say what is lost and how to go on."""
    directory = saved or run.args.resume_training_from_checkpoint and run.args.pretrained_checkpoint
    if directory:
        command = [sys.executable, *sys.argv, "--pretrained-checkpoint", str(directory)]
        command += ["--resume-training-from-checkpoint", "True"]
        print(f"{what} The last checkpoint is {directory}. To go on:\n  {shlex.join(command)}", file=sys.stderr)
    else:
        print(f"{what} No checkpoint was written: give --save-model-path next time.", file=sys.stderr)
    return INTERRUPTED


def main() -> int:
    args = parse_train_args()
    for line in arithmetic(args) + args.notes:
        print(line, flush=True)
    from model.training_run import TrainingRun

    try:
        run = TrainingRun(args)
    except ValueError as error:
        refuse(PROGRAM, [str(error)])
    if args.compile_only:
        run.compile_only()
        print("\n".join(run.plan()))
        return 0
    return train(run)


if __name__ == "__main__":
    raise SystemExit(main())
