#!/usr/bin/env bash
# Fine-tuning as in "Best practices for finetuning": a GPT-2 of Hugging Face's on WikiText-2, 1 epoch, batch 8, rate 5e-5 after a
# warm-up over the first tenth and linearly to 0, Adafactor without first moment.
#
#   CHECKPOINT_PATH=FOLDER bash run/finetune.sh [--row ROW] [--sample] [flags of train_gpt2.py]
#
#   --row           the published code
#   tf (default)    TensorFlow's: Adafactor that does not scale by the parameter's size, the last partial sample dropped
#   pt              PyTorch's: Adafactor that does, the gradient's norm at most 1, the last sample padded
#   adamw           AdamW, epsilon 1e-8, no weight decay, the norm at most 1: 1 to 2 of perplexity better, more memory
#   sgd             SGD with momentum 0.9: similar results after many more epochs; --learning-rate 1e-3 here
#
#   --sample        the model of `make demo` (which is made first if it is not there) once more over its excerpt, at the rates of
#                   a model of that size
#   CHECKPOINT_PATH the model to start from, a folder, or a name of the hub with --model; --max-len is the context (1,024; 256
#                   and 512 were published too)
#   INPUT           the archive of WikiText-2 raw, its folder, or a file of text (wikitext-2-raw-v1.zip)
#   DATA, OUTPUT    folders of the token ids and of the checkpoints (prepared/wikitext-2-raw, runs/finetune/ROW)
#
# Control codes of the published code are --control-codes, its --fast is --windows first, whose figures are marked. Without a
# counterpart: --efficient, --n_batches and --n_tokens, whose losses its author calls wrong; Adafactor's beta1, which was 0 there
# and is absent here; Apex's levels, for the program trains in half.
source "$(dirname "${BASH_SOURCE[0]}")/recipe.sh"
take_flags "$@"
no_counterpart --efficient --n-batches --n-tokens -- "its losses are not those of the data set; leave it out"
! given --fast || refuse "--fast of the document is --windows first here, and approximate"
row=${row:-tf}
input=${INPUT:-wikitext-2-raw-v1.zip} data=${DATA:-prepared/wikitext-2-raw} output=${OUTPUT:-runs/finetune/$row${sample:+-sample}}

rate=5e-5 sample_rate=1e-3 rest=drop
case $row in
    tf) optimizer=(--optimizer AdafactorNoScaling) ;;
    pt) optimizer=(--optimizer Adafactor --gradient-clipping 1.0) sample_rate=0.01 rest=pad ;;
    adamw) optimizer=(--optimizer AdamW --adam-epsilon 1e-8 --weight-decay 0 --gradient-clipping 1.0) rest=pad ;;
    sgd) optimizer=(--optimizer SGD --sgd-momentum 0.9 --gradient-clipping 1.0) rate=1e-3 sample_rate=0.03 rest=pad ;;
    *) refuse "--row $row: there is no such row; --help lists them" ;;
esac
check_further
recipe=(
    "${optimizer[@]}"
    --learning-rate "$rate"
    --lr-schedule linear
    --lr-warmup 0.1
    --loss-scaling 1024
    --epochs 1
)
if [ -n "$sample" ]; then
    start=demo/checkpoints/epoch_0
    [ -d "$start" ] || relay bash run/demo.sh
    train_sample "$start/config.json" --pretrained-checkpoint "$start" "${recipe[@]}" --learning-rate "$sample_rate" \
        --training-steps 200
    exit
fi
checkpoint=$(last --pretrained-checkpoint "${CHECKPOINT_PATH:-}")
[ -n "$checkpoint" ] ||
    refuse "no model to start from; name its folder with CHECKPOINT_PATH=FOLDER or --pretrained-checkpoint FOLDER"
kind=(--model "${model:-gpt2}")
if [ -f "$checkpoint/config.json" ]; then kind=(--config "$checkpoint/config.json"); fi
published 8 1024 299 2391 "row $row; 9,563 samples of 256 tokens are 2,391 of 1,024"
case $input in *.txt) documents=passage ;; *) documents=file ;; esac # of which some can be held out
prepared "$data/corpus.pkl" "$input" \
    "$python" -m data.prepare --input "$input" --documents "$documents" --document-ends none --output "$data"
held_out=(--val-num 64) # of a text that comes without a validation set
if [ -e "$data/corpus-valid.pkl" ]; then held_out=(--validation-files "$data/corpus-valid.pkl"); fi
train_on --train-path "$data/corpus.pkl" --windows stream --last-window "$rest" "${held_out[@]}"
train "${kind[@]}" \
    --pretrained-checkpoint "$checkpoint" \
    "${source[@]}" \
    --max-len 1024 \
    --batch-size 1 \
    --global-batch-size 8 \
    --device-iterations 1 \
    --training-steps 1000000 \
    "${recipe[@]}"
