#!/usr/bin/env bash
# How far a checkpoint sees: bits a byte of enwik8, bits a character of text8 and token perplexity of WikiText by
# context, in windows that share no token. A model with ALiBi goes beyond the length it was trained at. The protocols are
# those of GPT*'s training log (docs/evaluation.md); WikiText's short last window is left out as there, and run.
#     bash benchmark.sh [flags of tasks/evaluate_wiki.py]
# The checkpoint is $CHECKPOINT_PATH, or --pretrained-checkpoint DIR; the data are those of
# `bash data/evaluation_download.sh data wikitext enwik8 text8`, or in --data-dir DIR. CONTEXTS="1024 2048" names other
# lengths, RESULTS=DIR a folder for all figures in JSON, PYTHON=... the interpreter. A cell that cannot be had is "-".
# Figures are kept beside the checkpoint too, unless with --record False: `python -m tasks.tables 002 --runs DIR`, DIR the
# folder of runs, sets them beside the published ones.
source "$(dirname "${BASH_SOURCE[0]}")/run/environment.sh"

case ${1:-} in -h | --help) sed -n '2,11s/^# //p' benchmark.sh && exit 0 ;; esac
checkpoint=${CHECKPOINT_PATH:-} previous=''
for word; do
    case ${previous//_/-} in --pretrained-checkpoint | --checkpoint-input-dir) checkpoint=$word ;; esac
    case ${word//_/-} in --pretrained-checkpoint=* | --checkpoint-input-dir=*) checkpoint=${word#*=} ;; esac
    previous=$word
done
if [ -z "$checkpoint" ]; then
    echo "benchmark.sh: no checkpoint given; name its folder with CHECKPOINT_PATH or --pretrained-checkpoint DIR" >&2
    exit 2
fi
read -ra contexts <<<"${CONTEXTS:-1024 2048 3072 4096 8192}"
for context in "${contexts[@]}"; do
    [[ $context =~ ^[1-9][0-9]*$ ]] || { echo "benchmark.sh: CONTEXTS: $context is no length in tokens" >&2 && exit 2; }
done
record=()
if [ -w "$checkpoint" ]; then record=(--record); fi # one of the hub, or that is read only, has its figures here alone
results=${RESULTS:-$(mktemp -d)}
mkdir -p "$results"
[ -n "${RESULTS:-}" ] || trap 'rm -rf "$results"' EXIT

evaluate() { # TASK CONTEXT PROTOCOL...
    local task=$1 context=$2
    shift 2
    echo "$task, $context tokens" >&2
    rm -f "$results/$task-$context.json"
    relay "$python" tasks/evaluate_wiki.py ${CHECKPOINT_PATH:+--pretrained-checkpoint "$CHECKPOINT_PATH"} --batch-size 1 \
        "${record[@]}" "${given[@]}" --task "$task" --protocols "$@" --seq-length "$context" \
        --json "$results/$task-$context.json" >&2 || failed=$?
    if [ "$failed" -ge 128 ]; then exit "$failed"; fi # Ctrl-C
}

failed=0 given=("$@")
for context in "${contexts[@]}"; do
    evaluate ENWIK8 "$context" bits-per-byte-disjoint
    evaluate TEXT8 "$context" bits-per-character-disjoint
    evaluate WIKITEXT103 "$context" token-gpt-star token-joined
done

"$python" - "$results" "${contexts[@]}" <<'CODE'
import json, sys
from pathlib import Path

COLUMNS = (
    ("enwik8 (BPB)", "ENWIK8", "bits-per-byte-disjoint", "bits per byte", 3),
    ("text8 (BPC)", "TEXT8", "bits-per-character-disjoint", "bits per character", 3),
    ("WikiText (PPL)", "WIKITEXT103", "token-gpt-star", "ppl", 2),
    ("WikiText (PPL), last window run", "WIKITEXT103", "token-joined", "ppl", 2),
)
folder, contexts = Path(sys.argv[1]), sys.argv[2:]


def cell(context, task, protocol, measure, digits):
    path = folder / f"{task}-{context}.json"
    results = json.loads(path.read_text(encoding="utf-8"))["results"] if path.is_file() else []
    whole = [result["values"][measure] for result in results if result["complete"] and result["protocol"] == protocol]
    return f"{whole[0]:.{digits}f}" if whole and whole[0] is not None else "-"


print("| " + " | ".join(["Context", *(name for name, *_ in COLUMNS)]) + " |")
print("|" + " ---- |" * (1 + len(COLUMNS)))
for context in contexts:
    print("| " + " | ".join([context, *(cell(context, *column) for _, *column in COLUMNS)]) + " |")
CODE
[ "$failed" = 0 ] || { echo "benchmark.sh: what has no figure says why above" >&2 && exit 1; }
