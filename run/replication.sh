#!/usr/bin/env bash
# GPT-2 124M from scratch on OpenWebText with a vocabulary of its own, as in "How I (almost) replicated OpenAI's GPT-2":
# 512 x 1,023 tokens an update, AdamW without weight decay, rate 1e-3 after 10,000 updates and linearly to 0 at the 60th epoch;
# the published run was ended after about 90,000 updates. run/algpt2.sh has the same recipe for ALGPT2.
#
#   bash run/replication.sh [--model NAME] [--sample] [flags of train_gpt2.py]
#
#   --model NAME    another model of docs/systems.md (gpt2)
#   --sample        4 layers of 128 on the excerpt of `make demo`, minutes on two cores: 300 updates of 8 x 128 tokens, rate 3e-3
#   The vocabulary is that of the first 1,000,000 documents; the first 100,000 are held out, as DATA/corpus-valid.
#   INPUT           OpenWebText: openwebtext.tar.xz or the folder of its archives (openwebtext)
#   DATA, OUTPUT    folders of vocabulary and token ids, and of the checkpoints (prepared/openwebtext, runs/replication)
#
# No epsilon of Adam was published; 1e-7 is Keras's. Without a counterpart: the shuffle buffer of 1,024 samples, for all of them
# are shuffled; the callback that saved weights alone, for a checkpoint here has the optimizer's state and the run goes on.
source "$(dirname "${BASH_SOURCE[0]}")/recipe.sh"
take_flags "$@"
[ -z "$row" ] || refuse "--row: this recipe has one; --model NAME names another model"
model=${model:-${MODEL:-gpt2}}
input=${INPUT:-openwebtext} data=${DATA:-prepared/openwebtext} output=${OUTPUT:-runs/${RECIPE:-replication}/$model${sample:+-sample}}

check_further
seed=42
recipe=(
    --optimizer AdamW
    --weight-decay 0
    --adam-betas 0.9 0.999
    --adam-epsilon 1e-7
    --learning-rate 1e-3
    --lr-schedule linear
    --lr-warmup-steps 10000
    --lr-decay-steps 806880
    --loss-scaling 1024
    --seed "$seed"
)
if [ -n "$sample" ]; then
    updates=${SAMPLE_UPDATES:-300}
    train_sample "${SAMPLE_SIZE:-4 128 4}" "${recipe[@]}" --learning-rate "${SAMPLE_RATE:-0.003}" --lr-warmup-steps 20 \
        --lr-decay-steps "$updates" --training-steps "$updates" --epochs 1
    exit
fi
published 512 1023 90000 6885495 "--model $model; 806,880 updates are the 60 epochs that the schedule spans"
prepared "$data/tokenizer/tokenizer.json" "$input" \
    "$python" -m tokenizer.train --input "$input" --first-documents 1000000 --vocab-size 50257 --output "$data/tokenizer"
prepared "$data/corpus" "$input" \
    "$python" -m data.prepare --input "$input" --tokenizer "$data/tokenizer" --format tfrecord --records first \
    --features inputs-labels --control-code '<|endoftext|>' --seq-length 1024 --num-output 16 --validation-first 100000 --output "$data"
config=(--model "$model")
if [ -e "$data/tokenizer/tokenizer.json" ]; then # its <|endoftext|> has another id than GPT-2's
    config=(--config "$output/config.json")
    "$python" -m model.derived_config --model "$model" --tokenizer "$data/tokenizer" --output "$output/config.json"
fi
train_on --train-path tfrecord --tfrecord-path "$data/corpus/*.tfrecord"
train "${config[@]}" \
    "${source[@]}" \
    --max-len 1023 \
    --val-num 1024 \
    --eval-steps 1000 \
    --batch-size 8 \
    --global-batch-size 512 \
    --device-iterations 1 \
    --epochs 60 \
    --training-steps 90000 \
    --save-per-steps 1000 \
    "${recipe[@]}"
