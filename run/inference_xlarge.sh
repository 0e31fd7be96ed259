#!/usr/bin/env bash
# GPT-2 XL (1542M), forward only, sequence length 1024: 2 replicas of 8 IPUs.
# Further flags are passed on and win; paths in them are relative to the repository. PYTHON=... picks the interpreter.
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"
exec "$python" inference_gpt2.py \
    --model gpt2-xl \
    --max-len 1024 \
    --layers-per-ipu 1 6 6 7 7 7 7 7 \
    --matmul-proportion 0.2 0.2 0.2 0.2 0.2 0.2 0.2 0.2 \
    --ipus-per-replica 8 \
    --replication-factor 2 \
    --device-iterations 1 \
    --batch-size 1 \
    --embedding-serialization-factor 4 \
    --train-path 'generated' \
    "$@"
