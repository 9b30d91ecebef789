"""Ctrl-C and SIGTERM while a sweep runs."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from collections.abc import Callable, Iterator
from multiprocessing import resource_tracker
from types import FrameType
from typing import Any

from sweepstack.config.errors import EXIT_INTERRUPTED, EXIT_TERMINATED
from sweepstack.sweep.worker.trial import Stop


def interrupt(stop: Stop) -> None:
    """Raise KeyboardInterrupt where code runs that knows nothing of `stop`; only once, so that
    nothing interrupts what comes after it."""
    if stop.interrupts:
        stop.interrupts = False
        raise KeyboardInterrupt


@contextlib.contextmanager
def held(stop: Stop) -> Iterator[None]:
    """Let a signal wait that would interrupt: what is done in between is done whole."""
    before, stop.interrupts = stop.interrupts, False
    try:
        yield
    finally:
        stop.interrupts = before
    if stop.code is not None:
        interrupt(stop)


@contextlib.contextmanager
def signals(stop: Stop, *, repeated: Callable[[int], None] | None = None) -> Iterator[None]:
    """The first Ctrl-C or SIGTERM asks to stop; the second ends the process at once.

    Args:
        stop: asked.
        repeated: called at a second signal instead of ending the process.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before: dict[int, Any] = {n: signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)}

    def handle(number: int, frame: FrameType | None) -> None:
        code = EXIT_INTERRUPTED if number == signal.SIGINT else EXIT_TERMINATED
        if stop.code is None:
            stop.ask(code)
            interrupt(stop)
        elif repeated is not None:
            repeated(code)
        else:
            os._exit(code)

    for number in before:
        signal.signal(number, handle)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextlib.contextmanager
def deaf() -> Iterator[None]:
    """Let Ctrl-C wait; a process that starts now does not hear it before it wants to."""
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    resource_tracker.ensure_running()  # or `Process.start` starts it, and hears Ctrl-C after that
    before = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT])
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
