"""Which points of a grid have no trial yet, without reading all of them for each claim.

Every trial of a grid carries its point as a user attribute (`attributes.POINT`). Trials are only
ever added, under the study's lock, so each process reads the attributes of those that were added
since it last looked, by whomever, and goes on where it was in the list.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from sqlalchemy import Connection, select

from sweepstack.study.attributes import POINT
from sweepstack.sweep.book.records import Row, Trials, UserAttributes

_ROWS = Trials.__table__.c
_ATTRIBUTES = UserAttributes.__table__.c


class Layout:
    """The points of one study's grid, for one process.

    Args:
        study_id: the study's row.
        points: pairwise different, the same in the same order in every process.
        first: those of them that come before the others.
    """

    def __init__(
        self,
        study_id: int,
        points: Sequence[Mapping[str, Any]],
        first: Sequence[Mapping[str, Any]] = (),
    ):
        self._study_id = study_id
        self._points = sorted(points, key=lambda p: p not in first) if first else points
        self._place, self._seen = 0, -1
        self._covered: set[str] = set()
        """Points at or behind `_place` that have a trial."""

    def next(self, connection: Connection, most: int) -> list[Row]:
        """The next points without a trial, at most `most`; the transaction holds the study."""
        self._see(connection)
        found: list[Row] = []
        for place in range(self._place, len(self._points)):
            if len(found) == most:
                break
            point = self._points[place]
            mark = canonical(point)
            if mark not in self._covered:
                found.append((point, {POINT: mark}))
            elif not found:  # all before it have trials: never looked at again
                self._covered.discard(mark)
                self._place = place + 1
        return found

    def _see(self, connection: Connection) -> None:
        """Note the points of the trials that are new."""
        query = select(_ROWS.trial_id, _ATTRIBUTES.value_json)
        query = query.join(UserAttributes, _ATTRIBUTES.trial_id == _ROWS.trial_id)
        query = query.where(_ROWS.study_id == self._study_id, _ATTRIBUTES.key == POINT)
        for trial_id, text in connection.execute(query.where(_ROWS.trial_id > self._seen)):
            self._covered.add(json.loads(text))
            self._seen = max(self._seen, trial_id)


def canonical(point: Mapping[str, Any]) -> str:
    """A grid's point as text, whatever order its parameters are declared in."""
    return json.dumps(dict(sorted(point.items())))
