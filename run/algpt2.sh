#!/usr/bin/env bash
# ALGPT2 from scratch on OpenWebText: one block 12 times and a factorised embedding, by the recipe of run/replication.sh.
#
#   bash run/algpt2.sh [--model NAME] [--sample] [flags of train_gpt2.py]
#
#   --model                       parameters, published perplexity of the training text
#   algpt2 (default)              13,850,880   38  an embedding of width 128
#   algpt2-256                    20,611,584   34
#   algpt2-512                    34,132,992   31
#   algpt2-unfactorised           46,473,216   31  GPT-2's embedding
#   algpt2-medium                 19,425,536    -  24 times a block of 1,024
#   algpt2-medium-unfactorised    65,110,016   26
#   algpt2-large, algpt2-xl       26,573,056 and 37,719,296, not trained there
#
#   --dropout 0     the published run without dropout, which was ended early at about 3 of perplexity less
#   --sample        a block of 192 4 times, its embedding in proportion, on the excerpt of `make demo`: 400 updates of 8 x 128
#                   tokens, half as dear as those of the other samples, rate 5e-3
#   INPUT, DATA, OUTPUT    as for run/replication.sh, whose vocabulary and token ids are used (checkpoints: runs/algpt2/NAME)
case " $* " in *" -h "* | *" --help "*) sed -n '2,/^[^#]/s/^# \{0,1\}//p' "$0" && exit 0 ;; esac
export RECIPE=algpt2 MODEL=algpt2 SAMPLE_SIZE="4 192 4" SAMPLE_UPDATES=400 SAMPLE_RATE=0.005
exec bash "$(dirname "${BASH_SOURCE[0]}")/replication.sh" "$@"
