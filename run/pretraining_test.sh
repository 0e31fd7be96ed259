#!/usr/bin/env bash
# A 4-layer GPT-2 on 2 IPUs: a short run through everything.
# Further flags are passed on and win; paths in them are relative to the repository. PYTHON=... picks the interpreter.
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"

exec "$python" train_gpt2.py \
    --model gpt2-test \
    --max-len 128 \
    --layers-per-ipu 0 4 \
    --matmul-proportion 0.20 0.20 \
    --ipus-per-replica 2 \
    --epochs 3 \
    --gradient-accumulation 32 \
    --embedding-serialization-factor 8 \
    --train-path 'generated' \
    "$@"
