#!/usr/bin/env bash
# GPT-2 large (762M), sequence length 512, by processes that torchrun starts on one or several machines without IPUs: the
# counterpart of pretraining_large_poprun.sh. NUM_REPLICA replicas (2) are shared by NUM_INSTANCE processes a machine (as
# many). Several machines: set NNODES, and on each of them NODE_RANK, MASTER_ADDR (the first one) and MASTER_PORT.
# Further flags are passed on and win; paths in them are relative to the repository. PYTHON=... picks the interpreter.
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"
replicas="${NUM_REPLICA:-2}" nodes="${NNODES:-1}"
if [ "$nodes" != 1 ]; then
    unset_names=()
    for name in NODE_RANK MASTER_ADDR MASTER_PORT; do
        if [ -z "${!name:-}" ]; then unset_names+=("$name"); fi
    done
    if [ ${#unset_names[@]} -gt 0 ]; then
        echo "run/pretraining_large_torchrun.sh: NNODES is $nodes; set these variables too: ${unset_names[*]}" >&2
        exit 2
    fi
    meeting=(--nnodes "$nodes" --node-rank "$NODE_RANK" --master-addr "$MASTER_ADDR" --master-port "$MASTER_PORT")
else
    meeting=(--standalone)
fi
exec "$python" -m torch.distributed.run "${meeting[@]}" \
    --nproc-per-node "${NUM_INSTANCE:-$(((replicas + nodes - 1) / nodes))}" \
    --max-restarts "${MAX_RESTARTS:-0}" \
    train_gpt2.py \
    --model gpt2-large \
    --max-len 512 \
    --optimizer AdamW \
    --learning-rate 0.00015 \
    --lr-schedule cosine \
    --lr-warmup 0.01 \
    --layers-per-ipu 1 5 5 5 5 5 5 5 \
    --matmul-proportion 0.15 0.12 0.15 0.15 0.15 0.15 0.15 0.15 \
    --ipus-per-replica 8 \
    --replication-factor "$replicas" \
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
