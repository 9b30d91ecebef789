"""Writing through Optuna's public functions, where its tables are not those that we know.

`journal.py` writes rows of Optuna 5's tables directly, many in one transaction. Another version may
have other tables; then the same is done by what every version has, one transaction for each value:
slower, and with the same rows (a test compares them).
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence
from functools import cache

import optuna
from optuna.exceptions import UpdateFinishedTrialError
from optuna.trial import TrialState

from sweepstack.study.attributes import EQUALS
from sweepstack.sweep.book import records
from sweepstack.sweep.book.journal import Ending, Journal, Report
from sweepstack.sweep.book.live_trial import LiveTrial

log = logging.getLogger(__name__)

NEEDED = {
    "TrialModel": ("trial_id", "number", "study_id", "state", "datetime_complete"),
    "TrialParamModel": ("trial_id", "param_name", "param_value", "distribution_json"),
    "TrialIntermediateValueModel": (
        *("trial_id", "step", "intermediate_value", "intermediate_value_type"),
    ),
    "TrialValueModel": ("trial_id", "objective", "value", "value_type"),
    "TrialUserAttributeModel": ("trial_id", "key", "value_json"),
    "TrialSystemAttributeModel": ("trial_id", "key", "value_json"),
}
"""What the journal writes: columns by table."""


def journal_of(study: optuna.Study) -> Journal:
    """The journal of a study: the fast one, if this Optuna has the tables that it knows."""
    missing = tuple(
        column for name, columns in NEEDED.items() for column in records.missing(name, columns)
    )
    if not missing:
        return Journal(study)
    _say(missing)
    return PublicJournal(study)


@cache
def _say(missing: tuple[str, ...]) -> None:
    log.warning(
        "Optuna %s has no %s: results are written by its public functions, which takes longer",
        optuna.__version__,
        ", ".join(missing[:3]),
    )


class PublicJournal(Journal):
    """Writes for the trials of one study, value by value."""

    def parameters(self, trials: Iterable[LiveTrial]) -> None:
        """Write the parameters that were suggested to trials since the last time."""
        storage = self.study._storage
        self.study.get_trials(deepcopy=False)  # or Optuna's cache would not know the new ones
        for trial in trials:
            for name, value, distribution in trial.take_parameters():
                storage.set_trial_param(trial._trial_id, name, value, distribution)

    def write(self, reports: Iterable[Report] = (), endings: Sequence[Ending] = ()) -> list[int]:
        """Write reports and how trials ended; see `Journal.write`. A result is kept once its trial
        has its state, which comes last."""
        lost = [e.trial.number for e in endings if not self._is_running(e.trial)]
        for trial, step, value in reports:
            known = trial._cached_frozen_trial.intermediate_values
            if trial.number not in lost and step not in known:
                trial.report(value, step)
        for ending in endings:
            if ending.trial.number not in lost and not self._end(ending):
                lost.append(ending.trial.number)
        return lost

    def best(self, direction: str) -> float | None:
        """The best value of a complete trial that keeps its constraints, of one objective."""
        complete = self.study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
        kept = [t.value for t in complete if all(v <= 0 for v in t.constraints.values())]
        values = [value for value in kept if value is not None]
        return (max if direction == "maximize" else min)(values, default=None)

    def steps(self) -> int:
        """Training steps of all finished trials."""
        trials = self.study.get_trials(deepcopy=False)
        trained = (trial.user_attrs for trial in trials if EQUALS not in trial.user_attrs)
        return sum(attributes.get("steps") or 0 for attributes in trained)

    def _is_running(self, trial: optuna.Trial) -> bool:
        return self.study._storage.get_trial(trial._trial_id).state == TrialState.RUNNING

    def _end(self, ending: Ending) -> bool:
        """Whether the trial was still running to its end."""
        trial, known = ending.trial, ending.trial.user_attrs
        try:
            for key, value in ending.attributes.items():
                if key not in known:
                    trial.set_user_attr(key, value)
            for name, violation in ending.constraints.items():
                trial.set_constraint(name, violation)
            self.study.tell(trial, ending.values, state=ending.state)
        except (UpdateFinishedTrialError, ValueError):
            return False
        return True
