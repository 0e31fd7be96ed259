#!/usr/bin/env bash
# Evaluate a GPT-2 checkpoint: bash tasks/run_evaluate.sh wiki|lmbd|ptb|enwik8|text8|text|all [flags]
# The checkpoint is $CHECKPOINT_PATH, or --pretrained-checkpoint DIR; the data are $VALID_DATA, or --valid-data FILE, or
# what data/evaluation_download.sh leaves in data/. Further flags are passed on and win; paths in them are relative to
# the repository. PYTHON=... picks the interpreter.
source "$(dirname "${BASH_SOURCE[0]}")/../run/environment.sh"

usage() {
    sed -n '2,5s/^# //p' tasks/run_evaluate.sh >&2
    exit 2
}
[ "$#" -gt 0 ] || usage
program=tasks/evaluate_wiki.py
case $1 in
    wiki) task=(--task WIKITEXT103) ;;
    lmbd | lambada) program=tasks/evaluate_lambada.py task=(--task LAMBADA) ;;
    ptb) task=(--task PTB) ;;
    enwik8) task=(--task ENWIK8) ;;
    text8) task=(--task TEXT8) ;;
    text) task=(--task TEXT) ;; # with --text FILE
    all) task=(--all) ;;
    -h | --help) exec "$python" "$program" --help ;;
    *) echo "run_evaluate.sh: $1 is no task" >&2 && usage ;;
esac
shift
exec "$python" "$program" "${task[@]}" \
    ${VALID_DATA:+--valid-data "$VALID_DATA"} \
    ${CHECKPOINT_PATH:+--pretrained-checkpoint "$CHECKPOINT_PATH"} \
    --seq-length 0 \
    --tokenizer-type 0 \
    "$@"
