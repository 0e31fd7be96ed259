"""Forward-only throughput of GPT-2 with PopTorch: python inference_gpt2.py --model gpt2 --max-len 1024 …

Takes the flags of train_gpt2.py; those about updates have no effect. A step is one call: --batch-size x
--device-iterations x --replication-factor sequences. Several processes share the replicas, or hold one together.
"""

from __future__ import annotations

import sys
import time
from typing import TYPE_CHECKING, Sequence

from arguments import parse_train_args
from command_line.checks import first_speaks, leave_to_first_process, not_installed, refuse, speaker
from command_line.collection import no_collection
from command_line.interruption import interruptible

if TYPE_CHECKING:  # torch is imported in main(), after the flags were read
    from training.forward_run import ForwardRun

PROGRAM = "inference_gpt2.py"


def measure(run: ForwardRun) -> None:
    """Every call and its line. Waiting for data counts, compiling does not.

    Of several processes the first tells its own calls' times with the samples of all; the average is over all of them.
    """
    from model import ranks

    step, seconds = 0, 0.0
    while step < run.calls:
        start = time.perf_counter()
        for input_ids in run.batches():  # (samples a call, T), int32
            run.executor(input_ids)
            latency = time.perf_counter() - start
            step, seconds = step + 1, seconds + latency
            print(f"Throughput: {run.samples_a_call / latency:.4f} seq/s, Latency: {latency:.4f} s", flush=True)
            if step == run.calls:
                break
            start = time.perf_counter()
    (seconds,) = ranks.means([seconds])
    rate = step * run.samples_a_call / seconds
    print(f"{step} steps, {rate:.4f} seq/s, {rate * run.args.max_len:,.0f} tokens/s on average")


@interruptible
@first_speaks()
def main(argv: Sequence[str] | None = None) -> int:
    """Run the program with these arguments (default: the command line's). Returns the exit status."""
    args = parse_train_args(argv, PROGRAM, trains=False)
    if args.gradient_accumulation > 1:
        args.notes.append(f"--gradient-accumulation {args.gradient_accumulation} has no effect: there are no updates")
        args.gradient_accumulation, args.global_batch_size = 1, None
    args.notes = [note for note in args.notes if "nothing will be saved" not in note]
    samples = args.batch_size * args.device_iterations * args.replication_factor
    factors = f"batch {args.batch_size} x iterations {args.device_iterations} x replicas {args.replication_factor}"
    print("\n".join([f"{factors} = {samples:,} sequences a step", *args.notes]), flush=True)
    try:
        with no_collection():
            from training.forward_run import ForwardRun
        run = ForwardRun(args)
        run.compile()
        if args.compile_only:
            print(f"compiled: {samples:,} sequences of {args.max_len} tokens a step; nothing was run")
        else:
            measure(run)
    except ModuleNotFoundError as error:
        refuse(PROGRAM, [not_installed(error)])
    except ValueError as error:
        refuse(PROGRAM, [str(problem) for problem in error.args])
    except RuntimeError as error:
        if "HINT:" not in str(error):
            raise
        leave_to_first_process()
        print(f"{PROGRAM}: {speaker()}{error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
