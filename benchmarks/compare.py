"""A new result of `python3 -m examples_utils benchmark` beside the recorded ones.

    python benchmarks/compare.py benchmark_logs/compare/benchmark_results.json
    python benchmarks/compare.py RESULTS.json --record      # keep them, too

For every variant and metric: the newest record, on the same hardware if there is one, where and when it was, the new
figure and the quotient of the two. Below, what the benchmarks against alternatives have recorded. The exit status is 1
if nothing could be compared, 2 if a file cannot be used; a slower figure is no failure, for machines drift.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.record import speed_ups  # noqa: E402
from corpora.program import ProgramParser  # noqa: E402

RECORDS = Path(__file__).resolve().parent / "records"
RECORD = RECORDS / "benchmarks_yml.json"


def read(path: Path) -> Any:
    """A JSON file. Raises ValueError saying what is wrong with it."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ValueError(f"{path}: cannot be read ({getattr(error, 'strerror', None) or error})") from error


def new_records(results: Any, path: Path) -> list[dict[str, Any]]:
    """What the results of a session come to as records; failures and profiled runs are none. Raises ValueError."""
    try:
        if results["arguments"]["profile"]:
            raise ValueError(f"{path}: was measured under a profiler; run it without --profile")
        head = {"date": results["date"][:10], "hardware": results["machine"]["hardware"], "commit": results["commit"]}
        return [
            {
                **head,
                "versions": results["versions"],
                "variant": each["variant"],
                "metrics": each["metrics"],
                **({"rules": each["rules"]} if "rules" in each else {}),
            }
            for each in results["benchmarks"]
            if each["status"] == "success" and each["metrics"]
        ]
    except (KeyError, TypeError) as error:
        raise ValueError(f"{path}: no benchmark_results.json ({error} is missing)") from error


def matching(records: list[dict[str, Any]], new: dict[str, Any]) -> dict[str, Any] | None:
    """The newest record of the variant, of the same hardware before all others."""
    same = [record for record in records if record["variant"] == new["variant"]]
    here = [record for record in same if record["hardware"] == new["hardware"]]
    return max(here or same, key=lambda record: record["date"], default=None)


def table(records: list[dict[str, Any]], news: list[dict[str, Any]]) -> list[str]:
    """Old and new figures, a line each."""
    lines = []
    for new in news:
        old = matching(records, new)
        lines.append(new["variant"])
        if old is not None:
            where = "this hardware" if old["hardware"] == new["hardware"] else f"OTHER HARDWARE: {old['hardware']}"
            lines.append(f"  recorded {old['date']}, {where}, commit {(old['commit'] or 'unknown')[:12]}")
        for name, value in new["metrics"].items():
            before = old["metrics"].get(name) if old is not None else None
            if before is None:
                lines.append(f"  {name:<14} {'no record':>12} {value:>12,.4g}")
            else:
                quotient = f"{value / before:8.2f} x" if before else ""
                lines.append(f"  {name:<14} {before:>12,.4g} {value:>12,.4g} {quotient}")
                rules = [each.get("rules", {}).get(name) for each in (old, new)]
                if None not in rules and rules[0] != rules[1]:
                    lines.append(f"    by other rules: recorded {rules[0]}, now {rules[1]}")
    return lines


def alternatives() -> list[str]:
    """The records of the benchmarks that measure an alternative in the same run, a line a figure."""
    lines = []
    for path in sorted(RECORDS.glob("*.json")):
        record = read(path)
        if path == RECORD or not isinstance(record, dict):
            continue
        for name, times in speed_ups(record.get("results")):
            lines.append(f"  {path.stem:<22} {name:<46} {times:6.2f} x   {record['date']}, {record['hardware']}")
    return lines


def main(argv: list[str]) -> int:
    """Compares and prints. Returns the exit status."""
    parser = ProgramParser("benchmarks/compare.py", __doc__)
    parser.add_argument("results", type=Path, help="benchmark_results.json of a session")
    parser.add_argument("--record", action="store_true", help=f"add the figures to {RECORD.name}")
    args = parser.parse_args(argv)
    try:
        records = read(RECORD) if RECORD.exists() else []
        news = new_records(read(args.results), args.results)
        others = alternatives()
    except ValueError as error:
        print(f"compare: {error}", file=sys.stderr)
        return 2
    print(f"{'':<16} {'recorded':>12} {'now':>12}  now / recorded")
    print("\n".join(table(records, news) or ["no benchmark succeeded: there is nothing to compare"]))
    if others:
        print("beside the alternatives, measured in one run with them (above 1 ours is faster):")
        print("\n".join(others))
    if args.record and news:
        RECORD.write_text(json.dumps(records + news, indent=2) + "\n", encoding="utf-8")
        print(f"written to {RECORD}")
    return 0 if news else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
