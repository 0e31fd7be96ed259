"""When the inputs and outputs of one call moved: performance counters and latencies (spec section 10)."""

from __future__ import annotations

import time

Latency = tuple[float, float, float]


class Timings:
    """Timestamps (seconds of time.perf_counter) of one call; each list has an entry for each micro-batch.

    `inputs` and `outputs` are the numbers of tensors; all of a micro-batch move together. An input is asked for, then
    complete on the device; an output is available, then complete on the host.
    """

    def __init__(self, inputs: int = 1, outputs: int = 1):
        self._inputs = inputs
        self._outputs = outputs
        self.input: list[float] = []
        self.input_complete: list[float] = []
        self.output: list[float] = []
        self.output_complete: list[float] = []

    now = staticmethod(time.perf_counter)

    def now_at_end(self) -> float:
        """When the last output was complete; of a call without outputs, when the last input was."""
        return (self.output_complete or self.input_complete)[-1]

    def counters(self) -> dict[str, list[list[float]]]:
        """What getPerfCounters() returns: a list of timestamps for each tensor."""
        return {
            "input": [list(self.input) for _ in range(self._inputs)],
            "input_complete": [list(self.input_complete) for _ in range(self._inputs)],
            "output": [list(self.output) for _ in range(self._outputs)],
            "output_complete": [list(self.output_complete) for _ in range(self._outputs)],
        }

    def host_to_device(self) -> Latency:
        """From an input being asked for to its being on the device."""
        return self._latency(self.input, self.input_complete)

    def compute(self) -> Latency:
        """From the last input being on the device to the output being available."""
        return self._latency(self.input_complete, self.output, last=True)

    def device_to_host(self) -> Latency:
        """From an output being available to its being on the host."""
        return self._latency(self.output, self.output_complete)

    def round_trip(self) -> Latency:
        """From the first input being asked for to the output being on the host."""
        return self._latency(self.input, self.output_complete)

    def _latency(self, begins: list[float], ends: list[float], last: bool = False) -> Latency:
        """(minimum, maximum, average) over the ends; several begins that lead to one end count from the first or last.

        All 0 before the first call, and where outputs were not transferred.
        """
        if not begins or not ends:
            return (0.0, 0.0, 0.0)
        share = max(len(begins) // len(ends), 1)
        offset = share - 1 if last else 0
        spans = [end - begins[min(i * share + offset, len(begins) - 1)] for i, end in enumerate(ends)]
        return (min(spans), max(spans), sum(spans) / len(spans))
