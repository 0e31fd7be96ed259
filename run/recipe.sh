# Sourced by the recipes of the systems beside GPT-2 (docs/systems.md): their flags, their data, and how they end.
# A recipe's --help is the comment at its head. RECIPE is the name of one that runs another's script.
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"
export PYTHON=$python # for the scripts that are called
me=run/${RECIPE:-$(basename "$0" .sh)}.sh
sample='' model='' row='' further=()

refuse() { # MESSAGE: one line, nothing done
    echo "$me: $*" >&2
    exit 2
}

usage() { # the comment at the head of the recipe
    sed -n '2,/^[^#]/s/^# \{0,1\}//p' "$0"
}

# take_flags "$@": --sample, --row NAME and --model NAME are the recipe's, the rest is train_gpt2.py's and comes last in
# `further`. Both spellings of a value, as in the programs.
take_flags() {
    while [ "$#" -gt 0 ]; do
        case $1 in
            -h | --help) usage && exit 0 ;;
            --sample) sample=yes ;;
            --row=*) row=${1#*=} ;;
            --model=*) model=${1#*=} ;;
            --row | --model)
                [ "$#" -gt 1 ] || refuse "$1: a name is missing after it; --help lists them"
                if [ "$1" = --row ]; then row=$2; else model=$2; fi
                shift
                ;;
            *) further+=("$1") ;;
        esac
        shift
    done
}

given() { # FLAG...: whether one of them is among the further flags
    local flag word
    for flag in "$@"; do
        for word in "${further[@]}"; do
            word=${word%%=*}
            [ "${word//_/-}" != "$flag" ] || return 0
        done
    done
    return 1
}

last() { # FLAG DEFAULT: the value that the further flags give it last
    local word value=$2 next=''
    for word in "${further[@]}"; do
        if [ -n "$next" ]; then value=$word next=''; fi
        case ${word//_/-} in
            "$1") next=yes ;;
            "$1="*) value=${word#*=} ;;
        esac
    done
    printf '%s' "$value"
}

# no_counterpart FLAG... -- REASON: flags of a document that have no counterpart here are refused by name.
no_counterpart() {
    local flags=()
    while [ "$1" != -- ]; do flags+=("$1") && shift; done
    local flag
    for flag in "${flags[@]}"; do
        ! given "$flag" || refuse "$flag of the document has no counterpart here: $2"
    done
}

# Ends the recipe unless the further flags are ones of train_gpt2.py with values that it can read: before data are fetched or
# made, which may take hours.
check_further() {
    "$python" -m command_line.further_flags "$me" "${further[@]}" >/dev/null || exit
}

# published BATCH LENGTH UPDATES SAMPLES_AN_EPOCH NOTE: the arithmetic of the document's run. SAMPLES 0: not repeated.
published() {
    awk -v batch="$1" -v length_="$2" -v updates="$3" -v samples="$4" -v note="$5" '
        function grouped(n,    text, out) {
            text = sprintf("%.0f", n)
            while (length(text) > 3) { out = "," substr(text, length(text) - 2) out; text = substr(text, 1, length(text) - 3) }
            return text out
        }
        BEGIN {
            printf "published run: batch %s x %s tokens = %s tokens an update; %s updates = %.3g G tokens", grouped(batch),
                grouped(length_), grouped(batch * length_), grouped(updates), updates * batch * length_ / 1e9
            if (samples > 0) printf "; %s samples: %s updates an epoch, %.3g epochs", grouped(samples),
                grouped(int(samples / batch)), updates * batch / samples
            printf "\n%s", note == "" ? "" : note "\n"
        }'
}

# prepared FILE INPUT COMMAND...: makes the training data FILE from INPUT unless they are there, or further flags name others.
prepared() {
    local file=$1 input=$2
    shift 2
    if given --train-path --dataset --plan-processes --plan-device; then return; fi
    if [ -e "$file" ]; then
        [ -z "${INPUT:-}" ] || echo "data: $file is there already, and INPUT=$INPUT is not read; DATA=FOLDER names another place"
        return
    fi
    [ -e "$input" ] || refuse "no training data $file, and no $input to make them from; name the corpus with INPUT=PATH, \
or prepared data with --train-path FILE. --sample needs none of them"
    printf '==%s\n' "$(printf ' %q' "$@")"
    relay "$@"
}

# train_on FLAG...: the prepared data, and how they are cut, as `source`; not where further flags name others, which come with
# theirs.
train_on() {
    source=("$@")
    ! given --train-path --dataset || source=()
}

# train FLAG...: the recipe, then the further flags. An interrupted run goes on from its last checkpoint.
train() {
    local keep=(--save-model-path "$output" --keep-checkpoints 1)
    given --overwrite --resume --resume-training-from-checkpoint || keep+=(--resume latest)
    exec "$python" train_gpt2.py "$@" "${keep[@]}" "${further[@]}"
}

# train_sample SIZE FLAG...: the same recipe for a small model of the kind (SIZE: "layers width heads", or the config.json of
# one that is there) on the excerpt of `make demo`: 8 x 128 tokens an update. Held-out articles decide whether it has learned
# more than how often each token occurs; if not, the exit status is 1.
train_sample() {
    output=$(last --save-model-path "$output")
    local size=$1 config=$output/small.json
    shift
    local split=(--train-path "$(last --train-path demo/corpus/wikicorpus_en_one_article_per_line.pkl)"
        --max-len "$(last --max-len 128)" --stride "$(last --stride 128)" --val-num "$(last --val-num 64)")
    given --train-path || relay bash run/demo_corpus.sh
    if [ -f "$size" ]; then
        config=$size
    else
        read -r layers width heads <<<"$size"
        "$python" -m model.derived_config --model "$model" --layers "$layers" --width "$width" --heads "$heads" --output "$config"
    fi
    given --overwrite --resume --resume-training-from-checkpoint || further=(--resume latest "${further[@]}")
    relay "$python" train_gpt2.py --config "$config" "$@" "${split[@]}" --batch-size 8 --device-iterations 1 \
        --num-workers 0 --log-steps 20 --save-model-path "$output" --save-per-steps 50 --keep-checkpoints 1 \
        "${further[@]}"
    ! given --compile-only || return 0
    local unigram held_out
    unigram=$("$python" -m data.baseline "${split[@]}" --seed "$(last --seed "${seed:-1234}")")
    held_out=$(awk -F, 'NR > 1 && $8 != "" { last = $8 } END { print last }' "$output/curves.csv")
    printf '\n== Summary\n%s\nheld-out loss of this model: %s\ncheckpoints: %s\n' "$unigram" "$held_out" "$output"
    awk -v loss="$held_out" -v unigram="${unigram##* }" 'BEGIN { exit !(loss < unigram) }' && return
    echo "$me: the model has not learned more than a unigram model knows; more --training-steps or another --learning-rate" >&2
    exit 1
}
