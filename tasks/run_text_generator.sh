#!/usr/bin/env bash
# An interactive prompt: type the beginning of a text and it goes on from there. Ctrl-C stops a text, Ctrl-D leaves.
# The model is $CHECKPOINT_PATH, or else the one that `make demo` leaves, or else gpt2 from the Hugging Face hub. Further
# flags are passed on and win; paths in them are relative to the repository. PYTHON=... picks the interpreter.
source "$(dirname "${BASH_SOURCE[0]}")/../run/environment.sh"
checkpoint=${CHECKPOINT_PATH:-demo/checkpoints/epoch_0}
if [ -z "${CHECKPOINT_PATH:-}" ] && [ ! -d "$checkpoint" ]; then checkpoint=gpt2; fi
exec "$python" text_generate_gpt2.py \
    --model-name-or-path "$checkpoint" \
    --single-ipu true \
    --input-len 64 \
    --output-len 128 \
    "$@"
