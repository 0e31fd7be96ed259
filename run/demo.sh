#!/usr/bin/env bash
# A small GPT-2 learns a real excerpt of Wikipedia: download, extract, preprocess, train, generate. Minutes on two cores.
# It takes no flags. Everything is written to ./demo, and what is there already is kept: interrupted, it goes on from the
# last checkpoint; delete a folder to make it anew.
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"
export PYTHON=$python # for run/demo_corpus.sh
demo=demo
corpus=$demo/corpus/wikicorpus_en_one_article_per_line.pkl
checkpoints=$demo/checkpoints
trained=$checkpoints/epoch_0
split=(--train-path "$corpus" --max-len 128 --stride 128 --val-num 64)

if [ "$#" -gt 0 ]; then
    echo "run/demo.sh: it takes no flags, but got: $*. For a run of your own: $python train_gpt2.py --help" >&2
    exit 2
fi
step() { printf '\n== %s\n' "$*"; }

relay bash run/demo_corpus.sh # steps 1 to 3

if [ ! -d "$trained" ]; then
    step "4/4 Training (config/config_tiny.json, held-out articles; loss in nats a token)"
    relay "$python" train_gpt2.py \
        --model gpt2-tiny \
        "${split[@]}" \
        --optimizer AdamW \
        --learning-rate 0.003 \
        --weight-decay 0.01 \
        --loss-scaling 1024 \
        --lr-schedule cosine \
        --lr-warmup 0.1 \
        --epochs 1 \
        --batch-size 8 \
        --gradient-accumulation 1 \
        --device-iterations 8 \
        --num-workers 0 \
        --log-steps 2 \
        --eval-steps 10 \
        --save-model-path "$checkpoints" \
        --save-per-steps 20 \
        --keep-checkpoints 1 \
        --resume latest
fi

step "Summary"
unigram=$("$python" -m data.baseline "${split[@]}")
unigram=${unigram##* }
picture=() # which needs requirements-plots.txt
if "$python" -c 'import matplotlib' 2>/dev/null; then picture=(--output "$demo/curves.png"); fi
relay "$python" -m training.log.curves "$checkpoints" "${picture[@]}" --line "unigram model of the same text=$unigram"
echo "held-out loss of a unigram model of the same text: $unigram"
echo "checkpoint: $trained"
echo "a sample from it:"
relay "$python" text_generate_gpt2.py \
    --model-name-or-path "$trained" \
    --prompt "The history of the city" \
    --temperature 0.8 \
    --topk 40 \
    --repetition-penalty 1.2 \
    --input-len 16 \
    --output-len 40
place='' # of these commands, if their reader stands elsewhere
[ "$CALLED_FROM" -ef . ] || place=", in $PWD"
cat <<END

Three things to try next$place:
  $python text_generate_gpt2.py --model-name-or-path $trained --input-len 64 --output-len 60
  $python tasks/evaluate_wiki.py --pretrained-checkpoint $trained --task TEXT --valid-data YOUR.txt
  $python -m data.prepare --input YOUR.txt --documents file --output prepared
END
