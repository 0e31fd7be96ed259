#!/usr/bin/env bash
# Plain text of the articles of a Wikipedia dump: OUTDIR/AA/wiki_00 ..., by WikiExtractor on all cores.
set -euo pipefail

fail() { # STATUS MESSAGE
    echo "wikipedia_extract.sh: $2" >&2
    exit "$1"
}

if [ "${1:-}" = -h ] || [ "${1:-}" = --help ]; then
    echo "usage: wikipedia_extract.sh DUMP OUTDIR   (DUMP: .xml or .xml.bz2; set PYTHON to choose the interpreter,"
    echo "       EXTRACT_PATIENCE to how many seconds one of WikiExtractor's processes may have failed before all end: 30)"
    exit 0
fi
for argument in "$@"; do
    case $argument in -*) fail 2 "$argument: unknown flag; usage: wikipedia_extract.sh DUMP OUTDIR" ;; esac
done
[ $# -eq 2 ] || fail 2 "usage: wikipedia_extract.sh DUMP OUTDIR (DUMP: .xml or .xml.bz2)"
dump=$1 out=$2
[ -f "$dump" ] && [ -r "$dump" ] || fail 2 "$dump: no such file; fetch it with data/wikipedia_download.sh"
[ -s "$dump" ] || fail 2 "$dump is empty; fetch it again with data/wikipedia_download.sh"
case $dump in
    *.xml | *.xml.bz2) ;;
    *) fail 2 "$dump: expected a name ending in .xml or .xml.bz2" ;;
esac

# A dump is known by its name and size, wherever it lies.
own="$(basename "$dump") $(wc -c <"$dump" | tr -d ' ')"
if [ -d "$out/AA" ]; then
    from=$(cat "$out/.extracted-from" 2>/dev/null || echo "$own")
    [ "$from" = "$own" ] ||
        fail 2 "$out holds the text of another dump (${from% *}, ${from##* } bytes); remove it or choose another folder"
    [ ! "$dump" -nt "$out/AA" ] || fail 2 "$out holds the text of an older dump; remove it or choose another folder"
    echo "$out/AA is there already: nothing to do (remove $out to extract again)"
    exit 0
fi

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
if [ -z "${PYTHON:-}" ]; then
    PYTHON=python3
    [ -n "${VIRTUAL_ENV:-}" ] || [ ! -x "$root/.venv/bin/python" ] || PYTHON=$root/.venv/bin/python
fi
"$PYTHON" -c 'import wikiextractor' 2>/dev/null ||
    fail 2 "$PYTHON has no WikiExtractor: the environment is not set up. Run \`make setup\` in $root (on an IPU host:\
 $PYTHON -m pip install -r $root/requirements.txt)"

export PYTHONIOENCODING=utf-8 LC_ALL=C.UTF-8 # or WikiExtractor may raise UnicodeEncodeError
mkdir -p "$out" || fail 2 "cannot make the folder $out"
work=$(mktemp -d "$out/.extract.XXXXXX") || fail 2 "cannot write to the folder $out"
trap 'rm -rf "$work"' EXIT
# WikiExtractor's processes wait for each other for ever once Ctrl-C has reached some of them. In a process group of
# their own it reaches this script alone, which ends them all.
extractor=
stop() {
    trap '' INT TERM HUP
    [ -z "$extractor" ] || kill -KILL -- "-$extractor" 2>/dev/null || true
    wait 2>/dev/null || true
    fail 130 "interrupted, nothing written"
}
trap stop INT TERM HUP
# So they do when one of them has failed, on a full disk for instance: the others wait for what it does not do any more.
failed_for=0 # half seconds
a_process_has_failed() { # and was not waited for by its parent for so long; of those that have done their work the status is 0
    local child stat
    for child in $(cat "/proc/$extractor/task/$extractor/children" 2>/dev/null); do
        stat=$(cat "/proc/$child/stat" 2>/dev/null) || continue
        read -ra stat <<<"${stat##*) }" # from the third field of proc(5) on: the state; the 52nd is the exit status
        [ "${stat[0]}" != Z ] || [ "${stat[49]:-0}" = 0 ] || {
            failed_for=$((failed_for + 1))
            [ "$failed_for" -ge "$((2 * ${EXTRACT_PATIENCE:-30}))" ]
            return
        }
    done
    failed_for=0
    return 1
}
set -m
"$PYTHON" -m wikiextractor.WikiExtractor "$dump" --output "$work" --processes "$(getconf _NPROCESSORS_ONLN)" </dev/null &
extractor=$!
set +m
while [ -n "$(jobs -rp)" ]; do
    sleep 0.5
    if a_process_has_failed; then
        kill -KILL -- "-$extractor" 2>/dev/null || true
        wait 2>/dev/null || true
        room=$(df -hP "$out" | awk 'NR == 2 {print $4}')
        fail 1 "a process of WikiExtractor has failed (see above) on $dump; nothing written. In $out there is room for $room"
    fi
done
wait "$extractor" || fail 1 "WikiExtractor failed (see above) on $dump"
trap - INT TERM HUP
grep -q '^<doc ' "$work/AA/wiki_00" 2>/dev/null || fail 2 "$dump holds no article; is it a Wikipedia dump?"
# Last to first, so that AA, which means done, appears when all the others are there.
echo "$own" >"$out/.extracted-from" || fail 2 "cannot write to the folder $out"
for folder in $(ls -r "$work"); do mv "$work/$folder" "$out/"; done
echo "wrote $out/AA ... ($(du -sh "$out" | cut -f1))"
