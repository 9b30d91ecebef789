"""Trials of any other Hydra application: each is a call of its task function, as a Hydra job.

`Other` says what such a sweep asks; `Caller` runs the trials of one worker. Its sibling for
sweepstack itself is `own.py`; `by_name.py` takes an `Other` to a local worker process.
"""

from __future__ import annotations

import logging
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path
from typing import Any

import optuna
from hydra.core.utils import JobReturn, JobStatus, configure_log, run_job
from hydra.errors import HydraException
from hydra.types import HydraContext
from omegaconf import DictConfig, open_dict
from omegaconf.errors import OmegaConfBaseException

from sweepstack.config.errors import EnvironmentFault, InputError, one_line
from sweepstack.config.reading import REFUSALS
from sweepstack.study.attributes import RETRY_OF
from sweepstack.sweep.plan import Plan
from sweepstack.sweep.space import points
from sweepstack.sweep.space.space import Space
from sweepstack.sweep.worker import report as reporting
from sweepstack.sweep.worker.trial import Asked, Outcome, Verdicts

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
    """

    context: HydraContext
    master: DictConfig
    task: Callable[[DictConfig], Any]
    _fixed: DictConfig | None = field(default=None, init=False, repr=False)

    @property
    def prefix(self) -> str:
        """What an unnamed study's name begins with."""
        return str(self.master.hydra.job.name)

    @property
    def origin(self) -> dict[str, str | None]:
        """Where its configs come from."""
        return {"name": self.prefix}

    def prepare(self, plan: Plan) -> tuple[Plan, dict[str, Any]]:
        """Compose points of the space; see `Own.prepare`.

        Raises:
            InputError: one line for each mistake.
        """
        mistakes: list[str] = []
        if plan.objectives:
            mistakes.append(
                "hydra.sweeper.objectives names metrics of sweepstack; an app returns its own"
            )
        if plan.constraints:
            mistakes.append(
                "hydra.sweeper.constraints needs the numbers that sweepstack itself records"
            )
        try:
            self.check(plan.space)
        except InputError as error:
            mistakes += error.mistakes
        if mistakes:
            raise InputError(mistakes)
        directions = plan.directions or ("minimize",)
        several = len(directions) > 1
        names = tuple(f"value_{n}" for n in range(len(directions))) if several else ("value",)
        question = {"objectives": list(names), "fixed": sorted(plan.space.fixed)}
        return replace(plan, directions=directions, objectives=names), question

    def check(self, space: Space) -> None:
        """Compose points of a space.

        Raises:
            InputError: one line for each mistake.
        """
        mistakes: dict[str, str] = {}  # by their first sentence: one for all values of a key
        for words in islice(points.to_check(space), CHECKED):
            try:
                self.compose([*space.fixed, *words])
            except REFUSALS as error:
                line = one_line(error)
                mistakes.setdefault(line.partition(". ")[0], line)
        if mistakes:
            raise InputError(list(mistakes.values()))

    def compose(self, words: list[str]) -> DictConfig:
        """The config of one job."""
        return self.context.config_loader.load_sweep_config(self.master, words)

    def repeats(self, plan: Plan) -> int | None:
        """What the app does with its config is not known."""
        return None

    def config(self, plan: Plan) -> Any:
        """The config without the swept values, for a custom search space."""
        if self._fixed is None:
            self._fixed = self.compose(list(plan.space.fixed))
        return self._fixed

    def checkpointed(self, folder: Path, number: int) -> int:
        """What the app keeps is not known."""
        return 0

    def runner(self, plan: Plan, folder: Path, verdicts: Verdicts) -> Caller:
        """What a worker runs its trials with."""
        return Caller(self, verdicts)


class Caller:
    """Calls the task function for each trial, in the folder that Hydra's sweep settings name."""

    equal = None
    """What another application does with its config is not known: every trial is run."""

    def __init__(self, app: Other, verdicts: Verdicts):
        self.app, self.verdicts = app, verdicts

    def run(self, asked: Iterator[Asked]) -> Iterator[Outcome]:
        """Run trials until no more are asked; see `worker.Runner`."""
        for each in asked:
            yield self._outcome(each)

    def _outcome(self, asked: Asked) -> Outcome:
        try:
            config = self.app.compose(asked.overrides)
        except REFUSALS as error:
            return Outcome.failed(asked, one_line(error))
        with open_dict(config):
            # In the folder of the first try, where the app may have checkpoints of its own.
            number = asked.trial.user_attrs.get(RETRY_OF, asked.number)
            config.hydra.job.id, config.hydra.job.num = str(number), number
        try:
            with reporting.running(asked, self.verdicts) as reports:
                returned = self._called(config)
            if returned.status == JobStatus.FAILED and reports.error is not None:
                raise reports.error  # the task is not to blame for it
            return _read(asked, returned)
        except SystemExit as error:  # a trial may end itself, but not the sweep
            return Outcome.failed(asked, f"SystemExit: {error.code}")
        except (HydraException, OmegaConfBaseException) as error:  # hydra.sweep.subdir, say
            return Outcome.failed(asked, one_line(error))
        except OSError as error:  # of Hydra's own files: what the task raises is in `returned`
            raise EnvironmentFault(f"cannot run trial {asked.number}: {one_line(error)}") from error
        finally:
            configure_log(config.hydra.hydra_logging, config.hydra.verbose)

    def _called(self, config: DictConfig) -> JobReturn:
        """Run the task function as a Hydra job.

        Raises:
            KeyboardInterrupt: a signal came, whatever the task made of it. Some return what they
                have by then, others exit, and neither is what the trial would have come to.
        """
        stop, returned = self.verdicts.stop, None
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
            interrupted, stop.interrupts = not stop.interrupts, False
            if interrupted:
                raise KeyboardInterrupt
        return returned


def _read(asked: Asked, returned: JobReturn) -> Outcome:
    value = returned._return_value
    if isinstance(value, optuna.TrialPruned):
        return Outcome(asked, "pruned")
    if returned.status == JobStatus.FAILED:
        trace = _keep_traceback(value)
        # The job's frame and its exception hold each other, and with them all that it allocated.
        traceback.clear_frames(value.__traceback__)
        return Outcome.failed(asked, f"{type(value).__name__}: {_text(value, 300)}", trace)
    several = isinstance(value, list | tuple)
    try:
        values = tuple(float(item) for item in (value if several else [value]))
    except Exception:  # whatever the user's object raises
        return Outcome.failed(asked, f"the task must return a number, got {_text(value)}")
    return Outcome(asked, "complete", values)


def _text(value: Any, limit: int = 80) -> str:
    """What a task returned or raised, of which even `str` may raise."""
    try:
        return one_line(value, limit)
    except Exception:
        return f"a {type(value).__name__}"


def _keep_traceback(error: BaseException) -> Path | None:
    """Put it into the job's own log file, and say which that is; the console gets one line for each
    failed trial."""
    file = None
    trace = (type(error), error, error.__traceback__)
    record = log.makeRecord(log.name, logging.ERROR, __file__, 0, "the task raised", (), trace)
    for handler in logging.getLogger().handlers:
        if isinstance(handler, logging.FileHandler):
            handler.handle(record)
            file = Path(handler.baseFilename)
    return file
