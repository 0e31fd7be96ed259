"""The flags of text_generate_gpt2.py, and what they must satisfy together."""

from __future__ import annotations

from command_line.checks import Problems, check_checkpoint_source, check_file, check_profile, check_proportions
from command_line.flags import BOOLEAN, PATH, TEXT, Flag, real, select, whole
from command_line.training_flags import BATCH, DATA, LOG, PLACEMENT

GENERATION = (
    Flag("--model-name-or-path", "gpt2", PATH, "checkpoint folder or hub name"),
    Flag("--tokenizer-type", 0, whole(0, 1), "0: Hugging Face's files; 1: Megatron's"),
    Flag("--prompt", None, TEXT, "text to go on from; without it you are asked"),
    Flag(
        "--prompt-file", None, PATH, 'file of prompts, a line each (.jsonl: its field "prompt"); answers in JSON lines'
    ),
    Flag("--input-len", 64, whole(1), "longest prompt in tokens"),
    Flag("--output-len", 128, whole(1), "tokens to generate"),
    Flag(
        "--keep-last",
        None,
        whole(1),
        "tokens that a text beyond the model's context goes on from (default: half of it)",
    ),
    Flag("--num-samples", 1, whole(1), "texts for each prompt"),
    Flag("--save-samples-path", None, PATH, "file the texts are written to"),
    Flag("--log-probabilities", False, BOOLEAN, "also the logarithm of each token's probability"),
    Flag("--single-ipu", False, BOOLEAN, "the whole model on one IPU"),
    Flag("--poptorch-loop", False, BOOLEAN, "the whole loop on the device; needs --single-ipu"),
    Flag("--fp16", False, BOOLEAN, "half precision"),
    Flag("--int8", False, BOOLEAN, "weights in 8 bits, by the native operators"),
)
SAMPLING = (
    Flag("--repetition-penalty", 2.0, real(0, above=True), "penalty on tokens already there; 1: none"),
    Flag("--topk", 4, whole(0), "draw from the k likeliest tokens; 0: from all; 1: greedy"),
    Flag("--temperature", 1.2, real(0, above=True), "divides the logits"),
    Flag("--top-p", 1.0, real(0, 1, above=True), "draw from the likeliest tokens that make up this probability"),
    Flag("--min-p", 0.0, real(0, 1), "only tokens with this fraction of the largest probability"),
    Flag("--typical-p", 1.0, real(0, 1, above=True), "draw from the most typical tokens that make up this probability"),
    Flag("--eta-cutoff", 0.0, real(0, 1), "only tokens of this probability, or less where the choice is open; 0: all"),
    Flag("--stop-token", ["<|endoftext|>"], TEXT, "entries a text ends at; not given: eos_token_id", True),
    Flag("--stop-string", [], TEXT, "a text ends before any of these", True),
)

GENERATE_GROUPS = {
    "generation": GENERATION,
    "sampling": SAMPLING + select(DATA, "seed"),
    "batch": select(BATCH, "batch_size", "device_iterations", device_iterations=1),
    "placement": select(PLACEMENT, "layers_per_ipu", "matmul_proportion", "custom_ops", "compile_only"),
    "report": select(LOG, "profile"),
}


def check_precision(problems: Problems) -> None:
    """What --fp16, --int8 and --custom-ops must satisfy together."""
    args = problems.args
    if args.int8 and args.fp16:
        problems.add("int8", "contradicts --fp16; leave one of the two out")
    if args.int8 and not args.custom_ops:
        problems.add("int8", "needs the custom ops; leave out --custom-ops False, or this flag")


def check_generation(problems: Problems) -> None:
    """What the flags of text_generate_gpt2.py must satisfy together."""
    args = problems.args
    check_checkpoint_source(problems, "model_name_or_path")
    check_profile(problems)
    if args.profile and args.compile_only:
        problems.add("profile", "with --compile-only no text is made, and nothing to report; leave one of the two out")
    if args.prompt is not None and args.prompt_file is not None:
        problems.add("prompt_file", "contradicts --prompt; leave one of the two out")
    check_precision(problems)
    if args.poptorch_loop and not args.single_ipu:
        problems.add("poptorch_loop", "needs --single-ipu true")
    if args.poptorch_loop and args.keep_last is not None and problems.sound("keep_last"):
        problems.add("keep_last", "a text cannot go beyond the model's context with --poptorch-loop; leave one out")
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
    if args.topk == 1 and problems.sound("topk"):
        for dest in ("temperature", "top_p", "min_p", "typical_p", "eta_cutoff"):
            problems.ignored(dest, " with --topk 1, which takes the likeliest token")
        if args.num_samples > 1:
            args.notes.append(f"{problems.shown('num_samples')} with --topk 1: the texts of a prompt are all the same")
    if "" in args.stop_string:
        problems.add("stop_string", "an empty text stops nothing; give one of at least one character")
    check_file(problems, "save_samples_path")
