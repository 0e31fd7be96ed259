"""What the flags of train_gpt2.py must satisfy together, with the model's json, and with the paths they name."""

from __future__ import annotations

import os

from command_line.checks import Problems, check_checkpoint_source, check_folder, check_profile, installed
from command_line.data_checks import validates
from command_line.training_flags import FORWARD, TRAIN_GROUPS
from model.balance import balanced_layers
from model.config import GPT2Config, padded_rows, read_json_object
from model.layout import Layout


def check_boundaries(problems: Problems, config: GPT2Config) -> None:
    """Documents are told apart by the id that ends them. Where the json file has none, the data's tokenizer may."""
    if problems.args.document_boundaries == "isolated" and "eos_token_id" in read_json_object(problems.args.config):
        try:
            config.end_of_text()
        except ValueError as error:
            problems.add("document_boundaries", str(error))


def check_balance(problems: Problems, config: GPT2Config, trains: bool) -> bool:
    """--layers-per-ipu auto becomes the numbers it stands for, which a note tells. False if there are none."""
    args = problems.args
    if "auto" not in (args.layers_per_ipu or ()):
        return True
    if len(args.layers_per_ipu) > 1:
        problems.add("layers_per_ipu", "auto stands for all numbers; leave them out, or auto")
        return False
    if not problems.sound("max_len", "gradient_accumulation", "recompute_checkpoint_layers"):
        return False
    ipus, micro_batches = args.ipus_per_replica, args.gradient_accumulation if trains else None
    again = args.recompute_checkpoint_layers
    try:
        split = balanced_layers(config, args.max_len, ipus, again, trains, micro_batches)
    except ValueError as error:
        problems.add("layers_per_ipu", f"{error}; lower {problems.shown('ipus_per_replica')}")
        return False
    args.layers_per_ipu = split
    args.notes.append(f"--layers-per-ipu auto: {' '.join(map(str, split))}")
    return True


def check_plan(problems: Problems, trains: bool) -> None:
    """A plan of machines that are not here is asked for with --compile-only, and its processes can share the run."""
    args = problems.args
    for dest in ("plan_processes", "plan_device"):
        if getattr(args, dest) is not None and problems.sound(dest):
            if not trains:
                problems.add(dest, "only train_gpt2.py has a plan; leave it out")
            elif not args.compile_only:
                problems.add(dest, "is about the plan of --compile-only; add it (torchrun starts processes)")
    if args.plan_processes is not None and problems.sound("plan_processes", "replication_factor"):
        try:
            Layout(args.plan_processes, args.replication_factor, args.ipus_per_replica)
        except ValueError as error:
            problems.add("plan_processes", str(error))


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
        rows = padded_rows(config.real_vocab_size)  # what is in memory
        if rows % factor:
            fits = ", ".join(str(n) for n in range(1, 65) if rows % n == 0)
            text = f"does not divide the vocabulary of {rows}; choose one of {fits}"
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
    if not args.enable_sequence_serialized:
        problems.ignored("serialized_seq_len", " without --enable-sequence-serialized True")


def check_global_batch(problems: Problems, trains: bool) -> None:
    """--gradient-accumulation follows from --global-batch-size, which the micro-batches of all replicas divide.

    Of --batch-size auto, args.gradient_accumulation becomes the micro-batches that a replica has if each is one sample:
    the most there can be.
    """
    args = problems.args
    auto = args.batch_size == "auto"
    if auto and not trains:
        problems.add("batch_size", "only train_gpt2.py looks for a micro-batch; give a number")
        args.batch_size = 1
    elif auto and args.compile_only:
        problems.add("batch_size", "--compile-only tries nothing out; give a number")
        args.batch_size = 1
    elif auto and args.global_batch_size is None and problems.sound("global_batch_size"):
        problems.add("batch_size", "needs the samples of a weight update, --global-batch-size N; add it")
        args.batch_size = 1
    if args.global_batch_size is None or not problems.sound("batch_size", "replication_factor", "global_batch_size"):
        return
    if "gradient_accumulation" in args.typed:
        problems.add("global_batch_size", "decides --gradient-accumulation; leave one of the two out")
        return
    least = (1 if auto else args.batch_size) * args.replication_factor
    if args.global_batch_size % least:
        parts = [] if auto else [problems.shown("batch_size")]
        parts.append(problems.shown("replication_factor"))
        nearest = max(least, args.global_batch_size // least * least)
        problems.add("global_batch_size", f"no multiple of {' x '.join(parts)}; the next is {nearest}")
        return
    args.gradient_accumulation = args.global_batch_size // least


def check_validation(problems: Problems) -> None:
    """Validating needs samples to validate on. A run that validation may end keeps its best checkpoint."""
    args = problems.args
    for dest in ("eval_steps", "early_stopping"):
        if getattr(args, dest) is not None and not validates(args) and problems.sound(dest, "val_num"):
            problems.add(dest, "there is nothing to validate on without --val-num N or --validation-files; add one")
    if args.early_stopping and validates(args) and args.save_model_path:
        args.keep_best = True


def check_checkpoints(problems: Problems) -> None:
    """What is read exists, what is written can be, and no flag about saving or resuming is left without its folder.

    Afterwards --resume PATH is --resume-training-from-checkpoint with that --pretrained-checkpoint, and args.resume is
    "latest" or None.
    """
    args = problems.args
    if args.resume and args.resume_training_from_checkpoint:  # as in the command that is printed at an interruption
        problems.ignored("resume", " beside --resume-training-from-checkpoint")
        args.resume = None
    resumed = "resume" if args.resume not in (None, "latest") else "pretrained_checkpoint"
    check_checkpoint_source(problems, resumed)
    if resumed == "resume":
        problems.ignored("pretrained_checkpoint", f" beside {problems.shown('resume')}")
    if args.overwrite and args.resume == "latest":
        problems.ignored("overwrite", " where --resume latest finds a checkpoint")
    if resumed == "resume":
        args.pretrained_checkpoint, args.resume, args.resume_training_from_checkpoint = args.resume, None, True
    check_folder(problems, "save_model_path")
    check_folder(problems, "executable_cache_dir")
    source = args.pretrained_checkpoint
    if args.resume_training_from_checkpoint and not os.path.isdir(source):
        if not source:
            remedy = "name the folder to go on from with --pretrained-checkpoint SAVE/step_N"
            problems.add("resume_training_from_checkpoint", remedy)
        elif problems.doubts:  # a hub name: it cannot hold a training state
            problems.lines.append(problems.doubts.pop() + ", which holds no training state to resume")
    if args.keep_best and not validates(args) and problems.sound("keep_best", "val_num"):
        problems.add("keep_best", "there is no held-out loss without --val-num N or --validation-files; add one")
    if args.save_model_path:
        return
    if args.resume == "latest":
        problems.add("resume", "looks in --save-model-path DIR, which is missing; add it")
    elif args.keep_best and validates(args):
        problems.add("keep_best", "nothing is saved without --save-model-path DIR; add it")
    for dest in ("save_per_epochs", "save_per_steps", "keep_checkpoints", "on_save_error", "overwrite", "time_limit"):
        if dest in args.typed and problems.sound("save_model_path", dest):
            problems.add(dest, "nothing is saved without --save-model-path DIR; add it")
    args.notes.append("no --save-model-path: nothing will be saved")


def check_forward(problems: Problems) -> None:
    """Notes which flags have no effect in a program that runs the model forward only."""
    for group in TRAIN_GROUPS.values():
        for flag in group:
            if flag.dest not in FORWARD and getattr(problems.args, flag.dest) != flag.default:
                problems.ignored(flag.dest, ": nothing is trained or saved")


def check_log(problems: Problems) -> None:
    """Where the log is to go can be written, its packages are there, the reference can be read."""
    args = problems.args
    check_folder(problems, "log_dir")
    check_profile(problems)
    if args.profile and args.plan_processes is not None and problems.sound("profile", "plan_processes"):
        problems.add("plan_processes", "has no page: that is of the program this process compiles; leave --profile out")
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
