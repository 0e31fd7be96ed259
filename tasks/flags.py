"""The flags of the programs in tasks/; what they must satisfy together is in tasks/checks.py."""

from __future__ import annotations

from command_line.flags import BOOLEAN, PATH, TEXT, Flag, one_of, select, whole
from command_line.generation_flags import GENERATION
from command_line.training_flags import BATCH, CHECKPOINT, DATA, LOG, PLACEMENT
from tasks.names import PROTOCOLS

EVALUATION = (
    Flag("--task", "WIKITEXT103", one_of(*PROTOCOLS), "what to evaluate on"),
    Flag("--valid-data", None, PATH, "its file (default: the one that data/evaluation_download.sh leaves)"),
    Flag("--text", None, PATH, "any text file: --task TEXT --valid-data FILE"),
    Flag("--all", False, BOOLEAN, "every task whose file is there"),
    Flag("--data-dir", "data", PATH, "the folder of data/evaluation_download.sh"),
    Flag("--protocols", None, TEXT, "only these, of a task's protocols", True),
    Flag("--protocol-batch", None, whole(1), "windows in a batch, for protocols whose figure depends on that"),
    Flag("--seq-length", 128, whole(0), "window T in tokens; 0: the checkpoint's n_positions"),
    Flag("--overlapping-eval", 32, whole(1), "tokens from one sliding window to the next"),
    Flag("--eod-mask-loss", False, BOOLEAN, "leave out what follows <|endoftext|> in the sliding windows"),
    Flag("--strict-lambada", False, BOOLEAN, "the last line is about the last word, not the last BPE token"),
    Flag("--log-interval", 10, whole(1), "calls from one progress line to the next, where it is no terminal"),
    Flag("--json", None, PATH, "file for all results"),
    Flag("--record", False, BOOLEAN, "keep the results in the run's folder evaluations, where tasks.tables reads them"),
)

EVALUATE_GROUPS = {
    "evaluation": EVALUATION + select(GENERATION, "tokenizer_type", "fp16") + select(DATA, "seed"),
    "checkpoint": select(CHECKPOINT, "pretrained_checkpoint"),
    "batch": select(BATCH, "batch_size", "device_iterations", "replication_factor"),
    "placement and memory": select(
        PLACEMENT,
        *("layers_per_ipu", "ipus_per_replica", "matmul_proportion", "embedding_serialization_factor"),
        *("enable_half_partials", "executable_cache_dir"),
    ),
    "report": select(LOG, "profile"),
}
