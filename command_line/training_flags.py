"""Every flag of train_gpt2.py, which inference_gpt2.py takes as well; other programs share some of them."""

from __future__ import annotations

from command_line.flags import (
    BOOLEAN,
    DURATION,
    HERE_OR_FOLDER,
    PATH,
    PATH_OR_NONE,
    TEXT,
    Flag,
    one_of,
    or_word,
    real,
    whole,
)
from model.config import MODELS

# The first five are PopTorch's.
OPTIMIZERS = ("AdamW", "Adam", "LAMB", "LAMBNoBiasCorrection", "SGD", "Adafactor", "AdafactorNoScaling", "AdamW8bit")

MODEL = (
    Flag("--model", "gpt2", one_of(*MODELS), "size of the model, a file in config/"),
    Flag("--config", None, PATH, "another json file in place of the one --model stands for"),
    Flag("--max-len", 128, whole(2), "sequence length T in tokens; sets n_positions"),
)
CHECKPOINT = (
    Flag(
        "--pretrained-checkpoint --checkpoint-input-dir",
        "",
        PATH_OR_NONE,
        "Hugging Face folder or hub name to start from",
    ),
    Flag("--save-model-path --checkpoint-output-dir", None, PATH, "folder for checkpoints; without it none is saved"),
    Flag("--save-per-epochs", 1, whole(0), "epochs from one checkpoint to the next; 0: none at the end of epochs"),
    Flag("--save-per-steps", None, whole(1), "steps from one checkpoint to the next"),
    Flag("--keep-checkpoints", 0, whole(0), "how many of this run's newest checkpoints stay; 0: all"),
    Flag("--keep-best", False, BOOLEAN, "also keep the checkpoint of the lowest held-out loss, in the folder best"),
    Flag(
        "--on-save-error",
        "stop",
        one_of("stop", "continue"),
        "what follows if a checkpoint cannot be written: the run ends, or goes on without that one",
    ),
    Flag(
        "--resume-training-from-checkpoint", False, BOOLEAN, "restore the whole training state, not the weights alone"
    ),
    Flag(
        "--resume",
        None,
        PATH,
        "checkpoint to resume; latest: the newest whole one of --save-model-path, or the start if there is none",
    ),
    Flag("--overwrite", False, BOOLEAN, "start over where an earlier run saved; equal names are replaced"),
)
DATA = (
    Flag(
        "--train-path --dataset",
        "generated",
        TEXT,
        "generated, a .pkl or .txt file, tfrecord or dynamic (Megatron's mmap); new: pickle (also several), tfrecord, "
        "webdataset, mmap with --input-files",
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
        one_of("megatron", "reference"),
        "Megatron-LM's order of mmap samples, or the reference application's, which never keeps a last epoch apart",
    ),
    Flag("--stride", 128, whole(1), "step in tokens of the window over an article longer than --max-len"),
    Flag(
        "--windows",
        "article",
        one_of("article", "stream", "first"),
        "samples of a .pkl or .txt: windows over each article; over all as one text (stream), each token once without "
        "--stride; or the beginnings of articles (first), whose losses are approximate",
    ),
    Flag(
        "--short-articles",
        "half",
        one_of("half", "pad", "skip"),
        "articles below --max-len + 1: padded from half of it on, padded all, or left out",
    ),
    Flag("--last-window", "drop", one_of("drop", "pad"), "the rest behind the last whole window of --windows stream"),
    Flag("--control-codes", None, TEXT, "an entry of the vocabulary for each data set, put before its samples", True),
    Flag("--validation-files", None, PATH, "a .pkl or .txt for each data set, to validate on", True),
    Flag(
        "--document-boundaries",
        "stream",
        one_of("stream", "isolated"),
        "isolated: within a sample no document sees another, positions start again and no label crosses",
    ),
    Flag("--val-num", 0, whole(0), "samples held out for validation, in whole articles"),
    Flag("--seed", 1234, whole(0, 2**32 - 1), "seed of weights, order of samples, dropout and what is drawn"),
    Flag("--num-workers", 4, whole(0), "processes that read data; 0: the program itself"),
    Flag("--async-dataloader", False, BOOLEAN, "a process of its own puts batches together, in shared memory"),
)
TRAINING = (
    Flag("--epochs", 1, whole(1), "passes over the data; ends here or at --training-steps, whichever is first"),
    Flag("--training-steps", 10000, whole(1), "calls of the training model, --device-iterations updates each"),
    Flag(
        "--time-limit",
        None,
        DURATION,
        "end with a checkpoint before this much time has passed since the start: seconds, 90m, 4h, [[D-]H:]MM:SS",
    ),
    Flag(
        "--optimizer",
        "AdamW",
        one_of(*OPTIMIZERS),
        "update rule; on an IPU one of the first five",
    ),
    Flag("--weight-decay", 0.0, real(0), "decay of parameters with two dimensions"),
    Flag(
        "--weight-decay-groups",
        "matrices",
        one_of("matrices", "gpt-star"),
        "what decays: parameters with two dimensions, or all but biases, norms of blocks and positions",
    ),
    Flag("--learning-rate", 1e-5, real(0), "peak learning rate"),
    Flag("--min-learning-rate", 0.0, real(0), "where the linear and the cosine schedule end, and stay"),
    Flag(
        "--adam-betas", None, real(0, 1), "decay of the two moments of Adam's kinds and LAMB (default: 0.9 0.999)", True
    ),
    Flag("--adam-epsilon", 1e-6, real(0, above=True), "added to the root of the second moment of these"),
    Flag("--sgd-momentum", 0.9, real(0, 1), "momentum of --optimizer SGD"),
    Flag("--gradient-clipping", None, real(0, above=True), "largest norm of the whole gradient; not with LAMB"),
    Flag(
        "--tensor-gradient-clipping",
        None,
        real(0, above=True),
        "largest norm of each parameter's gradient (Keras's clipnorm), with Adam's kinds; not on an IPU",
    ),
    Flag("--dropout", None, real(0, 1), "probability of dropout; or three: residual, embedding, attention", True),
    Flag("--loss-scaling", 50000.0, real(0, 1e30, above=True), "factor on the loss for half gradients' sake"),
    Flag("--auto-loss-scaling", False, BOOLEAN, "adapt the factor, from 1, instead"),
    Flag("--lr-schedule", "constant", one_of("linear", "constant", "cosine"), "course of the learning rate"),
    Flag("--lr-warmup", 0.1, real(0, 1), "warm-up as a fraction of the decay steps"),
    Flag("--lr-warmup-steps", None, whole(0), "warm-up in steps, in place of --lr-warmup"),
    Flag("--lr-decay-steps", None, whole(1), "steps the schedule spans (default: the calls planned)"),
    Flag(
        "--sequence-warmup",
        None,
        whole(2),
        "lengths to begin with, ascending, below --max-len: the first tokens of each sample",
        True,
    ),
    Flag("--sequence-warmup-steps", None, whole(1), "steps at each of these lengths"),
    Flag("--enable-sequence-serialized", False, BOOLEAN, "compute head and loss in blocks of positions: less memory"),
    Flag("--serialized-seq-len", 128, whole(1), "positions in such a block"),
)
LOG = (
    Flag(
        "--eval-steps", None, whole(1), "steps from one validation of --val-num to the next; also at every epoch's end"
    ),
    Flag(
        "--early-stopping",
        None,
        whole(1),
        "end after N validations in a row without a lower held-out loss; the best checkpoint is kept",
    ),
    Flag("--log-steps", 1, whole(1), "steps from one log line to the next"),
    Flag("--log-dir", None, PATH, "folder for TensorBoard's files; curves and run.json too without --save-model-path"),
    Flag("--use-wandb", False, BOOLEAN, "log to Weights & Biases: offline unless a key is configured"),
    Flag("--log-gradient-norm", False, BOOLEAN, "log the gradient's norm; copies the optimizer's state each time"),
    Flag("--reference-curve", None, PATH, "curves.csv of an earlier run to compare the losses with at the end"),
    Flag("--peak-tflops", None, real(0, above=True), "the device's peak, for the share of it in the log line"),
    Flag(
        "--profile",
        None,
        HERE_OR_FOLDER,
        "report of time and memory (off-IPU report.html) in this folder, the current one if none is named; one whose "
        "name does not end in _profile gets <program>_profile",
    ),
)
BATCH = (  # samples a call = the product of the four
    Flag("--batch-size", 1, whole(1), "samples in the micro-batch of one replica"),
    Flag("--gradient-accumulation", 1, whole(1), "micro-batches in a weight update"),
    Flag("--device-iterations", 4, whole(1), "weight updates (outside training: micro-batches) in a call"),
    Flag("--replication-factor", 1, whole(1), "data-parallel replicas"),
)
TRAIN_BATCH = (
    BATCH[0]._replace(
        kind=or_word(whole(1), "auto"),
        help=BATCH[0].help + "; auto: the largest that fits, with --global-batch-size",
    ),
    *BATCH[1:],
    Flag("--global-batch-size", None, whole(1), "samples in a weight update, in place of --gradient-accumulation"),
)
PLACEMENT = (
    Flag("--layers-per-ipu", None, whole(0), "blocks on each IPU; one number: the same on each; none: one IPU", True),
    Flag("--ipus-per-replica", 4, whole(1), "IPUs of one replica; follows --layers-per-ipu if that lists them"),
    Flag("--matmul-proportion", None, real(0, 1, above=True), "share of memory for matmuls, one an IPU or one", True),
    Flag("--recompute-checkpoint-every-layer", False, BOOLEAN, "keep block outputs only, recompute the rest"),
    Flag("--recompute-checkpoint-layers", None, whole(0), "the blocks to do so for, from 0 (default: all)", True),
    Flag("--embedding-serialization-factor", 1, whole(1), "split the tied head's product into this many"),
    Flag("--remap-logit", False, BOOLEAN, "spread the logits over tiles with the custom op RemapCE"),
    Flag("--optimizer-state-offchip", True, BOOLEAN, "optimizer state in streaming memory"),
    Flag("--replicated-tensor-sharding", False, BOOLEAN, "optimizer state sharded over the replicas"),
    Flag("--enable-half-partials", False, BOOLEAN, "half partial sums in matmuls"),
    Flag("--custom-ops", True, BOOLEAN, "load custom_ops.so"),
    Flag("--executable-cache-dir", None, PATH, "folder for compiled programs"),
    Flag("--compile-only", False, BOOLEAN, "check everything, print the plan and exit"),
)
TRAIN_PLACEMENT = (
    PLACEMENT[0]._replace(
        kind=or_word(whole(0), "auto"), help=PLACEMENT[0].help + "; auto: such that the slowest IPU has the least work"
    ),
    *PLACEMENT[1:],
    Flag("--plan-processes", None, whole(1), "with --compile-only: the plan of that many processes, and nothing else"),
    Flag(
        "--plan-device",
        None,
        one_of("cpu", "cuda", "ipu"),
        "with --compile-only: the plan for such devices, and nothing else (default: what is here); --profile draws it",
    ),
)

TRAIN_GROUPS = {
    "model": MODEL,
    "checkpoints": CHECKPOINT,
    "data": DATA,
    "training": TRAINING,
    "log": LOG,
    "batch": TRAIN_BATCH,
    "placement and memory": TRAIN_PLACEMENT,
}

# The flags that a program without training reads, or refuses.
FORWARD = (
    *("model", "config", "max_len", "pretrained_checkpoint", "seed", "num_workers", "profile"),
    *("train_path", "tfrecord_path", "data_prefix", "stride", "windows", "short_articles", "last_window"),
    *("control_codes", "epochs", "training_steps", "enable_sequence_serialized", "serialized_seq_len"),
    *("batch_size", "gradient_accumulation", "device_iterations", "replication_factor"),
    *("layers_per_ipu", "ipus_per_replica", "matmul_proportion", "embedding_serialization_factor", "remap_logit"),
    *("enable_half_partials", "custom_ops", "executable_cache_dir", "compile_only", "plan_processes", "plan_device"),
)
