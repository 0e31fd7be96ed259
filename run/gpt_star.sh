#!/usr/bin/env bash
# GPT-127*, GPT-303* and GPT-1B*: 1,024 x 512 tokens an update, AdamW (0.9, 0.95), weight decay 0.1, the gradient's norm at most
# 1, no dropout; the rate rises over 4,000 updates, falls as a cosine to a tenth at 45,000 and stays. One epoch of WebText++.
#
#   bash run/gpt_star.sh [--model NAME] [--sample] [flags of train_gpt2.py]
#
#   --model                   rate   updates
#   gpt-127-star (default)    6e-4    51,000
#   gpt-303-star              3e-4    51,000
#   gpt-1b-star               2e-4    48,000  AdamW with 8-bit states; 128, 192, 256 and 384 tokens for 3,750 updates each first
#   gpt-star-124m             6e-4    40,000  plain GPT-2 small, 512 x 1,024 tokens, 21 G of them
#   gpt-star-354m             3e-4    40,000  plain GPT-2 medium; of these two no rates were published, they are those of the others
#
#   --sample        2 layers of 128 with 2 heads (4 and 4 of the plain models) on the excerpt of `make demo`, rate 3e-3; of
#                   gpt-1b-star with 32, 48, 64 and 96 tokens first
#   INPUT           OpenWebText, OpenWebText2 after it, BookCorpus2, half of Books3 and PhilPapers as JSON lines (webtext.jsonl)
#   DATA, OUTPUT    folders of the token ids and of the checkpoints (prepared/webtext, runs/gpt_star/NAME)
#
# Without a counterpart: the shuffle buffer of 10,000,000 rows, for all samples are shuffled; fp16 autocast, for the program
# trains in half; Accelerate's processes, which are torchrun's here.
source "$(dirname "${BASH_SOURCE[0]}")/recipe.sh"
take_flags "$@"
[ -z "$row" ] || refuse "--row: here it is --model NAME; --help lists them"
model=${model:-gpt-127-star}
input=${INPUT:-webtext.jsonl} data=${DATA:-prepared/webtext} output=${OUTPUT:-runs/gpt_star/$model${sample:+-sample}}

length=512 batch=1024 updates=51000 optimizer=AdamW size="2 128 2" warmup=() sample_warmup=() note=''
case $model in
    gpt-127-star) rate=6e-4 least=6e-5 ;;
    gpt-303-star) rate=3e-4 least=3e-5 ;;
    gpt-1b-star)
        rate=2e-4 least=2e-5 updates=48000 optimizer=AdamW8bit note='3,750 updates each of 128, 192, 256 and 384 tokens take less'
        warmup=(--sequence-warmup 128 192 256 384 --sequence-warmup-steps 3750)
        sample_warmup=(--sequence-warmup 32 48 64 96 --sequence-warmup-steps 15)
        ;;
    gpt-star-124m) rate=6e-4 least=6e-5 length=1024 batch=512 updates=40000 size="4 128 4" ;;
    gpt-star-354m) rate=3e-4 least=3e-5 length=1024 batch=512 updates=40000 size="4 128 4" ;;
    *) refuse "--model $model: not one of this recipe; --help lists them" ;;
esac
check_further
recipe=(
    --optimizer "$optimizer"
    --adam-betas 0.9 0.95
    --adam-epsilon 1e-8
    --weight-decay 0.1
    --weight-decay-groups gpt-star
    --gradient-clipping 1.0
    --learning-rate "$rate"
    --min-learning-rate "$least"
    --lr-schedule cosine
    --lr-warmup-steps 4000
    --lr-decay-steps 45000
    --loss-scaling 1024
    --epochs 1
)
if [ -n "$sample" ]; then
    train_sample "$size" "${recipe[@]}" "${sample_warmup[@]}" --learning-rate 0.003 --min-learning-rate 0.0003 \
        --lr-warmup-steps 20 --lr-decay-steps 180 --training-steps 200
    exit
fi
published "$batch" "$length" "$updates" 0 "--model $model, rate $rate to $least${note:+; $note}"
prepared "$data/corpus" "$input" \
    "$python" -m data.prepare --input "$input" --source jsonl --fix-text --document-ends both --format webdataset --output "$data"
train_on --dataset webdataset --input-files "$data/corpus/*.tar"
train --model "$model" \
    "${source[@]}" \
    --max-len "$length" \
    --val-num 1024 \
    --eval-steps 1000 \
    --batch-size 8 \
    --global-batch-size "$batch" \
    --device-iterations 1 \
    --training-steps "$updates" \
    --save-per-steps 1000 \
    "${recipe[@]}" "${warmup[@]}"
