"""What makes a trial the one it is: overrides of the values that are suggested to it.

They are the sweep's own (`space.py`), the same in every trial or suggested by the sampler, and
those of the user's function (`hook.py`).
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import optuna
from omegaconf import OmegaConf

from sweepstack.config import trust
from sweepstack.config.errors import SweepstackError
from sweepstack.study.storage import FAILURES
from sweepstack.sweep.plan import Plan
from sweepstack.sweep.space import grammar, hook


class Words:
    """Finds the overrides of trials, whose parameters are suggested on the way.

    Args:
        plan: the sweep's.
        config: gives the config without the swept values; asked only for a custom search space.
    """

    def __init__(self, plan: Plan, config: Callable[[], Any]):
        self._space = plan.space
        self._hook: Callable[[Any, optuna.Trial], None] | None = None
        if plan.custom_search_space:
            self._hook = hook.find(plan.custom_search_space)
            self._base = OmegaConf.create(config())

    def of(self, trial: optuna.Trial) -> list[str]:
        """The overrides of a trial.

        Raises:
            ValueError: it has parameters of another space, or the sampler or the user's function
                raised.
        """
        try:
            point = self._space.suggest(trial)
        except (SweepstackError, ValueError, *FAILURES):
            raise
        except Exception as error:  # of its mathematics
            raise ValueError(f"the sampler raised {type(error).__name__}: {error}") from error
        words = [*self._space.fixed, *self._space.overrides(point)]
        return words + self._suggested_by_hook(trial, set(point))

    def _suggested_by_hook(self, trial: optuna.Trial, known: set[str]) -> list[str]:
        """Overrides of what the user's own function suggests besides."""
        if self._hook is None:
            return []
        try:
            self._hook(copy.deepcopy(self._base), trial)
        except Exception as error:  # the user's code may raise anything
            raise ValueError(
                f"custom_search_space raised {type(error).__name__}: {error}"
            ) from error
        # A waiting trial brings parameters from the study, which may not say what is trusted.
        return [
            f"{name}={grammar.text_of(value)}"
            for name, value in trial.params.items()
            if name not in known and "trust" not in trust.parts(name)
        ]
