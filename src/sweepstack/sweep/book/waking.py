"""Whether this machine has just woken up.

A laptop that slept for an hour finds every running trial silent for an hour, its own and those of
its other processes, until each has shown a sign of life again.
"""

from __future__ import annotations

import math
import time

LEAP_S = 30.0
"""By so much the clock has to leap beside the monotonic one, which stands still during sleep."""


class Waking:
    """Watches the clocks of this machine, looked at again and again."""

    def __init__(self) -> None:
        self._ahead_s, self._woke = _ahead_s(), -math.inf

    def within(self, seconds: float) -> bool:
        """Whether it woke in the last `seconds`, counted from the look that found it awake."""
        ahead_s, now = _ahead_s(), time.monotonic()
        if ahead_s - self._ahead_s > LEAP_S:
            self._woke = now
        self._ahead_s = ahead_s
        return now - self._woke < seconds


def _ahead_s() -> float:
    return time.time() - time.monotonic()
