"""What the flags of an optimizer and its schedule must satisfy together."""

from __future__ import annotations

from command_line.checks import Problems
from model.config_checks import DROPOUTS

_CLIPPING = ("gradient_clipping", "tensor_gradient_clipping")


def check_schedule(problems: Problems) -> None:
    """The warm-up is given once and fits into the schedule."""
    args = problems.args
    if "lr_warmup" in args.typed and "lr_warmup_steps" in args.typed:
        problems.lines.append("--lr-warmup and --lr-warmup-steps contradict each other; give one of them")
    steps = args.lr_warmup_steps
    if steps is not None and args.lr_decay_steps is not None and steps > args.lr_decay_steps:
        remedy = "the warm-up is part of the decay steps"
        problems.add("lr_warmup_steps", f"longer than {problems.shown('lr_decay_steps')}; {remedy}")
    if args.lr_schedule == "constant" and steps is not None:  # otherwise the warm-up is a fraction of them
        problems.ignored("lr_decay_steps", " with --lr-schedule constant and --lr-warmup-steps")


def check_sequence_warmup(problems: Problems) -> None:
    """Lengths that ascend to --max-len, which blocks of positions divide, and how long each lasts."""
    args = problems.args
    if not problems.sound("sequence_warmup", "sequence_warmup_steps", "max_len"):
        return
    lengths = args.sequence_warmup
    if lengths is None:
        if args.sequence_warmup_steps is not None:
            problems.add("sequence_warmup_steps", "has no effect without --sequence-warmup LENGTH …; add it")
        return
    if args.sequence_warmup_steps is None:
        problems.add("sequence_warmup", "needs the steps at each length, --sequence-warmup-steps N; add it")
    if any(here >= there for here, there in zip(lengths, [*lengths[1:], args.max_len])):
        problems.add("sequence_warmup", f"must ascend, and end below {problems.shown('max_len')}")
    elif args.enable_sequence_serialized and problems.sound("serialized_seq_len", "enable_sequence_serialized"):
        uneven = [str(length) for length in lengths if length % args.serialized_seq_len]
        if uneven:
            block = problems.shown("serialized_seq_len")
            problems.add("sequence_warmup", f"{block} does not divide {', '.join(uneven)}; choose a block that does")


def check_optimizer(problems: Problems) -> None:
    """The optimizer has what the flags say of it, two betas below 1, and a floor below the peak of the learning rate.

    Afterwards args.adam_betas has both, and args.dropout, if given, the three probabilities in the order of
    model.config.DROPOUTS.
    """
    args = problems.args
    if args.adam_betas is None:
        args.adam_betas = [0.9, 0.999]
    elif problems.sound("adam_betas"):
        if len(args.adam_betas) != 2 or max(args.adam_betas) == 1.0:
            problems.add("adam_betas", "must be two numbers from 0 to below 1, such as 0.9 0.95")
    if problems.sound("optimizer"):
        check_numbers_of_optimizer(problems)
        check_clipping(problems)
    if problems.sound("min_learning_rate", "learning_rate") and args.min_learning_rate > args.learning_rate:
        problems.add("min_learning_rate", f"above {problems.shown('learning_rate')}, the highest; lower it")
    elif args.min_learning_rate and args.lr_schedule == "constant":
        problems.ignored("min_learning_rate", " with --lr-schedule constant, which does not fall")
    if args.auto_loss_scaling:
        problems.ignored("loss_scaling", f" beside {problems.shown('auto_loss_scaling')}, which begins at 1")
    if not args.weight_decay and problems.sound("weight_decay"):
        problems.ignored("weight_decay_groups", f" with {problems.shown('weight_decay')}")
    if args.dropout is not None and problems.sound("dropout"):
        if len(args.dropout) not in (1, len(DROPOUTS)) or max(args.dropout) == 1.0:
            text = "must be one number from 0 to below 1, or three: residual, embedding, attention"
            problems.add("dropout", text)
        elif len(args.dropout) == 1:
            args.dropout = args.dropout * len(DROPOUTS)


def check_numbers_of_optimizer(problems: Problems) -> None:
    """No number is given for another optimizer than the one chosen."""
    args = problems.args
    if args.optimizer == "SGD" or args.optimizer.startswith("Adafactor"):
        for dest in ("adam_betas", "adam_epsilon"):
            if dest in args.typed and problems.sound(dest):
                problems.add(
                    dest, f"has no effect with {problems.shown('optimizer')}, which has no such number; leave it out"
                )
    if args.optimizer != "SGD" and "sgd_momentum" in args.typed and problems.sound("sgd_momentum"):
        problems.add("sgd_momentum", f"has no effect with {problems.shown('optimizer')}; it is for --optimizer SGD")
    elif args.sgd_momentum == 1.0 and problems.sound("sgd_momentum"):
        problems.add("sgd_momentum", "must be below 1")
    plain = args.optimizer in ("AdamW", "Adam", "LAMB", "LAMBNoBiasCorrection") and not args.tensor_gradient_clipping
    if args.log_gradient_norm and not plain and problems.sound("tensor_gradient_clipping"):
        dest = "optimizer" if args.tensor_gradient_clipping is None else "tensor_gradient_clipping"
        remedy = "is read off the first moments that PopTorch's Adam and LAMB keep; leave it out"
        problems.add("log_gradient_norm", f"with {problems.shown(dest)}: the norm {remedy}")


def check_clipping(problems: Problems) -> None:
    """Gradients are clipped in one way, and one that the optimizer has."""
    args = problems.args
    whole, tensor = (problems.sound(dest) and getattr(args, dest) is not None for dest in _CLIPPING)
    if whole and args.optimizer.startswith("LAMB"):
        remedy = "leave it out, or use --optimizer AdamW or Adam"
        problems.add("gradient_clipping", f"PopTorch's LAMB cannot clip (it has no max_grad_norm); {remedy}")
    if whole and args.optimizer == "SGD" and args.auto_loss_scaling:
        remedy = "PopTorch's SGD measures gradients times the loss scale, which that changes; leave one of the two out"
        problems.add(
            "gradient_clipping", f"contradicts {problems.shown('auto_loss_scaling')} with --optimizer SGD: {remedy}"
        )
    if whole and tensor:
        shown = problems.shown("gradient_clipping")
        problems.add("tensor_gradient_clipping", f"contradicts {shown}; leave one of the two out")
    elif tensor and args.optimizer not in ("AdamW", "Adam", "AdamW8bit"):
        remedy = "only AdamW, Adam and AdamW8bit clip each parameter's gradient; use one of them or leave it out"
        problems.add("tensor_gradient_clipping", f"with {problems.shown('optimizer')}: {remedy}")
