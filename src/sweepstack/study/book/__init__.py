"""What the records of a study hold: reports, endings, rows, counts, and the points of a grid."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import optuna
from optuna.trial import FrozenTrial, TrialState

from sweepstack.study.attributes import POINT

ENDED = (TrialState.COMPLETE, TrialState.PRUNED)


class Report(NamedTuple):
    """The objective of a running trial at a step."""

    trial: optuna.Trial
    step: int
    value: float


class Ending(NamedTuple):
    """How a trial ends. `values` are its objectives, one each, or None unless it is complete."""

    trial: optuna.Trial
    state: TrialState
    values: Sequence[float] | None
    attributes: Mapping[str, Any]
    constraints: Mapping[str, float]


class Row(NamedTuple):
    """A trial to be added: its fixed parameters and its user attributes."""

    parameters: Mapping[str, Any]
    attributes: Mapping[str, Any]

    @property
    def system(self) -> dict[str, Any]:
        """System attributes of a trial whose parameters are known before it is asked for."""
        return {"fixed_params": dict(self.parameters)} if self.parameters else {}


class Record(NamedTuple):
    """A trial as far as requeueing needs it; `silent_s` since its worker's last heartbeat, None for
    a trial that no sweep runs."""

    id: int
    number: int
    attributes: Mapping[str, Any]
    silent_s: float | None


@dataclass(frozen=True)
class Tally:
    """How many trials are in which state.

    Attributes:
        states: trials by state; failed ones that another replaces are left out.
        size: trials of all states, which is also the next trial's number.
        last: id of the last trial, -1 when there is none.
        waiting: ids of the waiting trials, in order.
    """

    states: Counter[TrialState]
    size: int
    last: int
    waiting: list[int]


@dataclass
class Owner:
    """The trial that has an effect (see `duplicates.py`); `state` as far as this process knows."""

    id: int
    number: int
    state: TrialState


class Grid:
    """Which points of a grid have no trial yet, without looking at all of them for each claim.

    Every trial of a grid carries its point (`attributes.POINT`). Trials are only ever added, so
    only those that were added since the last look are covered anew.
    """

    def __init__(
        self, points: Sequence[Mapping[str, Any]], first: Sequence[Mapping[str, Any]] = ()
    ):
        self._points = sorted(points, key=lambda p: p not in first) if first else points
        self._place, self.seen = 0, -1
        self._covered: set[str] = set()
        """Points at or behind `_place` that have a trial."""

    def cover(self, id_: int, mark: str) -> None:
        """Note that a trial has a point."""
        self._covered.add(mark)
        self.seen = max(self.seen, id_)

    def next(self, most: int) -> list[Row]:
        """The next points without a trial, at most `most`."""
        found: list[Row] = []
        for place in range(self._place, len(self._points)):
            if len(found) == most:
                break
            point = self._points[place]
            mark = canonical(point)
            if mark not in self._covered:
                found.append(Row(point, {POINT: mark}))
            elif not found:  # all before it have trials: never looked at again
                self._covered.discard(mark)
                self._place = place + 1
        return found


def canonical(point: Mapping[str, Any]) -> str:
    """A point as text, whatever order its parameters are declared in."""
    return json.dumps(dict(sorted(point.items())))


def is_suspected(retries: int, max_restarts: int) -> bool:
    """Whether a trial that was lost so often without progress may be what ended its workers, or
    only have been beside what did. It is run with no others than its like beside it."""
    return retries >= min(2, max(1, max_restarts))


def last_value(frozen: FrozenTrial) -> list[float]:
    """The objective of a pruned trial: its last report, as `Study.tell` has it."""
    if frozen.last_step is None:
        return []
    last = frozen.intermediate_values[frozen.last_step]
    return [] if math.isnan(last) else [last]
