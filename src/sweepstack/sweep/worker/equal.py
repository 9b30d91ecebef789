"""Trials of sweepstack that do what another does: their effect, and how they are recorded as equal.

A trial's folder then says whose numbers it has, and holds the other's history; its attributes are
the other's but for what is its own: seed, config_hash, `seconds` 0, and `equals`, the other's
number.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from hydra.errors import HydraException
from omegaconf.errors import OmegaConfBaseException

from sweepstack.config import reading as config
from sweepstack.config.effect import effect
from sweepstack.config.errors import SweepstackError
from sweepstack.config.schema import RunConfig
from sweepstack.engine.spec import State, TrialSpec
from sweepstack.study.attributes import EQUALS
from sweepstack.sweep.plan import Plan
from sweepstack.sweep.space import points
from sweepstack.sweep.worker.composition import Composition
from sweepstack.sweep.worker.trial import Asked, Outcome
from sweepstack.sweep.worker.trial_folder import TrialFolder

MOST_COUNTED = 20_000
"""Points of a grid whose effects `count` compares at most; each takes a tenth of a millisecond or
two."""


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


class Equal:
    """Knows the effects of one worker's trials.

    Args:
        read: the typed config of overrides; raises what `TrainingApp.read` does.
        place: a trial's folder, by its number.
        line: numbers of the lost trials that a trial stands for.
    """

    def __init__(
        self,
        read: Callable[[Sequence[str]], RunConfig],
        place: Callable[[int], TrialFolder],
        line: Callable[[Asked], list[int]],
    ):
        self._read, self._place, self._line = read, place, line
        self._configs: dict[int, RunConfig] = {}

    def effect_of(self, asked: Asked) -> str | None:
        """The effect of a trial; None where it cannot be composed."""
        found = self._configs.get(asked.number)
        if found is None:
            try:
                found = self._read(asked.overrides)
            except (SweepstackError, HydraException, OmegaConfBaseException):
                return None
            self._configs[asked.number] = found
        return effect(found)

    def config_of(self, asked: Asked) -> RunConfig:
        """The config of a trial, for the last time that it is asked for.

        Raises:
            SweepstackError, HydraException, OmegaConfBaseException: it cannot be composed.
        """
        found = self._configs.pop(asked.number, None)
        return self._read(asked.overrides) if found is None else found

    def outcome(self, asked: Asked, original: Original) -> Outcome:
        """Record a trial in its folder as equal to another, and say how it ended.

        Raises:
            EnvironmentFault: the disk is full or the folder cannot be made.
        """
        place = self._place(asked.number)
        spec = TrialSpec(self.config_of(asked), number=asked.number, folder=place.path)
        attributes = {
            key: value
            for key, value in original.attributes.items()
            if not key.startswith("sweepstack.")
        }
        own = {"seed": spec.config.training.seed, "config_hash": spec.config_hash}
        attributes |= {**own, "seconds": 0.0, EQUALS: original.number}
        numbers = {
            key: value
            for key, value in original.attributes.items()
            if isinstance(value, int | float) and not isinstance(value, bool)
        }
        values = tuple(original.values)
        outcome = Outcome(asked, original.state, values, attributes, numbers=numbers)
        place.begin(spec, asked.overrides, self._line(asked))
        place.equal(outcome, original.number)
        return outcome


def count(plan: Plan, composition: Composition) -> int | None:
    """How many points of a grid have the effect of an earlier one; None where there are too many
    points to know it soon, or there is no grid."""
    if not plan.grid or plan.total is None or plan.total > MOST_COUNTED:
        return None
    read, seen = _Quickly(), set()
    for point in points.arranged(plan.space, plan.order)[: plan.total]:
        overrides = [*plan.space.fixed, *plan.space.overrides(point)]
        seen.add(effect(read(composition(overrides))))
    return plan.total - len(seen)


class _Quickly:
    """`config.read_plain` for many configs that were checked: a group is read once per value."""

    def __init__(self) -> None:
        self._known: dict[str, dict[str, Any]] = {}

    def __call__(self, plain: Mapping[str, Any]) -> RunConfig:
        texts = {group: repr(node) for group, node in plain.items()}
        try:
            groups = {group: self._known[group][text] for group, text in texts.items()}
        except KeyError:
            found = config.read_plain(plain)
            for group, text in texts.items():
                self._known.setdefault(group, {})[text] = getattr(found, group)
            return found
        return RunConfig(**groups)
