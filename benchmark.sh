#!/usr/bin/env bash
# How far a checkpoint sees: bits a byte of enwik8, bits a character of text8 and token perplexity of WikiText by
# context, in windows that share no token. A model with ALiBi goes beyond the length it was trained at.
#     bash benchmark.sh [flags of tasks/evaluate_wiki.py]
# The checkpoint is $CHECKPOINT_PATH, or --pretrained-checkpoint DIR; the data are those of
# `bash data/evaluation_download.sh data wikitext enwik8 text8`, or in --data-dir DIR. CONTEXTS="1024 2048" names other
# lengths, RESULTS=DIR a folder for all figures in JSON, PYTHON=... the interpreter. A cell that cannot be had is "-".
source "$(dirname "${BASH_SOURCE[0]}")/run/environment.sh"

case ${1:-} in -h | --help) sed -n '2,7s/^# //p' benchmark.sh && exit 0 ;; esac
if [[ -z ${CHECKPOINT_PATH:-} && " $* " != *" --pretrained-checkpoint"* && " $* " != *" --checkpoint-input-dir"* ]]; then
    echo "benchmark.sh: no checkpoint given; name its folder with CHECKPOINT_PATH or --pretrained-checkpoint DIR" >&2
    exit 2
fi
read -ra contexts <<<"${CONTEXTS:-1024 2048 3072 4096 8192}"
for context in "${contexts[@]}"; do
    [[ $context =~ ^[1-9][0-9]*$ ]] || { echo "benchmark.sh: CONTEXTS: $context is no length in tokens" >&2 && exit 2; }
done
results=${RESULTS:-$(mktemp -d)}
mkdir -p "$results"
[ -n "${RESULTS:-}" ] || trap 'rm -rf "$results"' EXIT

failed=0
for context in "${contexts[@]}"; do
    for task in ENWIK8:bits-per-byte TEXT8:bits-per-character WIKITEXT103:token-joined; do
        name=${task%:*}
        echo "$name, $context tokens" >&2
        rm -f "$results/$name-$context.json"
        "$python" tasks/evaluate_wiki.py ${CHECKPOINT_PATH:+--pretrained-checkpoint "$CHECKPOINT_PATH"} --batch-size 1 "$@" \
            --task "$name" --protocols "${task#*:}" --seq-length "$context" --overlapping-eval "$context" \
            --json "$results/$name-$context.json" >&2 || failed=$?
        if [ "$failed" -ge 128 ]; then exit "$failed"; fi # Ctrl-C
    done
done

"$python" - "$results" "${contexts[@]}" <<'CODE'
import json, sys
from pathlib import Path

MEASURES = {"ENWIK8": "bits per byte", "TEXT8": "bits per character", "WIKITEXT103": "ppl"}
folder, contexts = Path(sys.argv[1]), sys.argv[2:]


def cell(task, context):
    path = folder / f"{task}-{context}.json"
    results = json.loads(path.read_text(encoding="utf-8"))["results"] if path.is_file() else []
    whole = [result["values"] for result in results if result["complete"]]
    digits = 2 if task == "WIKITEXT103" else 3
    return f"{whole[0][MEASURES[task]]:.{digits}f}" if whole else "-"


print("| Context | enwik8 (BPB) | text8 (BPC) | WikiText (PPL) |")
print("| ---- | ---- | ---- | ---- |")
for context in contexts:
    print("| " + " | ".join([context, *(cell(task, context) for task in MEASURES)]) + " |")
CODE
[ "$failed" = 0 ] || { echo "benchmark.sh: what has no figure says why above" >&2 && exit 1; }
