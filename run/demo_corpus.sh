#!/usr/bin/env bash
# The excerpt of Wikipedia that `make demo` learns: download, extraction, preprocessing, to ./demo. It takes no flags, and what
# is there already is kept.
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"
export PYTHON=$python # for the scripts in data/
corpus=demo/corpus/wikicorpus_en_one_article_per_line.pkl
step() { printf '\n== %s\n' "$*"; }

if [ "$#" -gt 0 ]; then
    echo "run/demo_corpus.sh: it takes no flags, but got: $*" >&2
    exit 2
fi
if [ ! -f "$corpus" ]; then
    step "1/4 The excerpt of the Wikipedia dump: demo/dump/wikidump.xml"
    relay bash data/wikipedia_download.sh demo/dump --sample
    step "2/4 Extraction with WikiExtractor: demo/extracted"
    relay bash data/wikipedia_extract.sh demo/dump/wikidump.xml demo/extracted
    step "3/4 Preprocessing: $corpus"
    relay "$python" data/wikipedia_preprocess.py --input-file-path demo/extracted --output-file-path demo/corpus
fi
