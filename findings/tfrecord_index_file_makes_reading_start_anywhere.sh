#!/usr/bin/env bash
# tfrecord 1.14.6: an index file tells where records start, so giving one should change no more than the speed.
# Without a shard, reading with an index begins at a record drawn from numpy's global random state and wraps around:
# the order differs from call to call, though nothing asked to shuffle. And the index that the package itself makes
# for a file of one record cannot be read at all, because numpy.loadtxt returns a single row without its second
# dimension. Source: tfrecord_iterator in reader.py of the package; its documentation says only that the index may be
# left out. Date: 2026-11-29.
set -euo pipefail
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
python3 -m venv "$dir/venv"
"$dir/venv/bin/pip" install --quiet tfrecord==1.14.6 numpy==2.4.6 crc32c==2.9.post0 protobuf==7.36.2
cd "$dir"
"$dir/venv/bin/python" - <<'PY'
import importlib.metadata
import numpy
from tfrecord.reader import tfrecord_loader
from tfrecord.tools.tfrecord2idx import create_index
from tfrecord.writer import TFRecordWriter

def write(name, count):
    writer = TFRecordWriter(name + ".tfrecord")
    for number in range(count):
        writer.write({"id": ([number], "int")})
    writer.close()
    create_index(name + ".tfrecord", name + ".index")

def read(name, index):
    return [int(record["id"][0]) for record in tfrecord_loader(name + ".tfrecord", index, {"id": "int"})]

write("five", 5)
write("one", 1)
numpy.random.seed(1)
plain, indexed = read("five", None), [read("five", "five.index") for _ in range(8)]
try:
    single = read("one", "one.index")
except IndexError as error:
    single = f"IndexError: {error}"
print("version: tfrecord", importlib.metadata.version("tfrecord"))
print("expected: the same order with and without an index, and one record for a file of one")
print(f"seen: without {plain}; with {indexed[:3]}; one record: {single}")
assert plain == [0, 1, 2, 3, 4] and any(order != plain for order in indexed)
assert all(order == plain[order[0] :] + plain[: order[0]] for order in indexed)
assert single.startswith("IndexError")
PY
