"""Signs of life of a worker, so that nobody takes its trials for dead."""

from __future__ import annotations

import contextlib
import threading
from types import TracebackType

from sweepstack.sweep.book.ledger import Ledger
from sweepstack.sweep.worker.trial import Asked

BEAT_S = 20.0
"""Seconds between two signs of life, well within the ledger's grace."""


class Heart:
    """Shows a sign of life for the trials in hand, from a thread of its own."""

    def __init__(self, ledger: Ledger, running: dict[int, Asked]):
        self._ledger, self._running = ledger, running
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._beat, name="sweepstack-heart", daemon=True)

    def __enter__(self) -> Heart:
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._over.set()
        self._thread.join()

    def _beat(self) -> None:
        while not self._over.wait(BEAT_S):
            with contextlib.suppress(Exception):  # the next write of the worker itself will say it
                self._ledger.beat([asked.trial for asked in list(self._running.values())])
