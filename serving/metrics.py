"""What the server counts, in Prometheus's text format: https://prometheus.io/docs/instrumenting/exposition_formats/"""

from __future__ import annotations

import threading
from typing import Iterator, Mapping

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
_SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)


class Histogram:
    """How many seconds things took; `observe` may be called from any thread."""

    def __init__(self) -> None:
        self._counts, self._sum, self._lock = [0] * (len(_SECONDS) + 1), 0.0, threading.Lock()

    def observe(self, seconds: float) -> None:
        with self._lock:
            self._counts[sum(seconds > bound for bound in _SECONDS)] += 1
            self._sum += seconds

    def lines(self, name: str) -> Iterator[str]:
        with self._lock:
            counts, total = list(self._counts), self._sum
        below = 0
        for bound, count in zip([*map(str, _SECONDS), "+Inf"], counts):
            below += count
            yield f'{name}_bucket{{le="{bound}"}} {below}'
        yield f"{name}_sum {total}"
        yield f"{name}_count {below}"


class Metrics:
    """Requests by path and status, and the times of texts; what the engine counts is read when asked for."""

    def __init__(self) -> None:
        self._requests: dict[tuple[str, int], int] = {}
        self._lock = threading.Lock()
        self.first_token, self.whole = Histogram(), Histogram()

    def count(self, path: str, status: int) -> None:
        with self._lock:
            self._requests[path, status] = self._requests.get((path, status), 0) + 1

    def text(self, counters: Mapping[str, tuple[str, float]], gauges: Mapping[str, tuple[str, float]]) -> str:
        """The page; `counters` and `gauges` have a help text and a value by name."""
        with self._lock:
            requests = sorted(self._requests.items())
        lines = ["# HELP serving_requests_total Requests answered.", "# TYPE serving_requests_total counter"]
        lines += [
            f'serving_requests_total{{path="{path}",status="{status}"}} {count}' for (path, status), count in requests
        ]
        for kind, family in (("counter", counters), ("gauge", gauges)):
            for name, (about, value) in family.items():
                lines += [f"# HELP {name} {about}", f"# TYPE {name} {kind}", f"{name} {value}"]
        for name, about, histogram in (
            ("serving_first_token_seconds", "From a request to the first token of a text.", self.first_token),
            ("serving_text_seconds", "From a request to the end of a text.", self.whole),
        ):
            lines += [f"# HELP {name} {about}", f"# TYPE {name} histogram", *histogram.lines(name)]
        return "\n".join(lines) + "\n"
