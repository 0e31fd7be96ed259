#!/usr/bin/env bash
# tfchat's benchmarks: language models of GPT-2 small's size from scratch on WikiText-103 raw, batch 2, 1,024 tokens, 10 epochs,
# Adam whose rate falls linearly from 1e-4 to 0, dropout 0.1, the best epoch kept and the end after one without gain.
#
#   bash run/wikitext_scratch.sh [--row ROW] [--sample] [flags of train_gpt2.py]
#
#   --row                Benchmark, published perplexity on the validation set
#   preln-unshared       1   20.76  PreLN, relu, a head of its own; clipnorm 1.0, as all rows of the first benchmark
#   preln-relu           1   20.47  PreLN, relu
#   preln (default)      1   20.13  PreLN, gelu
#   transformers         1   19.52  GPT-2 as transformers has it
#   mingpt               1   20.13  minGPT-TF
#   postln               1    1731  PostLN, which diverged
#   preln-noclip         2   19.98  PreLN, gelu, no clipnorm
#   preln-noclip-fp16    2   20.09  the same with mixed precision
#   preln-noclip-fp16-4  2   20.35  the same with batch 4
#   preln-fp16-4         -   20.56  the same with clipnorm 1.0, the run of release 0.2.0
#   preliminary-1e-3     -       -  transformers' run_language_modeling, AdamW, newlines in the text: it diverged
#   preliminary-1e-4     -   18.25  the same at 1e-4
#   preliminary-1e-5     -   18.91  the same at 1e-5
#
#   --sample             4 layers of 128 on the excerpt of `make demo`, minutes on two cores: 8 x 128 tokens, rate 3e-3
#   INPUT                the archive of WikiText-103 raw, or its folder; without it get_wikitext.py fetches it
#   DATA, OUTPUT         folders of the token ids and of the checkpoints (wikitext-103-raw/prepared, runs/wikitext_scratch/ROW)
#
# Of the notebooks' parameters model_type, clipnorm, batch_size and save_model_dir are --row, --tensor-gradient-clipping,
# --batch-size and --save-model-path. Without a counterpart: fp16 False on a CUDA device or an IPU, where the program always
# trains in half (on a CPU these rows are in float32); the shuffle buffer of 10,000 windows, for all of them are shuffled; the
# first update, whose rate was 0.
source "$(dirname "${BASH_SOURCE[0]}")/recipe.sh"
take_flags "$@"
[ -z "$model" ] || refuse "--model: it is --row that says which model; --help lists the rows"
row=${row:-preln}
input=${INPUT:-get_wikitext.py} data=${DATA:-wikitext-103-raw/prepared} lines=line
output=${OUTPUT:-runs/wikitext_scratch/$row${sample:+-sample}}

batch=2 rate=1e-4 optimizer=(--optimizer Adam --tensor-gradient-clipping 1.0) scaling=(--loss-scaling 1024)
samples=114018 # 116,755,111 ids in windows of 1,025 with shift 1,024
case $row in
    preln) model=tfchat-preln ;;
    preln-relu) model=tfchat-preln-relu ;;
    preln-unshared) model=tfchat-preln-unshared ;;
    transformers) model=tfchat-gpt2 ;;
    mingpt) model=mingpt-tf ;;
    postln) model=tfchat-postln ;;
    preln-noclip) model=tfchat-preln optimizer=(--optimizer Adam) ;;
    preln-noclip-fp16) model=tfchat-preln optimizer=(--optimizer Adam) scaling=(--auto-loss-scaling True) ;;
    preln-noclip-fp16-4) model=tfchat-preln optimizer=(--optimizer Adam) scaling=(--auto-loss-scaling True) batch=4 ;;
    preln-fp16-4) model=tfchat-preln scaling=(--auto-loss-scaling True) batch=4 ;;
    preliminary-1e-[345])
        model=gpt2 rate=${row#preliminary-} samples=116400 # 58,200 updates an epoch
        optimizer=(--optimizer AdamW --weight-decay 0 --gradient-clipping 1.0)
        input=${INPUT:-wikitext-103-raw} data=${DATA:-prepared/wikitext-103-raw-newlines} lines=file
        ;;
    *) refuse "--row $row: there is no such row; --help lists them" ;;
esac
check_further
case $row in *-fp16*) ;; *) export POPTORCH_PORTABLE_HALF=${POPTORCH_PORTABLE_HALF:-float32} ;; esac

recipe=(
    "${optimizer[@]}"
    --adam-betas 0.9 0.999
    --adam-epsilon 1e-8
    --learning-rate "$rate"
    --lr-schedule linear
    --lr-warmup-steps 0
    "${scaling[@]}"
    --early-stopping 1
)
if [ -n "$sample" ]; then
    train_sample "4 128 4" "${recipe[@]}" --learning-rate 0.003 --lr-warmup-steps 20 --training-steps 200 --epochs 1
    exit
fi
published "$batch" 1024 $((samples / batch * 10)) "$samples" "row $row: --model $model, rate $rate"
prepare=("$python" -m data.prepare --input "$input" --documents "$lines" --document-ends none --output "$data")
if [ "$input" = get_wikitext.py ]; then prepare=("$python" get_wikitext.py 103_raw); fi # the same command, and the text
prepared "$data/corpus.pkl" "$input" "${prepare[@]}"
train_on --train-path "$data/corpus.pkl" --windows stream --validation-files "$data/corpus-valid.pkl"
train --model "$model" \
    "${source[@]}" \
    --max-len 1024 \
    --batch-size "$batch" \
    --gradient-accumulation 1 \
    --device-iterations 1 \
    --epochs 10 \
    --training-steps 1000000 \
    "${recipe[@]}"
