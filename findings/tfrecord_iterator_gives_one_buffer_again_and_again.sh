#!/usr/bin/env bash
# tfrecord 1.14.6: tfrecord_iterator yields a memoryview for each record, and a list of them looks like the records of
# the file. All views are of one buffer that the next record overwrites, so a list holds the last record as often as
# there are records (cut to each one's length), without an error. Copy each with bytes() before asking for the next.
# tfrecord_loader, which parses at once, is safe. Source: read_records in reader.py of the package, whose
# documentation speaks only of an object that references the bytes. Date: 2026-11-29.
set -euo pipefail
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
python3 -m venv "$dir/venv"
"$dir/venv/bin/pip" install --quiet tfrecord==1.14.6 numpy==2.4.6 crc32c==2.9.post0 protobuf==7.36.2
cd "$dir"
"$dir/venv/bin/python" - <<'PY'
import importlib.metadata
from tfrecord.reader import tfrecord_iterator
from tfrecord.writer import TFRecordWriter

writer = TFRecordWriter("data.tfrecord")
for number in range(5):
    writer.write({"input_ids": ([10 * number, 10 * number + 1], "int")})
writer.close()
kept = {bytes(view) for view in list(tfrecord_iterator("data.tfrecord"))}
copied = {bytes(view) for view in tfrecord_iterator("data.tfrecord")}
print("version: tfrecord", importlib.metadata.version("tfrecord"))
print("expected: list(tfrecord_iterator(file)) holds 5 different records")
print(f"seen: it holds {len(kept)}; copied one by one there are {len(copied)}")
assert len(copied) == 5 and len(kept) == 1
PY
