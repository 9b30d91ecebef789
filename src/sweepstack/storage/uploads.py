"""The thread in which a worker puts the files of ended trials into the study's artifact store."""

from __future__ import annotations

import contextlib
import logging
import math
import os
import queue
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from sweepstack.config.errors import EnvironmentFault
from sweepstack.storage.artifacts import DONE, MAX_BATCH, MODELS, Store, holdings, name_of, pack
from sweepstack.storage.patience import ignored

log = logging.getLogger(__name__)

RETRY_S = 30.0
"""Seconds after which a store that failed is tried again."""
DRAIN_S = 10.0
"""Seconds that a worker which was asked to stop still puts files into the store."""


class Uploads:
    """Puts the files of ended trials into the study's artifact store, in a thread of its own.

    A number waits for each trial, and its files on the disk, so that no trial waits for the store:
    what gathers while an archive is sent is sent as one, `MAX_BATCH` trials at most.

    Args:
        store: the study's.
        folder: that of its trials.
        ended: the numbers of the study's trials that ended for good, to find those whose files an
            earlier process left.
        stopped: whether a signal asked to stop; then at most `DRAIN_S` are spent at the end.
    """

    def __init__(
        self,
        store: Store,
        folder: Path,
        ended: Callable[[], set[int]],
        stopped: Callable[[], bool] = lambda: False,
    ):
        self._store, self._folder, self._ended, self._stopped = store, folder, ended, stopped
        self._waiting: queue.SimpleQueue[int | None] = queue.SimpleQueue()
        self._left: set[int] = set()
        self._tried, self._said = -math.inf, False
        self._thread = threading.Thread(target=self._run, name="sweepstack-artifacts", daemon=True)

    def add(self, number: int) -> None:
        """A trial has ended, and its end is written."""
        self._waiting.put(number)

    def __enter__(self) -> Uploads:
        self._thread.start()
        return self

    def __exit__(self, *raised: object) -> None:
        self._waiting.put(None)
        latest = math.inf
        while self._thread.is_alive() and time.monotonic() < latest:
            self._thread.join(0.1)
            if latest == math.inf and self._stopped():
                latest = time.monotonic() + DRAIN_S

    def rest(self) -> bool:
        """Put there what others left undone here, at once; return whether all of it is there."""
        self._said = True  # by the worker
        try:
            self._find()
        except EnvironmentFault as error:
            log.warning("%s; files of trials may be on this machine alone", error)
            return False
        self._put(last=True)
        if self._left:
            log.warning(
                "the files of %d trials are on this machine alone: run the same command again, "
                "when %s can be written",
                len(self._left),
                self._store.where,
            )
        return not self._left

    def _run(self) -> None:
        try:
            self._find()
        except EnvironmentFault as error:
            self._say(error)
        is_last = False
        while not is_last:
            wait = RETRY_S if self._left else None
            with contextlib.suppress(queue.Empty):
                is_last = self._note(self._waiting.get(timeout=wait))
                while not is_last:
                    is_last = self._note(self._waiting.get_nowait())
            self._put(last=is_last)

    def _note(self, number: int | None) -> bool:
        if number is not None:
            self._left.add(number)
        return number is None

    def _find(self) -> None:
        """Note the trials whose files are here and not in the store."""
        try:
            small, models = holdings(self._store.sizes())
            here = {int(name) for name in os.listdir(self._folder) if name.isdecimal()}
        except FileNotFoundError:
            return
        whole = {n for n in here - set(small) if (self._folder / str(n) / DONE).exists()}
        best = MODELS[-1]
        whole |= {n for n in here - set(models) if (self._folder / str(n) / best).exists()}
        if whole:  # of those that run, or run again, the end is still to come
            with ignored():
                self._left |= whole & self._ended()

    def _put(self, *, last: bool) -> None:
        """Send what waits, unless the store failed a moment ago."""
        if not last and time.monotonic() < self._tried + RETRY_S:
            return
        self._tried = -math.inf
        try:
            with tempfile.TemporaryDirectory(prefix="sweepstack-") as scratch:
                while self._left:
                    self._send(sorted(self._left)[:MAX_BATCH], Path(scratch) / "archive")
        except (EnvironmentFault, OSError) as error:
            self._tried = time.monotonic()
            self._say(error)

    def _send(self, numbers: Sequence[int], file: Path) -> None:
        for number in numbers:
            has_model = (self._folder / str(number) / MODELS[-1]).exists()
            if has_model and (found := pack(self._folder, [number], file, models=True)):
                self._store.write(name_of(found, models=True), file)
        if found := pack(self._folder, numbers, file):
            self._store.write(name_of(found), file)
        self._left.difference_update(numbers)

    def _say(self, error: Exception) -> None:
        if not self._said:
            log.warning("%s; the sweep goes on, and tries again", error)
            self._said = True
