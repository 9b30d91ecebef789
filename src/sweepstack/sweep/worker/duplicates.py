"""Equivalent trials are trained once: who trains which effect, and what becomes of the others.

The worker that is to train a trial writes the trial's effect (`effect.py`) into its attribute
`sweepstack.effect`, once it has seen that no other has it: of all workers one trains each effect. A
trial whose effect another has is its *duplicate*. It is recorded with the other's numbers once that
has ended; until then it is deferred, RUNNING. A trial that fails lets go of its effect: the next
duplicate is trained, by whoever asks first.
"""

from __future__ import annotations

import time
from collections import OrderedDict, deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from optuna.trial import TrialState

from sweepstack.study.book import ENDED, Owner
from sweepstack.study.book.book import Book
from sweepstack.sweep.worker import Asked, Outcome
from sweepstack.training.spec import State

MAX_DEFERRED = 1024
"""Trials that are deferred at most; then no other is asked for until some have ended."""
LOOK_S = 0.5
"""Seconds between two looks at what other workers train."""
REMEMBERED = 1000
"""Trials of this worker whose numbers are kept, to be given to their duplicates without a query."""


@dataclass(frozen=True)
class Original:
    """A trial that was trained: what its duplicates are given.

    Attributes:
        number: in the study.
        state: complete or pruned.
        values: its objectives, of a complete one.
        attributes: its user attributes.
        reports: what it reported, by step.
    """

    number: int
    state: State
    values: Sequence[float]
    attributes: Mapping[str, Any]
    reports: Mapping[int, float]


class Equal(Protocol):
    """Knows which trials do the same; of sweepstack's own trials `trainer.Trainer` does."""

    def effect_of(self, asked: Asked) -> str | None:
        """The effect of a trial; None where it cannot be composed."""

    def outcome(self, asked: Asked, original: Original) -> Outcome:
        """Record a trial in its folder as equal to another, and say how it ended."""


class Duplicates:
    """What one worker does about equivalent trials.

    Args:
        book: the study's records.
        report: notes a duplicate's report (trial, step, value); it is written with its end.
        equal: knows a trial's effect, and records it as equal to another.
    """

    def __init__(
        self, book: Book, report: Callable[[Asked, int, float], None], equal: Equal
    ) -> None:
        self._book, self._report, self._equal = book, report, equal
        self._training: dict[int, str] = {}  # number -> effect, of this worker's
        self._deferred: dict[str, list[Asked]] = {}
        self._due: deque[tuple[Asked, Owner]] = deque()
        self._ready: deque[Asked] = deque()
        self._recent: OrderedDict[int, Original] = OrderedDict()
        self._looked = 0.0
        book.take_effects([])  # which reads those that the study has

    def admitted(self, batch: Sequence[Asked]) -> list[Asked]:
        """Those of many trials that are to be trained; the others come out of `settled` or
        `ready`."""
        effects = [self._equal.effect_of(asked) for asked in batch]
        wanted = [(a.trial, e) for a, e in zip(batch, effects, strict=True) if e is not None]
        owners = iter(self._book.take_effects(wanted) if wanted else ())
        trained: list[Asked] = []
        for asked, effect in zip(batch, effects, strict=True):
            if effect is None:  # it cannot be composed: whoever is to train it says why
                trained.append(asked)
            elif (owner := next(owners)) is None:
                self._training[asked.number] = effect
                trained.append(asked)
            elif owner.state in ENDED:
                self._due.append((asked, owner))
            else:
                self._deferred.setdefault(effect, []).append(asked)
        return trained

    @property
    def places(self) -> int:
        """How many more trials may be deferred; if none, no other should be asked for."""
        return max(0, MAX_DEFERRED - sum(map(len, self._deferred.values())))

    def ended(self, outcome: Outcome, state: TrialState) -> None:
        """Note how a trial of this worker ended, `state` being what was recorded."""
        asked = outcome.asked
        effect = self._training.pop(asked.number, None)
        owner = effect and self._book.effect_ended(effect, asked.number, state)
        if not effect or not owner:
            return
        if state not in ENDED:
            self._reconsider(effect)
            return
        reports = dict(self._book.reported(asked.trial).intermediate_values)
        self._recent[owner.number] = Original(
            owner.number, outcome.state, outcome.values, outcome.attributes, reports
        )
        if len(self._recent) > REMEMBERED:
            self._recent.popitem(last=False)
        self._due.extend((duplicate, owner) for duplicate in self._deferred.pop(effect, ()))

    def settled(self) -> Iterator[Outcome]:
        """Outcomes of trials whose original has ended; they are to be recorded."""
        self._look()
        while self._due:
            asked, owner = self._due[0]
            original = self._original(owner.number)
            outcome = self._equal.outcome(asked, original)
            self._due.popleft()  # not before: the storage may have been away
            for step, value in original.reports.items():
                self._report(asked, step, value)
            yield outcome

    def ready(self) -> Iterator[Asked]:
        """Trials that were deferred and are to be trained after all."""
        while self._ready:
            yield self._ready.popleft()

    def _reconsider(self, effect: str) -> None:
        """The trial that had an effect has failed: the first duplicate takes it, here or
        elsewhere."""
        duplicates = self._deferred.pop(effect, [])
        try:
            self._ready.extend(self.admitted(duplicates))
        except BaseException:  # the storage may be away
            self._deferred[effect] = duplicates
            raise

    def _look(self) -> None:
        """See which of the trials that other workers train have ended."""
        if not self._deferred or time.monotonic() < self._looked + LOOK_S:
            return
        self._looked = time.monotonic()
        mine = set(self._training.values())
        foreign = [effect for effect in self._deferred if effect not in mine]
        for effect, owner in self._book.owners(foreign).items():
            if owner.state in ENDED:
                self._due.extend((each, owner) for each in self._deferred.pop(effect))
            elif owner.state == TrialState.FAIL:
                self._reconsider(effect)

    def _original(self, number: int) -> Original:
        if number in self._recent:
            return self._recent[number]
        trial = self._book.trial(number)
        state: State = "complete" if trial.state == TrialState.COMPLETE else "pruned"
        values = tuple(trial.values or ()) if state == "complete" else ()
        reports = dict(sorted(trial.intermediate_values.items()))
        return Original(number, state, values, trial.user_attrs, reports)
