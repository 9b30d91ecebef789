"""An `optuna.Trial` that is made from its known row, and whose parameters are written together.

`Study.ask` writes a row and reads it back, and each `suggest_*` is a transaction. Here the ledger,
which has just written the row, says what is in it, and the parameters are kept until `journal.py`
writes them, before the trial begins. Samplers, pruners and the user's own functions see no
difference.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import optuna
from optuna import pruners
from optuna.distributions import BaseDistribution
from optuna.trial import FrozenTrial


class Parameter(NamedTuple):
    """A parameter of a trial as it is stored: `value` is the distribution's internal number."""

    name: str
    value: float
    distribution: BaseDistribution


class LiveTrial(optuna.Trial):
    """A running trial of this process."""

    def __init__(self, study: optuna.Study, frozen: FrozenTrial):
        # What `optuna.Trial.__init__` sets (a test compares), without reading the row again.
        self.study = study
        self._trial_id = frozen._trial_id
        self._unwritten = _Unwritten(study._storage)
        self.storage: Any = self._unwritten
        self._cached_frozen_trial = frozen
        # Trials that are claimed together each have a sampler of their own.
        self._sampler = study.sampler
        study.sampler.before_trial(pruners._filter_study(study, frozen), frozen)
        self.relative_search_space: dict[str, BaseDistribution] | None = None
        self._relative_params: dict[str, Any] | None = None
        self._fixed_params = frozen.system_attrs.get("fixed_params", {})

    def _suggest(self, name: str, distribution: BaseDistribution) -> Any:
        self.study.sampler = self._sampler
        return super()._suggest(name, distribution)

    def take_parameters(self) -> list[Parameter]:
        """The parameters that are not written yet; from now on they count as written."""
        parameters, self._unwritten.parameters = self._unwritten.parameters, []
        return parameters


class _Unwritten:
    """The study's storage, but for parameters, which are kept."""

    def __init__(self, storage: Any):
        self._storage = storage
        self.parameters: list[Parameter] = []

    def set_trial_param(
        self, trial_id: int, name: str, value: float, distribution: BaseDistribution
    ) -> None:
        self.parameters.append(Parameter(name, value, distribution))

    def __getattr__(self, name: str) -> Any:
        return getattr(self._storage, name)
