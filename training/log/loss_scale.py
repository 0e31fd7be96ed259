"""What becomes of the automatic loss scale: a run whose gradients grow towards the end of half's range says so."""

from __future__ import annotations

_FALL = 16.0  # the scale halves and doubles all the time; a fall by less than this is none


class FallingScale:
    """Notices that the loss scale of --auto-loss-scaling has become much smaller than it was.

    PopTorch skips no update: gradients beyond the range of half are cut off at its end, and the scale halves.
    """

    def __init__(self) -> None:
        self._highest, self._at = 0.0, 0

    def line(self, step: int, scale: float) -> str | None:
        """What to print after this step; None unless the scale has fallen. A further fall is told again."""
        if scale >= self._highest:
            self._highest, self._at = scale, step
            return None
        if scale > self._highest / _FALL:
            return None
        before, since = self._highest, self._at
        self._highest, self._at = scale, step
        return (
            f"WARNING: the loss scale fell from {before:g} (step {since}) to {scale:g} (step {step}): gradients grow "
            "towards the end of half's range. No update is skipped; what is beyond the range is cut off."
        )
