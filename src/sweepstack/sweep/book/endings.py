"""What is written of a trial that ended: outcomes become rows of the study.

An outcome is what a runner says of its trial; an ending is what `journal.py` writes. Between them
lies what the sweep has to say: an objective that is not finite is a failure, constraints are
judged, and every trial keeps what Hydra was told and where it was trained.
"""

from __future__ import annotations

import math

import optuna
from optuna.trial import TrialState

from sweepstack.runs.environment import environment, key_of
from sweepstack.study.attributes import ENVIRONMENT, OVERRIDES
from sweepstack.sweep.book.journal import Ending
from sweepstack.sweep.plan import Plan
from sweepstack.sweep.worker.trial import Outcome

_STATES = {
    "complete": TrialState.COMPLETE,
    "pruned": TrialState.PRUNED,
    "failed": TrialState.FAIL,
}


class Endings:
    """Says what is written of the trials of one worker."""

    def __init__(self, plan: Plan, study: optuna.Study):
        self._plan = plan
        self._environment = _kept_environment(study)

    def of(self, outcome: Outcome) -> Ending:
        """What is written of a trial that ended."""
        state, attributes = outcome.state, dict(outcome.attributes)
        bad = [value for value in outcome.values if not math.isfinite(value)]
        if state == "complete" and (bad or len(outcome.values) != len(self._plan.directions)):
            state = "failed"
            attributes.setdefault("error", f"the objective became {bad[0] if bad else 'nothing'}")
        violations = {
            constraint.name: violation
            for constraint in self._plan.constraints
            if (violation := constraint.violation(outcome.numbers)) is not None
        }
        values = outcome.values if state == "complete" else None
        attributes[OVERRIDES] = outcome.asked.overrides
        attributes[ENVIRONMENT] = self._environment
        return Ending(outcome.asked.trial, _STATES[state], values, attributes, violations)


def _kept_environment(study: optuna.Study) -> str:
    """The key under which the study keeps where this worker's trials are trained."""
    found = environment()
    key = key_of(found)
    name = f"{ENVIRONMENT}.{key}"
    if name not in study.user_attrs:
        study.set_user_attr(name, found)
    return key
