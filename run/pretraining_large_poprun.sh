#!/usr/bin/env bash
# GPT-2 large (762M), sequence length 512, distributed over hosts by PopRun. Set HOSTS, PARTITION, NUM_INSTANCE,
# NUM_REPLICA, NUM_ILDS and TCP_IF_INCLUDE (the network interface) first.
# Further flags are passed on and win; paths in them are relative to the repository. PYTHON=... picks the interpreter.
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"
if ! command -v poprun >/dev/null; then
    echo "run/pretraining_large_poprun.sh: poprun is not on the path (it comes with the Poplar SDK)." >&2
    echo "On one host without it: bash run/pretraining_large_512.sh" >&2
    exit 2
fi
unset_names=()
for name in HOSTS PARTITION NUM_INSTANCE NUM_REPLICA NUM_ILDS TCP_IF_INCLUDE; do
    if [ -z "${!name:-}" ]; then unset_names+=("$name"); fi
done
if [ ${#unset_names[@]} -gt 0 ]; then
    echo "run/pretraining_large_poprun.sh: set these variables first: ${unset_names[*]}" >&2
    exit 2
fi
export POPLAR_TARGET_OPTIONS='{"gatewayMode":"true"}'
exec poprun -vv --host "$HOSTS" \
    --vipu-partition="$PARTITION" \
    --num-instances="$NUM_INSTANCE" \
    --num-replicas="$NUM_REPLICA" \
    --num-ilds "$NUM_ILDS" \
    --ipus-per-replica=8 \
    --numa-aware=yes \
    --print-topology=yes \
    --vipu-server-timeout=3600 \
    --mpi-global-args="--mca oob_tcp_if_include $TCP_IF_INCLUDE --mca btl_tcp_if_include $TCP_IF_INCLUDE" \
    --mpi-local-args="-x OPAL_PREFIX -x LD_LIBRARY_PATH -x PATH -x PYTHONPATH -x CPATH -x IPUOF_VIPU_API_TIMEOUT=3600 \
-x POPLAR_LOG_LEVEL=WARN -x POPLAR_SDK_ENABLED -x POPLAR_ENGINE_OPTIONS" \
    "$python" train_gpt2.py \
    --model gpt2-large \
    --max-len 512 \
    --optimizer AdamW \
    --learning-rate 0.00015 \
    --lr-schedule cosine \
    --lr-warmup 0.01 \
    --layers-per-ipu 1 5 5 5 5 5 5 5 \
    --matmul-proportion 0.15 0.12 0.15 0.15 0.15 0.15 0.15 0.15 \
    --ipus-per-replica 8 \
    --replication-factor 2 \
    --epochs 5 \
    --gradient-accumulation 1024 \
    --device-iterations 8 \
    --batch-size 1 \
    --enable-sequence-serialized True \
    --remap-logit True \
    --embedding-serialization-factor 8 \
    --recompute-checkpoint-every-layer True \
    --enable-half-partials True \
    --train-path 'generated' \
    --replicated-tensor-sharding True \
    --compile-only False \
    "$@"
