"""Trials of any other Hydra application: each is a call of its task function, as a Hydra job.

`Other` says what such a sweep asks; `Caller` runs the trials of one worker. Its sibling for iolaus
itself is `own.py`. Called by `sweep.py` and `worker.py`.
"""

from __future__ import annotations

import importlib
import inspect
import logging
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path
from typing import Any

import optuna
from hydra.core.singleton import Singleton
from hydra.core.utils import JobReturn, JobStatus, configure_log, run_job, setup_globals
from hydra.errors import HydraException
from hydra.types import HydraContext
from omegaconf import DictConfig, OmegaConf, open_dict
from omegaconf.errors import OmegaConfBaseException

from iolaus.errors import InputError, one_line
from iolaus.sweep import points, reporting
from iolaus.sweep.plan import Plan
from iolaus.sweep.trial import Asked, Outcome, Verdicts

log = logging.getLogger(__name__)

CHECKED = 50
"""Points that are composed before the first trial; the app may take long to compose."""


@dataclass
class Other:
    """Another application, as Hydra hands it to a sweeper.

    Attributes:
        context: Hydra's config loader and callbacks.
        master: the config composed without the swept values, with its `hydra` node.
        task: the decorated function.
        state: Hydra's singletons, for another process.
    """

    context: HydraContext
    master: DictConfig
    task: Callable[[DictConfig], Any]
    state: Any = field(default_factory=Singleton.get_state)

    @property
    def prefix(self) -> str:
        """What an unnamed study's name begins with."""
        return str(self.master.hydra.job.name)

    def prepare(self, plan: Plan) -> tuple[Plan, dict[str, Any]]:
        """Compose points of the space; see `Own.prepare`.

        Raises:
            InputError: one line for each mistake.
        """
        mistakes: dict[str, None] = {}
        if plan.objectives:
            mistakes["hydra.sweeper.objectives names metrics of iolaus; an app returns its own"] = (
                None
            )
        if plan.constraints:
            mistakes["hydra.sweeper.constraints needs the numbers that iolaus itself records"] = (
                None
            )
        for words in islice(points.to_check(plan.space), CHECKED):
            try:
                self.compose([*plan.space.fixed, *words])
            except (HydraException, OmegaConfBaseException, ValueError) as error:
                mistakes[one_line(error)] = None
        if mistakes:
            raise InputError(list(mistakes))
        directions = plan.directions or ("minimize",)
        several = len(directions) > 1
        names = tuple(f"value_{n}" for n in range(len(directions))) if several else ("value",)
        return replace(plan, directions=directions, objectives=names), {"objectives": list(names)}

    def compose(self, words: list[str]) -> DictConfig:
        """The config of one job."""
        return self.context.config_loader.load_sweep_config(self.master, words)

    def config(self, plan: Plan) -> Any:
        """The config without the swept values, for a custom search space."""
        keys = [str(key) for key in self.master if key != "hydra"]
        return OmegaConf.to_container(OmegaConf.masked_copy(self.master, keys), resolve=False)

    def runner(self, plan: Plan, folder: Path, verdicts: Verdicts) -> Caller:
        """What a worker runs its trials with."""
        return Caller(self, verdicts)

    def __getstate__(self) -> dict[str, Any]:
        """The task by its name: pickle finds Hydra's wrapper under it, not the function itself."""
        task = self.task
        name = (task.__module__, task.__qualname__) if inspect.isfunction(task) else task
        return {**self.__dict__, "task": name}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__ = state
        setup_globals()
        Singleton.set_state(self.state)
        name = state["task"]
        if isinstance(name, tuple):
            module, qualname = name
            found = sys.modules.get("__mp_main__") if module == "__main__" else None
            function: Any = found or importlib.import_module(module)
            for part in qualname.split("."):
                function = getattr(function, part)
            self.task = inspect.unwrap(function)


class Caller:
    """Calls the task function for each trial, in the folder that Hydra's sweep settings name."""

    def __init__(self, app: Other, verdicts: Verdicts):
        self.app, self.verdicts = app, verdicts

    def run(self, asked: Iterator[Asked]) -> Iterator[Outcome]:
        """Run trials until no more are asked; see `worker.Runner`."""
        for each in asked:
            yield self._outcome(each)

    def _outcome(self, asked: Asked) -> Outcome:
        try:
            config = self.app.compose(asked.overrides)
        except (HydraException, OmegaConfBaseException, ValueError) as error:
            return Outcome.failed(asked, one_line(error))
        with open_dict(config):
            config.hydra.job.id = config.hydra.job.num = asked.number
        stop = self.verdicts.stop
        with reporting.running(asked, self.verdicts):
            try:
                stop.interrupts = True
                if stop.code is not None:  # asked a moment ago
                    raise KeyboardInterrupt
                returned = run_job(
                    hydra_context=self.app.context,
                    task_function=self.app.task,
                    config=config,
                    job_dir_key="hydra.sweep.dir",
                    job_subdir_key="hydra.sweep.subdir",
                )
            finally:
                stop.interrupts = False
        configure_log(config.hydra.hydra_logging, config.hydra.verbose)
        return _read(asked, returned)


def _read(asked: Asked, returned: JobReturn) -> Outcome:
    value = returned._return_value
    if isinstance(value, optuna.TrialPruned):
        return Outcome(asked, "pruned")
    if returned.status == JobStatus.FAILED:
        log.info("trial %d raised", asked.number, exc_info=value)
        return Outcome.failed(asked, f"{type(value).__name__}: {one_line(value)}")
    several = isinstance(value, list | tuple)
    try:
        values = tuple(float(item) for item in (value if several else [value]))
    except (TypeError, ValueError):
        return Outcome.failed(asked, f"the task must return a number, got {one_line(value, 80)}")
    return Outcome(asked, "complete", values)
