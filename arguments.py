"""The command line of the programs: every flag, defined once, read and checked before anything else happens.

Nothing here has a side effect and nothing heavy is imported, so `--help` is instant and a wrong command line
costs a second, not a compilation. Every problem is collected and all are reported together, exit status 2
(what the flags must satisfy together is in argument_checks.py).

Each flag has an old spelling (SDK 2.5), whose name is the attribute on the namespace, and some a new one (SDK 3.x).
"""

from __future__ import annotations

import argparse
import difflib
import math
import re
import sys
from typing import Any, Callable, NamedTuple, Sequence

from model.argument_checks import (
    Problems,
    check_available,
    check_boundaries,
    check_checkpoints,
    check_config,
    check_generation,
    check_layers,
    check_log,
    check_proportions,
    check_recompute,
    check_schedule,
    check_serialization,
    check_train_path,
    check_validation,
    forward_stages,
)
from model.config import MODELS
from tasks.checks import check_evaluation
from tasks.names import PROTOCOLS

# ---- How one value is read --------------------------------------------------------------------------------------


class Kind(NamedTuple):
    """A type of value: how --help shows it, and a parser that raises ValueError saying what the value must be."""

    shown: str
    parse: Callable[[str], Any]


def _boolean(text: str) -> bool:
    lowered = text.lower()
    if lowered in ("true", "1", "yes", "y", "t", "on"):
        return True
    if lowered in ("false", "0", "no", "n", "f", "off"):
        return False
    raise ValueError("must be True or False (also 1/0, yes/no, on/off; no value means True)")


def _whole(least: int, most: float = math.inf) -> Kind:
    limits = f"of at least {least}" if most == math.inf else f"from {least} to {most}"

    def parse(text: str) -> int:
        try:
            value = int(text)
        except ValueError:
            value = least - 1
        if not least <= value <= most:
            raise ValueError(f"must be a whole number {limits}")
        return value

    return Kind("N", parse)


def _real(low: float, high: float = math.inf, above: bool = False) -> Kind:
    """A finite number from `low` to `high`; `above` leaves `low` itself out."""
    limits = f"{'above' if above else 'of at least'} {low:g}" + (f" and at most {high:g}" if high < math.inf else "")

    def parse(text: str) -> float:
        try:
            value = float(text)
        except ValueError:
            value = math.nan
        if not low <= value <= high or math.isinf(value) or (above and value == low):  # NaN fails the first test
            raise ValueError(f"must be a number {limits}")
        return value

    return Kind("X", parse)


def _one_of(*choices: str) -> Kind:
    def parse(text: str) -> str:
        if text not in choices:
            near = [choice for choice in choices if choice.lower() == text.lower()]
            near = near or difflib.get_close_matches(text, choices, n=1, cutoff=0.4)
            raise ValueError("must be one of " + ", ".join(choices) + (f" (did you mean {near[0]}?)" if near else ""))
        return text

    return Kind("{" + ",".join(choices) + "}", parse)


BOOLEAN = Kind("[True|False]", _boolean)
TEXT = Kind("TEXT", str)
PATH = Kind("PATH", str)

# ---- The flags ---------------------------------------------------------------------------------------------------


class Flag(NamedTuple):
    """One flag: its spellings (the first one names the attribute), default, kind, help; `many` takes a list."""

    spellings: str
    default: Any
    kind: Kind
    help: str
    many: bool = False

    @property
    def names(self) -> list[str]:
        return self.spellings.split()

    @property
    def dest(self) -> str:
        return self.names[0][2:].replace("-", "_")


MODEL = (
    Flag("--model", "gpt2", _one_of(*MODELS), "size of the model, a file in config/"),
    Flag("--config", None, PATH, "another json file in place of the one --model stands for"),
    Flag("--max-len", 128, _whole(2), "sequence length T in tokens; sets n_positions"),
)
CHECKPOINT = (
    Flag("--pretrained-checkpoint --checkpoint-input-dir", "", PATH, "Hugging Face folder or hub name to start from"),
    Flag("--save-model-path --checkpoint-output-dir", None, PATH, "folder for checkpoints; without it none is saved"),
    Flag("--save-per-epochs", 1, _whole(0), "epochs from one checkpoint to the next; 0: none at the end of epochs"),
    Flag("--save-per-steps", None, _whole(1), "steps from one checkpoint to the next"),
    Flag("--keep-checkpoints", 0, _whole(0), "how many of the newest checkpoints stay; 0: all"),
    Flag(
        "--resume-training-from-checkpoint", False, BOOLEAN, "restore the whole training state, not the weights alone"
    ),
)
DATA = (
    Flag(
        "--train-path --dataset",
        "generated",
        TEXT,
        "generated, a .pkl file, tfrecord or dynamic (Megatron's mmap); new: pickle, tfrecord, mmap with --input-files",
    ),
    Flag("--tfrecord-path", None, PATH, "the TFRecord files: paths, or '*' patterns in quotes", True),
    Flag(
        "--data-prefix --input-files",
        None,
        PATH,
        "PREFIX of Megatron's PREFIX.bin and PREFIX.idx; the files of --dataset pickle or tfrecord",
        True,
    ),
    Flag(
        "--sample-order",
        "megatron",
        _one_of("megatron", "reference"),
        "Megatron-LM's order of mmap samples, or the reference application's, which never keeps a last epoch apart",
    ),
    Flag("--stride", 128, _whole(1), "step in tokens of the window over an article longer than --max-len"),
    Flag(
        "--document-boundaries",
        "stream",
        _one_of("stream", "isolated"),
        "isolated: within a sample no document sees another, positions start again and no label crosses",
    ),
    Flag("--val-num", 0, _whole(0), "samples held out for validation, in whole articles"),
    Flag("--seed", 1234, _whole(0, 2**32 - 1), "seed of weights, order of samples, dropout and what is drawn"),
    Flag("--num-workers", 4, _whole(0), "processes that read data; 0: the program itself"),
    Flag("--async-dataloader", False, BOOLEAN, "a process of its own puts batches together, in shared memory"),
)
TRAINING = (
    Flag("--epochs", 1, _whole(1), "passes over the data; ends here or at --training-steps, whichever is first"),
    Flag("--training-steps", 10000, _whole(1), "calls of the training model, --device-iterations updates each"),
    Flag("--optimizer", "AdamW", _one_of("AdamW", "Adam", "LAMB", "LAMBNoBiasCorrection"), "update rule"),
    Flag("--weight-decay", 0.0, _real(0), "decay of parameters with two dimensions"),
    Flag("--learning-rate", 1e-5, _real(0), "peak learning rate"),
    Flag("--loss-scaling", 50000.0, _real(0, 1e30, above=True), "factor on the loss for half gradients' sake"),
    Flag("--auto-loss-scaling", False, BOOLEAN, "adapt the factor, from 1, instead"),
    Flag("--lr-schedule", "constant", _one_of("linear", "constant", "cosine"), "course of the learning rate"),
    Flag("--lr-warmup", 0.1, _real(0, 1), "warm-up as a fraction of the decay steps"),
    Flag("--lr-warmup-steps", None, _whole(0), "warm-up in steps, in place of --lr-warmup"),
    Flag("--lr-decay-steps", None, _whole(1), "steps the schedule spans (default: the calls planned)"),
    Flag("--enable-sequence-serialized", False, BOOLEAN, "compute head and loss in blocks of positions: less memory"),
    Flag("--serialized-seq-len", 128, _whole(1), "positions in such a block"),
)
LOG = (
    Flag(
        "--eval-steps", None, _whole(1), "steps from one validation of --val-num to the next; also at every epoch's end"
    ),
    Flag("--log-steps", 1, _whole(1), "steps from one log line to the next"),
    Flag("--log-dir", None, PATH, "folder for TensorBoard's files; curves and run.json too without --save-model-path"),
    Flag("--use-wandb", False, BOOLEAN, "log to Weights & Biases: offline unless a key is configured"),
    Flag("--log-gradient-norm", False, BOOLEAN, "log the gradient's norm; copies the optimizer's state each time"),
    Flag("--reference-curve", None, PATH, "curves.csv of an earlier run to compare the losses with at the end"),
    Flag("--peak-tflops", None, _real(0, above=True), "the device's peak, for the share of it in the log line"),
)
BATCH = (  # samples a call = the product of the four
    Flag("--batch-size", 1, _whole(1), "samples in the micro-batch of one replica"),
    Flag("--gradient-accumulation", 1, _whole(1), "micro-batches in a weight update"),
    Flag("--device-iterations", 4, _whole(1), "weight updates (outside training: micro-batches) in a call"),
    Flag("--replication-factor", 1, _whole(1), "data-parallel replicas"),
)
PLACEMENT = (
    Flag("--layers-per-ipu", None, _whole(0), "blocks on each IPU; one number: the same on each; none: one IPU", True),
    Flag("--ipus-per-replica", 4, _whole(1), "IPUs of one replica; follows --layers-per-ipu if that lists them"),
    Flag("--matmul-proportion", None, _real(0, 1, above=True), "share of memory for matmuls, one an IPU or one", True),
    Flag("--recompute-checkpoint-every-layer", False, BOOLEAN, "keep block outputs only, recompute the rest"),
    Flag("--recompute-checkpoint-layers", None, _whole(0), "the blocks to do so for, from 0 (default: all)", True),
    Flag("--embedding-serialization-factor", 1, _whole(1), "split the tied head's product into this many"),
    Flag("--remap-logit", False, BOOLEAN, "spread the logits over tiles with the custom op RemapCE"),
    Flag("--optimizer-state-offchip", True, BOOLEAN, "optimizer state in streaming memory"),
    Flag("--replicated-tensor-sharding", False, BOOLEAN, "optimizer state sharded over the replicas"),
    Flag("--enable-half-partials", False, BOOLEAN, "half partial sums in matmuls"),
    Flag("--custom-ops", True, BOOLEAN, "load custom_ops.so"),
    Flag("--executable-cache-dir", None, PATH, "folder for compiled programs"),
    Flag("--compile-only", False, BOOLEAN, "check everything, print the plan and exit"),
)
GENERATION = (
    Flag("--model-name-or-path", "gpt2", PATH, "checkpoint folder or hub name"),
    Flag("--tokenizer-type", 0, _whole(0, 1), "0: Hugging Face's files; 1: Megatron's"),
    Flag("--prompt", None, TEXT, "text to go on from; without it you are asked"),
    Flag(
        "--prompt-file", None, PATH, 'file of prompts, a line each (.jsonl: its field "prompt"); answers in JSON lines'
    ),
    Flag("--input-len", 64, _whole(1), "longest prompt in tokens"),
    Flag("--output-len", 128, _whole(1), "tokens to generate"),
    Flag("--num-samples", 1, _whole(1), "texts for each prompt"),
    Flag("--save-samples-path", None, PATH, "file the texts are written to"),
    Flag("--log-probabilities", False, BOOLEAN, "also the logarithm of each token's probability"),
    Flag("--single-ipu", False, BOOLEAN, "the whole model on one IPU"),
    Flag("--poptorch-loop", False, BOOLEAN, "the whole loop on the device; needs --single-ipu"),
    Flag("--fp16", False, BOOLEAN, "half precision"),
    Flag("--int8", False, BOOLEAN, "weights in 8 bits, by the native operators"),
)
SAMPLING = (
    Flag("--repetition-penalty", 2.0, _real(0, above=True), "penalty on tokens already there; 1: none"),
    Flag("--topk", 4, _whole(0), "draw from the k likeliest tokens; 0: from all; 1: greedy"),
    Flag("--temperature", 1.2, _real(0, above=True), "divides the logits"),
    Flag("--top-p", 1.0, _real(0, 1, above=True), "draw from the likeliest tokens that make up this probability"),
    Flag("--min-p", 0.0, _real(0, 1), "only tokens with this fraction of the largest probability"),
    Flag(
        "--typical-p", 1.0, _real(0, 1, above=True), "draw from the most typical tokens that make up this probability"
    ),
    Flag("--stop-token", ["<|endoftext|>"], TEXT, "a text ends at any of these tokens", True),
    Flag("--stop-string", [], TEXT, "a text ends before any of these", True),
)
EVALUATION = (
    Flag("--task", "WIKITEXT103", _one_of(*PROTOCOLS), "what to evaluate on"),
    Flag("--valid-data", None, PATH, "its file (default: the one that data/evaluation_download.sh leaves)"),
    Flag("--text", None, PATH, "any text file: --task TEXT --valid-data FILE"),
    Flag("--all", False, BOOLEAN, "every task whose file is there"),
    Flag("--data-dir", "data", PATH, "the folder of data/evaluation_download.sh"),
    Flag("--protocols", None, TEXT, "only these, of a task's protocols", True),
    Flag("--seq-length", 128, _whole(0), "window T in tokens; 0: the checkpoint's n_positions"),
    Flag("--overlapping-eval", 32, _whole(1), "tokens from one sliding window to the next"),
    Flag("--eod-mask-loss", False, BOOLEAN, "leave out what follows <|endoftext|> in the sliding windows"),
    Flag("--strict-lambada", False, BOOLEAN, "the last line is about the last word, not the last BPE token"),
    Flag("--log-interval", 10, _whole(1), "calls from one progress line to the next, where it is no terminal"),
    Flag("--json", None, PATH, "file for all results"),
)


def select(flags: Sequence[Flag], *dests: str, **defaults: Any) -> tuple[Flag, ...]:
    """The flags of a group that another program shares: those in `dests`, in group order, with changed `defaults`.

    Raises ValueError for a name that is not in the group.
    """
    missing = (set(dests) | set(defaults)) - {flag.dest for flag in flags}
    if missing:
        raise ValueError(f"no such flag in this group: {', '.join(sorted(missing))}")
    return tuple(f._replace(default=defaults.get(f.dest, f.default)) for f in flags if f.dest in dests)


TRAIN_GROUPS = {
    "model": MODEL,
    "checkpoints": CHECKPOINT,
    "data": DATA,
    "training": TRAINING,
    "log": LOG,
    "batch": BATCH,
    "placement and memory": PLACEMENT,
}
GENERATE_GROUPS = {
    "generation": GENERATION,
    "sampling": SAMPLING + select(DATA, "seed"),
    "batch": select(BATCH, "batch_size", "device_iterations", device_iterations=1),
    "placement": select(PLACEMENT, "layers_per_ipu", "matmul_proportion", "custom_ops", "compile_only"),
}
EVALUATE_GROUPS = {
    "evaluation": EVALUATION + select(GENERATION, "tokenizer_type", "fp16") + select(DATA, "seed"),
    "checkpoint": select(CHECKPOINT, "pretrained_checkpoint"),
    "batch": select(BATCH, "batch_size", "device_iterations", "replication_factor"),
    "placement and memory": select(
        PLACEMENT,
        *("layers_per_ipu", "ipus_per_replica", "matmul_proportion", "embedding_serialization_factor"),
        *("enable_half_partials", "executable_cache_dir"),
    ),
}

# ---- Reading -----------------------------------------------------------------------------------------------------


class _Formatter(argparse.HelpFormatter):
    """`--old, --new VALUE` once, and the default behind the help text."""

    def __init__(self, prog: str, **rest: Any) -> None:
        super().__init__(prog, max_help_position=36, **rest)

    def _format_action_invocation(self, action: argparse.Action) -> str:
        names = ", ".join(action.option_strings)
        return f"{names} {action.metavar}" if action.metavar else names


class _Store(argparse.Action):
    """Keeps a value under its flag's attribute; what is wrong with it goes to the parser's list of problems.

    argparse ends at the first error. Therefore it is told that every value may be missing, and nothing in it fails.
    """

    def __init__(self, option_strings: Sequence[str], dest: str, flag: Flag, **rest: Any) -> None:
        super().__init__(option_strings, dest, **rest)
        self.flag = flag

    def __call__(self, parser: Any, namespace: argparse.Namespace, values: Any, option_string: Any = None) -> None:
        flag = self.flag
        parser.spelled[self.dest] = option_string
        texts = values if isinstance(values, list) else [values]
        read = []
        problem = None if texts and None not in texts else f"needs a value, {flag.kind.shown}"
        for text in () if problem else texts:
            try:
                read.append(flag.kind.parse(text))
            except ValueError as error:
                problem = f"{text!r} {error}"
                break
        if problem:
            parser.misread[self.dest] = f"{option_string}: {problem}"
        else:
            parser.misread.pop(self.dest, None)  # the last one wins, so an earlier slip is forgiven
            setattr(namespace, self.dest, read if flag.many else read[0])


class Parser(argparse.ArgumentParser):
    """An argument parser over groups of Flags that collects problems; `read` gives the values and the problems."""

    def __init__(self, program: str, about: str, groups: dict[str, Sequence[Flag]]) -> None:
        super().__init__(program, f"{program} [flags]", about, allow_abbrev=False, formatter_class=_Formatter)
        self.spelled: dict[str, str] = {}
        self.misread: dict[str, str] = {}
        self.flags = {flag.dest: flag for group in groups.values() for flag in group}
        for title, group in groups.items():
            section = self.add_argument_group(title)
            for flag in group:
                section.add_argument(
                    *flag.names,
                    action=_Store,
                    flag=flag,
                    nargs="*" if flag.many else "?",
                    const="true" if flag.kind is BOOLEAN else None,
                    default=flag.default,
                    metavar=flag.kind.shown + (" ..." if flag.many else ""),
                    help=flag.help + ("" if flag.default in (None, "") else f" (default: {flag.default})"),
                )

    def read(self, argv: Sequence[str] | None = None) -> Problems:
        """Parses argv (default: the program's own). `--help` exits here, everything else returns."""
        words = [_dashed(word) for word in (sys.argv[1:] if argv is None else argv)]
        args, unknown = self.parse_known_args(words)
        args.typed = set(self.spelled)
        names = {dest: self.spelled.get(dest, flag.names[0]) for dest, flag in self.flags.items()}
        problems = Problems(self.prog, args, names, self.misread)
        problems.lines += self._unknown(unknown)
        problems.lines += self.misread.values()
        return problems

    def _unknown(self, words: Sequence[str]) -> list[str]:
        lines: list[str] = []
        known = [name for flag in self.flags.values() for name in flag.names]
        for word in words:
            name = word.split("=")[0]
            if name.startswith("-"):
                near = [k for k in known if k.startswith(name)] or difflib.get_close_matches(name, known, n=1)
                lines.append(f"{name}: unknown flag" + (f"; did you mean {near[0]}?" if near else "; see --help"))
            elif not lines:  # otherwise it is the value of the unknown flag before it
                lines.append(f"{word!r}: belongs to no flag")
        return lines


def _dashed(word: str) -> str:
    """`--batch_size=1` as `--batch-size=1`; anything that is not a flag stays as it is."""
    name, equals, value = word.partition("=")
    return name.replace("_", "-") + equals + value if re.match(r"--[\w-]+$", name) else word


# ---- The programs ------------------------------------------------------------------------------------------------


def parse_train_args(
    argv: Sequence[str] | None = None, program: str = "train_gpt2.py", trains: bool = True
) -> argparse.Namespace:
    """The flags of train_gpt2.py, read and checked; argv defaults to the program's own.

    A `program` that runs the model forward only and takes the same flags says so with `trains=False`: what a
    training pipeline needs of --gradient-accumulation is then not asked for.

    Attributes are the old spellings. Beyond the values: `typed` is the set of attributes given on the command line,
    `notes` the lines to print at the start about flags without effect, `config` the json file of the model.
    `layers_per_ipu` and `matmul_proportion` (if given) have one entry an IPU, `ipus_per_replica` counts them,
    `recompute_checkpoint_layers` lists the blocks to recompute, `train_path` is "generated", "tfrecord",
    "dynamic" or a .pkl file.

    Raises SystemExit(2) after printing every problem to stderr.
    """
    about = "Pretrain GPT-2. Dashes and underscores are alike in flags; a flag given twice counts as given last."
    problems = Parser(program, about, TRAIN_GROUPS).read(argv)
    check_available(problems)
    config = check_config(problems)
    if config:
        check_boundaries(problems, config)
    placed = problems.sound("layers_per_ipu", "ipus_per_replica")
    if config and placed:
        check_layers(problems, config.n_layer, trains)
        check_proportions(problems, problems.args.ipus_per_replica)
    if config and problems.sound("recompute_checkpoint_layers", "recompute_checkpoint_every_layer"):
        check_recompute(problems, config.n_layer)
    check_serialization(problems, config)
    check_schedule(problems)
    check_validation(problems)
    check_train_path(problems)
    check_checkpoints(problems)
    check_log(problems)
    return problems.finish()


def parse_generate_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """The flags of text_generate_gpt2.py, read and checked; `typed` and `notes` as in parse_train_args.

    `layers_per_ipu` is as given, for the caller to compare with the checkpoint's layers; None: one IPU.

    Raises SystemExit(2) after printing every problem to stderr.
    """
    problems = Parser("text_generate_gpt2.py", "Generate text with GPT-2.", GENERATE_GROUPS).read(argv)
    check_generation(problems)
    return problems.finish()


def parse_evaluate_args(argv: Sequence[str] | None, program: str, task: str) -> argparse.Namespace:
    """The flags of the programs in tasks/, read and checked; `task` is the default of --task.

    `typed` and `notes` as in parse_train_args. `valid_data` is None for a task's own file in --data-dir. For a
    checkpoint on this machine `layers_per_ipu`, `matmul_proportion` and `ipus_per_replica` are as in parse_train_args
    and `seq_length` is the window; for a name on the hub they are as typed.

    Raises SystemExit(2) after printing every problem to stderr.
    """
    own = EVALUATE_GROUPS["evaluation"]
    groups = {**EVALUATE_GROUPS, "evaluation": select(own, *(flag.dest for flag in own), task=task)}
    problems = Parser(program, "Evaluate a GPT-2 checkpoint by published protocols.", groups).read(argv)
    check_evaluation(problems)
    return problems.finish()


# ---- The arithmetic of a call ------------------------------------------------------------------------------------


def samples_per_call(args: argparse.Namespace) -> int:
    """Samples in one call of the training model: micro-batch x accumulation x iterations x replicas."""
    return args.batch_size * args.gradient_accumulation * args.device_iterations * args.replication_factor


def arithmetic(args: argparse.Namespace) -> list[str]:
    """The two lines printed at the start: what a call consists of, and which flags make it smaller."""
    samples = samples_per_call(args)
    tokens = samples * args.max_len
    size = f"{tokens / 1e9:.1f} G" if tokens >= 1e9 else f"{tokens / 1e6:.1f} M" if tokens >= 1e6 else f"{tokens:,}"
    first = (
        f"batch {args.batch_size} x accumulation {args.gradient_accumulation} x iterations {args.device_iterations} "
        f"x replicas {args.replication_factor} = {samples:,} samples, {size} tokens a call"
    )
    flags = ("gradient_accumulation", "device_iterations", "replication_factor", "batch_size")
    shrink = sorted((f for f in flags if getattr(args, f) > 1), key=lambda f: -getattr(args, f))
    names = [f"--{name.replace('_', '-')} {getattr(args, name)}" for name in shrink]
    least = 2 * forward_stages(args.layers_per_ipu) - 1
    pipeline = f" (--gradient-accumulation at least {least} for this pipeline)" if least > 1 else ""
    return [first, "smaller calls: lower " + ", ".join(names + [f"--max-len {args.max_len}"]) + pipeline]
