"""What the flags must satisfy together: the checks that need the values, the model's json and a look at the paths.

A check adds to the list of problems and goes on, so that one run of the program names all of them.
"""

from __future__ import annotations

import argparse
import glob
import importlib.util
import os
import re
import sys
from typing import Mapping, NoReturn, Sequence

from model.config import MODELS, GPT2Config


class Problems:
    """The values read and what is wrong with them. `doubts` are told only if something is wrong for certain.

    `names` has the spelling of every flag for a message, as typed where it was; `misread` the values that could not
    be read. Sets args.notes, the lines that a program prints at its start.
    """

    def __init__(
        self, program: str, args: argparse.Namespace, names: Mapping[str, str], misread: Mapping[str, str]
    ) -> None:
        self.program, self.args, self.names, self.misread = program, args, names, misread
        self.lines: list[str] = []
        self.doubts: list[str] = []
        args.notes = []

    def sound(self, *dests: str) -> bool:
        """Whether these values could be read, so that a check of them means something."""
        return not any(dest in self.misread for dest in dests)

    def shown(self, dest: str) -> str:
        """Flag and value as they were typed, for a message."""
        value = getattr(self.args, dest)
        text = " ".join(map(str, value)) if isinstance(value, list) else str(value)
        return f"{self.names[dest]} {text}".strip() + ("" if dest in self.args.typed else " (default)")

    def add(self, dest: str, text: str) -> None:
        """Notes what is wrong with the value of `dest` and what to do about it."""
        self.lines.append(f"{self.shown(dest)}: {text}")

    def finish(self) -> argparse.Namespace:
        """The values, or the end of the program if anything is wrong."""
        if self.lines:
            refuse(self.program, self.lines + self.doubts)
        return self.args


class BadFlags(ValueError):
    """Flags that the runtime refuses once it sees the whole program."""


def not_installed(error: ModuleNotFoundError) -> str:
    """What to do about a library that is missing."""
    return (
        f"{error}: the environment is not set up. Run `make setup` and `source .venv/bin/activate` (on an IPU host: "
        "the SDK's environment and `pip install -r requirements.txt`)"
    )


def refuse(program: str, problems: Sequence[str]) -> NoReturn:
    """Prints every problem, one a line, to stderr and ends the program with status 2."""
    count = "1 problem" if len(problems) == 1 else f"{len(problems)} problems"
    print(f"{program}: {count}, nothing was started or written", file=sys.stderr)
    for problem in problems:
        print(f"  {problem}", file=sys.stderr)
    raise SystemExit(2)


def check_available(problems: Problems) -> None:
    """The new spellings of --train-path become the old ones. Data flags of another kind of data are refused."""
    args = problems.args
    if args.train_path == "pickle" and problems.sound("data_prefix"):  # the new spelling of a .pkl path
        if not args.data_prefix:
            problems.add("train_path", "name the .pkl file with --input-files FILE")
        elif len(args.data_prefix) > 1 or not args.data_prefix[0].endswith(".pkl"):
            problems.add("data_prefix", "must be one .pkl file; data/wikipedia_preprocess.py makes one")
        else:
            args.train_path = args.data_prefix[0]
    elif args.train_path == "tfrecord":
        check_tfrecords(problems)
    elif args.train_path in ("dynamic", "mmap"):
        args.train_path = "dynamic"
        check_prefix(problems)
    elif args.data_prefix:
        problems.add("data_prefix", "is read with --train-path dynamic; add it, or leave this out")
    if args.train_path != "dynamic" and "sample_order" in args.typed:
        args.notes.append(f"{problems.shown('sample_order')} has no effect: it is for --train-path dynamic")
    if args.tfrecord_path and args.train_path != "tfrecord":
        problems.add("tfrecord_path", "these files are read with --train-path tfrecord; add it, or leave this out")


def check_prefix(problems: Problems) -> None:
    """args.data_prefix is the prefix of one .bin and its .idx."""
    args = problems.args
    if not problems.sound("data_prefix"):
        return
    if not args.data_prefix:
        problems.add("train_path", "name the data with --data-prefix <path>/my-gpt2_text_document")
        return
    if len(args.data_prefix) > 1:
        problems.add("data_prefix", "takes one prefix; data/preprocess_megatron.py makes one corpus of several files")
        return
    prefix = args.data_prefix[0]
    for ending in (".bin", ".idx"):
        if prefix.endswith(ending) and os.path.exists(prefix):
            problems.add("data_prefix", f"leave the ending out: {prefix[: -len(ending)]}")
            return
    missing = [prefix + ending for ending in (".bin", ".idx") if not os.path.isfile(prefix + ending)]
    if missing:
        problems.add("data_prefix", f"there is no {' and no '.join(missing)}; data/preprocess_megatron.py makes them")
    if "stride" in args.typed:
        args.notes.append(f"{problems.shown('stride')} has no effect: samples follow one another without overlap")


def check_tfrecords(problems: Problems) -> None:
    """Afterwards args.tfrecord_path has the files and patterns, from either flag, and each of them names a file."""
    args = problems.args
    if not problems.sound("tfrecord_path", "data_prefix"):
        return
    if args.tfrecord_path and args.data_prefix:
        problems.add("data_prefix", f"contradicts {problems.names['tfrecord_path']}; leave one of the two out")
        return
    dest = "data_prefix" if args.data_prefix else "tfrecord_path"
    args.tfrecord_path = args.tfrecord_path or args.data_prefix
    if not args.tfrecord_path:
        problems.add("train_path", "name the files with --tfrecord-path '<path>/*.tfrecord'")
    for pattern in args.tfrecord_path or ():
        if not os.path.exists(pattern) and not glob.glob(pattern):
            remedy = "data/write_into_tfrecord.py writes them"
            problems.lines.append(f"{problems.names[dest]} {pattern}: there is no such file; {remedy}")
    if "stride" in args.typed:
        args.notes.append(f"{problems.shown('stride')} has no effect: the records were cut when they were written")


def check_config(problems: Problems) -> GPT2Config | None:
    """Sets args.config to the json file of the model and reads it; None if that is not possible."""
    args = problems.args
    if not problems.sound("model", "config"):
        return None
    dest = "config" if args.config else "model"
    path = args.config = str(args.config or MODELS[args.model])
    try:
        return GPT2Config.from_json(path)
    except ValueError as error:
        problems.lines.append(f"{problems.names[dest]}: " + " ".join(str(error).split()))
        return None


def check_boundaries(problems: Problems, config: GPT2Config) -> None:
    """Documents are told apart by the id that ends them."""
    if problems.args.document_boundaries == "isolated":
        try:
            config.end_of_text()
        except ValueError as error:
            problems.add("document_boundaries", str(error))


def forward_stages(layers_per_ipu: Sequence[int]) -> int:
    """Stages of the forward pipeline: wte on IPU 0, wpe on IPU 1, the blocks, the tied head back on IPU 0.

    Neighbours on one IPU are one stage, so the count is the moves from IPU to IPU plus one (0 4 4 4 gives 0 1 2 3 0).
    """
    blocks = [ipu for ipu, count in enumerate(layers_per_ipu) for _ in range(count)]
    visits = [0, min(1, len(layers_per_ipu) - 1)] + blocks + [0]
    return 1 + sum(here != there for here, there in zip(visits, visits[1:]))


def check_layers(problems: Problems, n_layer: int, trains: bool) -> None:
    """Expands --layers-per-ipu; afterwards args.ipus_per_replica is its length."""
    args = problems.args
    layers, ipus = args.layers_per_ipu, args.ipus_per_replica
    if layers is None:
        layers = [n_layer]
        if "ipus_per_replica" in args.typed and ipus > 1:
            args.notes.append(f"{problems.shown('ipus_per_replica')} without --layers-per-ipu: IPU 0 alone is used")
    elif len(layers) == 1:
        layers = layers * ipus
    count_fits = "ipus_per_replica" not in args.typed or len(layers) == ipus or args.layers_per_ipu is None
    if not count_fits:
        remedy = f"give {ipus} numbers, or --ipus-per-replica {len(layers)}"
        problems.add("layers_per_ipu", f"{len(layers)} numbers for {problems.shown('ipus_per_replica')}; {remedy}")
    if sum(layers) != n_layer:
        each = f" ({args.layers_per_ipu[0]} on each of {ipus} IPUs)" if len(args.layers_per_ipu) == 1 else ""
        remedy = f"make the numbers add up to {n_layer}, or leave it out for one IPU"
        problems.add("layers_per_ipu", f"{sum(layers)} blocks{each}, but the model has {n_layer}; {remedy}")
    elif trains and count_fits and problems.sound("gradient_accumulation"):
        stages = forward_stages(layers)
        if args.gradient_accumulation < 2 * stages - 1:
            problems.add(
                "gradient_accumulation",
                f"a pipeline of {stages} forward stages ({problems.shown('layers_per_ipu')}) needs at least "
                f"2 x {stages} - 1 = {2 * stages - 1} micro-batches a weight update; raise it to {2 * stages - 1}",
            )
    args.layers_per_ipu, args.ipus_per_replica = layers, len(layers) if count_fits else ipus


def check_proportions(problems: Problems, ipus: int) -> None:
    """Expands --matmul-proportion to one fraction an IPU; None stays None."""
    args = problems.args
    if args.matmul_proportion is None or not problems.sound("matmul_proportion"):
        return
    if len(args.matmul_proportion) == 1:
        args.matmul_proportion = args.matmul_proportion * ipus
    elif len(args.matmul_proportion) != ipus:
        problems.add(
            "matmul_proportion",
            f"{len(args.matmul_proportion)} fractions for {ipus} IPU{'s' if ipus > 1 else ''}; give one for each IPU "
            "of --layers-per-ipu, or one number for all",
        )


def check_recompute(problems: Problems, n_layer: int) -> None:
    """Afterwards args.recompute_checkpoint_layers lists the blocks to recompute, sorted; empty: none."""
    args = problems.args
    layers, every = args.recompute_checkpoint_layers, args.recompute_checkpoint_every_layer
    if layers is None:
        args.recompute_checkpoint_layers = list(range(n_layer)) if every else []
        return
    wrong = [layer for layer in layers if layer >= n_layer]
    if wrong:
        remedy = f"the blocks are 0 to {n_layer - 1}"
        problems.add("recompute_checkpoint_layers", f"there is no block {', '.join(map(str, wrong))}; {remedy}")
    if "recompute_checkpoint_every_layer" in args.typed and not every:
        problems.add(
            "recompute_checkpoint_layers",
            f"contradicts {problems.shown('recompute_checkpoint_every_layer')}; leave one of the two out",
        )
    args.recompute_checkpoint_layers = sorted(set(layers))


def check_serialization(problems: Problems, config: GPT2Config | None) -> None:
    """Blocks of the vocabulary and of the sequence must come out even."""
    args = problems.args
    factor = args.embedding_serialization_factor
    if config and problems.sound("embedding_serialization_factor") and config.vocab_size % factor:
        fits = ", ".join(str(n) for n in range(1, 65) if config.vocab_size % n == 0)
        text = f"does not divide the vocabulary of {config.vocab_size}; choose one of {fits}"
        problems.add("embedding_serialization_factor", text)
    if args.remap_logit and not args.custom_ops:
        problems.add("remap_logit", "needs the custom ops; leave out --custom-ops False, or this flag")
    if not problems.sound("serialized_seq_len", "max_len", "enable_sequence_serialized"):
        return
    if "serialized_seq_len" not in args.typed and args.max_len < args.serialized_seq_len:
        args.serialized_seq_len = args.max_len  # the default is for longer sequences
    if args.enable_sequence_serialized and args.max_len % args.serialized_seq_len:
        fits = max(n for n in range(1, min(args.serialized_seq_len, args.max_len) + 1) if args.max_len % n == 0)
        text = f"does not divide {problems.shown('max_len')}; choose a divisor such as {fits}"
        problems.add("serialized_seq_len", text)
    if "serialized_seq_len" in args.typed and not args.enable_sequence_serialized:
        shown = problems.shown("serialized_seq_len")
        args.notes.append(f"{shown} has no effect without --enable-sequence-serialized True")


def check_schedule(problems: Problems) -> None:
    """The warm-up is given once and fits into the schedule."""
    args = problems.args
    if "lr_warmup" in args.typed and "lr_warmup_steps" in args.typed:
        problems.lines.append("--lr-warmup and --lr-warmup-steps contradict each other; give one of them")
    steps = args.lr_warmup_steps
    if steps is not None and args.lr_decay_steps is not None and steps > args.lr_decay_steps:
        remedy = "the warm-up is part of the decay steps"
        problems.add("lr_warmup_steps", f"longer than {problems.shown('lr_decay_steps')}; {remedy}")


def check_validation(problems: Problems) -> None:
    """Validating every so many steps needs samples to validate on."""
    args = problems.args
    if args.eval_steps is not None and not args.val_num and problems.sound("eval_steps", "val_num"):
        problems.add("eval_steps", "there is nothing to validate on without --val-num N; add it")


def check_folder(problems: Problems, dest: str) -> None:
    """A folder to be written: it, or the nearest parent that exists, must be a writable folder."""
    path = getattr(problems.args, dest)
    if not path:
        return
    there = os.path.abspath(path)
    while not os.path.lexists(there):
        there = os.path.dirname(there)
    if not os.path.isdir(there):
        problems.add(dest, f"{there} is a file; name a folder")
    elif not os.access(there, os.W_OK | os.X_OK):
        problems.add(dest, f"{there} cannot be written; name another folder")


def check_checkpoint_source(problems: Problems, dest: str) -> None:
    """A local folder must exist; what looks like a hub name (`gpt2`, `owner/name`) is left to the loader."""
    source = getattr(problems.args, dest)
    if not source or os.path.isdir(source):
        if source and not os.access(source, os.R_OK | os.X_OK):
            problems.add(dest, "this folder cannot be read; check its permissions")
    elif os.path.lexists(source):
        problems.add(dest, "not a folder; name the folder that holds config.json and the weights")
    elif re.match(r"\w[\w.-]*(/\w[\w.-]*)?$", source) and not os.path.isdir(source.split("/")[0]):
        if dest in problems.args.typed:
            doubt = "there is no such folder; it would be taken as a hub name"
            problems.doubts.append(f"{problems.shown(dest)}: {doubt}")
    else:
        problems.add(dest, "there is no such folder; check the path")


def check_checkpoints(problems: Problems) -> None:
    """What is read exists, what is written can be, and no flag about saving or resuming is left without its folder."""
    args = problems.args
    check_checkpoint_source(problems, "pretrained_checkpoint")
    check_folder(problems, "save_model_path")
    check_folder(problems, "executable_cache_dir")
    if args.resume_training_from_checkpoint and not os.path.isdir(args.pretrained_checkpoint):
        if not args.pretrained_checkpoint:
            remedy = "name the folder to go on from with --pretrained-checkpoint SAVE/step_N"
            problems.add("resume_training_from_checkpoint", remedy)
        elif problems.doubts:  # a hub name: it cannot hold a training state
            problems.lines.append(problems.doubts.pop() + ", which holds no training state to resume")
    if args.save_model_path:
        return
    for dest in ("save_per_epochs", "save_per_steps", "keep_checkpoints"):
        if dest in args.typed and problems.sound("save_model_path", dest):
            problems.add(dest, "nothing is saved without --save-model-path DIR; add it")
    args.notes.append("no --save-model-path: nothing will be saved")


def check_generation(problems: Problems) -> None:
    """What the flags of text_generate_gpt2.py must satisfy together."""
    args = problems.args
    check_checkpoint_source(problems, "model_name_or_path")
    if args.prompt is not None and args.prompt_file is not None:
        problems.add("prompt_file", "contradicts --prompt; leave one of the two out")
    if args.int8 and args.fp16:
        problems.add("int8", "contradicts --fp16; leave one of the two out")
    if args.int8 and not args.custom_ops:
        problems.add("int8", "needs the custom ops; leave out --custom-ops False, or this flag")
    if args.poptorch_loop and not args.single_ipu:
        problems.add("poptorch_loop", "needs --single-ipu true")
    if not args.poptorch_loop and problems.sound("device_iterations") and args.device_iterations > 1:
        remedy = "there is one cache: raise --batch-size instead, or add --poptorch-loop true --single-ipu true"
        problems.add("device_iterations", remedy)
    ipus = 1
    if args.layers_per_ipu is not None and problems.sound("layers_per_ipu"):
        ipus = len(args.layers_per_ipu)
        if args.single_ipu and ipus > 1:
            problems.add("layers_per_ipu", "contradicts --single-ipu true; leave one of the two out")
    if args.matmul_proportion is not None and len(args.matmul_proportion) > 1:
        check_proportions(problems, ipus)
    if "" in args.stop_string:
        problems.add("stop_string", "an empty text stops nothing; give one of at least one character")
    if args.save_samples_path:
        if os.path.isdir(args.save_samples_path):
            problems.add("save_samples_path", "this is a folder; name a file")
        elif not os.path.isdir(os.path.dirname(os.path.abspath(args.save_samples_path))):
            problems.add("save_samples_path", "its folder does not exist; create it first")


def check_train_path(problems: Problems) -> None:
    """args.train_path is "generated" or a .pkl file that can be read."""
    path = problems.args.train_path
    if path in ("generated", "pickle", "tfrecord", "dynamic", "mmap"):
        return
    dest = "data_prefix" if problems.args.data_prefix == [path] else "train_path"
    if not path.endswith(".pkl"):
        problems.add(dest, "neither generated nor a .pkl file; data/wikipedia_preprocess.py makes one")
    elif not os.path.exists(path):
        problems.add(dest, "there is no such file; data/wikipedia_preprocess.py makes one")
    elif not os.path.isfile(path) or not os.access(path, os.R_OK):
        problems.add(dest, "not a file that can be read; check the path and its permissions")


def installed(package: str) -> bool:
    """Whether a package could be imported; it is not."""
    return importlib.util.find_spec(package) is not None


def check_log(problems: Problems) -> None:
    """Where the log is to go can be written, its packages are there, the reference can be read."""
    args = problems.args
    check_folder(problems, "log_dir")
    for dest, package, topic in (("log_dir", "tensorboard", "tensorboard"), ("use_wandb", "wandb", "wandb")):
        if getattr(args, dest) and problems.sound(dest) and not installed(package):
            problems.add(
                dest, f"{package} is not installed; pip install -r requirements-{topic}.txt, or leave the flag out"
            )
    if args.log_gradient_norm and not (args.log_dir or args.use_wandb or args.save_model_path):
        problems.add("log_gradient_norm", "nothing keeps it; add --log-dir DIR, --use-wandb or --save-model-path DIR")
    curve = args.reference_curve
    if curve is not None and not (os.path.isfile(curve) and os.access(curve, os.R_OK)):
        problems.add("reference_curve", "there is no such file; a run leaves curves.csv in its --save-model-path")
