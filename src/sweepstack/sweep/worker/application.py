"""Trials of any other Hydra application: each is a call of its task function, as a Hydra job.

`HydraApp` is what is swept, `Caller` runs the trials of one worker, `report` lets a sweep prune
them. The same for sweepstack itself is in `training_app.py` and `trainer.py`.

A local worker process gets the application by pickle, as multiprocessing uses it. The process has
imported the application's main module, and looks up there what pickle cannot carry: the task, under
whose name stands Hydra's wrapper and not the function itself. OmegaConf's resolvers, which are
closures, go by cloudpickle. Other launchers (joblib, submitit, ray) carry all of it themselves.
"""

from __future__ import annotations

import contextlib
import inspect
import io
import logging
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from importlib import import_module
from itertools import islice
from multiprocessing.reduction import ForkingPickler
from operator import attrgetter
from pathlib import Path
from typing import TYPE_CHECKING, Any

import cloudpickle
import optuna
from hydra.core.singleton import Singleton
from hydra.core.utils import JobReturn, JobStatus, configure_log, run_job, setup_globals
from hydra.errors import HydraException
from hydra.types import HydraContext
from omegaconf import DictConfig, open_dict
from omegaconf.errors import OmegaConfBaseException

from sweepstack.config.composition import REFUSALS
from sweepstack.config.errors import EnvironmentFault, InputError, one_line
from sweepstack.config.space import Space, points
from sweepstack.storage import is_failure
from sweepstack.study.attributes import RETRY_OF
from sweepstack.sweep.plan import Plan
from sweepstack.sweep.worker import Asked, Outcome

if TYPE_CHECKING:
    from sweepstack.sweep.worker.worker import Worker

log = logging.getLogger(__name__)

MAX_CHECKED = 50
"""Points that are composed before the first trial; the app may take long to compose."""
_Task = Callable[[DictConfig], Any]


@dataclass
class HydraApp:
    """Another application, as Hydra hands it to a sweeper.

    Attributes:
        context: Hydra's config loader and callbacks.
        master: the config composed without the swept values, with its `hydra` node.
        task: the decorated function.
    """

    context: HydraContext
    master: DictConfig
    task: _Task
    _without_space: DictConfig | None = field(default=None, init=False, repr=False)

    @property
    def prefix(self) -> str:
        """What an unnamed study's name begins with."""
        return str(self.master.hydra.job.name)

    @property
    def origin(self) -> dict[str, str | None]:
        """Where its configs come from."""
        return {"name": self.prefix}

    def prepare(self, plan: Plan) -> tuple[Plan, dict[str, Any]]:
        """Compose points of the space; see `TrainingApp.prepare`.

        Raises:
            InputError: one line for each mistake.
        """
        needs = {
            "objectives names metrics of sweepstack; an app returns its own": plan.objectives,
            "artifacts needs the folders that sweepstack itself writes": plan.artifacts,
            "constraints needs the numbers that sweepstack itself records": plan.constraints,
        }
        mistakes = [f"hydra.sweeper.{line}" for line, given in needs.items() if given]
        try:
            self.check(plan.space)
        except InputError as error:
            mistakes += error.mistakes
        if mistakes:
            raise InputError(mistakes)
        directions = plan.directions or ("minimize",)
        names = tuple(f"value_{n}" for n in range(len(directions)))
        names = names if len(directions) > 1 else ("value",)
        same = {"objectives": list(names), "fixed": sorted(plan.space.fixed)}
        return replace(plan, directions=directions, objectives=names), same

    def check(self, space: Space) -> None:
        """Compose points of a space.

        Raises:
            InputError: one line for each mistake.
        """
        mistakes: dict[str, str] = {}  # by their first sentence: one for all values of a key
        for overrides in islice(points.to_check(space), MAX_CHECKED):
            try:
                self.compose([*space.fixed, *overrides])
            except REFUSALS as error:
                line = one_line(error)
                mistakes.setdefault(line.partition(". ")[0], line)
        if mistakes:
            raise InputError(list(mistakes.values()))

    def compose(self, overrides: list[str]) -> DictConfig:
        """The config of one job."""
        return self.context.config_loader.load_sweep_config(self.master, overrides)

    def repeats(self, plan: Plan) -> int | None:
        """Unknown: the app may do anything with its config."""
        return None

    def config(self, plan: Plan) -> Any:
        """The config without the swept values, for a custom search space."""
        if self._without_space is None:
            self._without_space = self.compose(list(plan.space.fixed))
        return self._without_space

    def checkpointed(self, folder: Path, number: int) -> int:
        """Unknown: the app may keep anything in its folder."""
        return 0

    def runner(self, plan: Plan, folder: Path, worker: Worker) -> Caller:
        """What a worker runs its trials with."""
        return Caller(self, worker)


def _reduce(app: HydraApp) -> tuple[Any, ...]:
    state, resolvers = Singleton.get_state(), {}
    for name, resolver in state["omegaconf_resolvers"].items():
        with contextlib.suppress(Exception):  # one that holds a lock, say
            resolvers[name] = cloudpickle.dumps(resolver)
    task: Any = app.task
    if inspect.isfunction(task) and "<locals>" not in task.__qualname__:
        task = (task.__module__, task.__qualname__)
    return _restore, (state["instances"], resolvers, app.context, app.master, task)


def _restore(
    instances: Any,
    resolvers: dict[str, bytes],
    context: HydraContext,
    master: DictConfig,
    task: _Task | tuple[str, str],
) -> HydraApp:
    """The application in the process that was started."""
    setup_globals()
    own = Singleton.get_state()["omegaconf_resolvers"]
    others = {k: cloudpickle.loads(v) for k, v in resolvers.items() if k not in own}
    Singleton.set_state({"instances": instances, "omegaconf_resolvers": others | own})
    if isinstance(task, tuple):
        module, path = task
        return HydraApp(context, master, inspect.unwrap(attrgetter(path)(import_module(module))))
    return HydraApp(context, master, task)


ForkingPickler.register(HydraApp, _reduce)


class Caller:
    """Calls the task function for each trial, in the folder that Hydra's sweep settings name."""

    equal = None  # which trials are duplicates is unknown

    def __init__(self, app: HydraApp, worker: Worker):
        self.app, self.worker = app, worker
        self._failure: Exception | None = None
        """Why the last report could not be written, if it could not."""

    def run(self, asked: Iterator[Asked]) -> Iterator[Outcome]:
        """Run trials until no more are asked; see `worker.Runner`."""
        for each in asked:
            yield self._outcome(each)

    def close(self) -> None:
        """Nothing is open."""

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
            self._failure = None
            _running.append((self, asked))
            try:
                job = self._call(config)
            finally:
                _running.pop()
            if job.status == JobStatus.FAILED and self._failure is not None:
                raise self._failure  # the task is not to blame for it
            return _read(asked, _returned(job))
        except SystemExit as error:  # a trial may end itself, but not the sweep
            return Outcome.failed(asked, f"SystemExit: {error.code}")
        except (HydraException, OmegaConfBaseException) as error:  # hydra.sweep.subdir, say
            return Outcome.failed(asked, one_line(error))
        except OSError as error:  # of Hydra's own files: what the task raises is in the job
            raise EnvironmentFault(f"cannot run trial {asked.number}: {one_line(error)}") from error
        finally:
            configure_log(config.hydra.hydra_logging, config.hydra.verbose)

    def _call(self, config: DictConfig) -> JobReturn:
        """Run the task function as a Hydra job.

        Raises:
            KeyboardInterrupt: a signal came, whatever the task made of it. Some return what they
                have by then, others exit, and neither is the trial's result.
        """
        stop = self.worker.stop
        try:
            stop.interrupts = True
            if stop.code is not None:  # a signal came before this line
                raise KeyboardInterrupt
            return run_job(
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

    def report(self, asked: Asked, value: float, step: int) -> None:
        """Note a report of the trial that runs, and end it where the pruner says so."""
        if len(self.worker.study.directions) > 1:
            return  # nothing prunes by several objectives
        try:
            number, at = float(value), int(step)
        except (TypeError, ValueError):
            raise InputError(
                f"sweepstack.report must be given a number and a step, got {value!r} and {step!r}"
            ) from None
        decisions = self.worker.decisions
        try:
            with self.worker.stop.held():  # or what is written might not be known to be
                decisions.report(asked, at, number)
                is_over = decisions.ends(asked)
            self._failure = None
        except Exception as error:
            self._failure = error if is_failure(error) else self._failure
            raise
        if is_over:
            raise optuna.TrialPruned(f"pruned at step {at}")


_running: list[tuple[Caller, Asked]] = []
"""The trial that runs, innermost last."""


def report(value: float, step: int) -> None:
    """See `sweepstack.report`; where no trial runs, a report goes nowhere."""
    if _running:
        caller, asked = _running[-1]
        caller.report(asked, value, step)


def _returned(job: JobReturn) -> Any:
    """What the task returned, or the exception that it raised."""
    try:
        with contextlib.redirect_stderr(io.StringIO()):  # Hydra prints that it failed
            return job.return_value
    except Exception as error:
        return error


def _read(asked: Asked, value: Any) -> Outcome:
    if isinstance(value, optuna.TrialPruned):
        return Outcome(asked, "pruned")
    if isinstance(value, Exception):
        trace = _keep_traceback(value)
        # The job's frame and its exception hold each other, and with them all that it allocated.
        traceback.clear_frames(value.__traceback__)
        return Outcome.failed(asked, f"{type(value).__name__}: {_text(value, 300)}", trace)
    try:
        values = tuple(float(x) for x in (value if isinstance(value, list | tuple) else [value]))
    except Exception:  # whatever the user's object raises
        return Outcome.failed(asked, f"the task must return a number, got {_text(value)}")
    return Outcome(asked, "complete", values)


def _text(value: Any, limit: int = 80) -> str:
    """What a task returned or raised, whose `str` may raise."""
    try:
        return one_line(value, limit)
    except Exception:
        return f"a {type(value).__name__}"


def _keep_traceback(error: BaseException) -> Path | None:
    """Write it to the job's own log file and return its path: the console gets one line only."""
    file = None
    trace = (type(error), error, error.__traceback__)
    record = log.makeRecord(log.name, logging.ERROR, __file__, 0, "the task raised", (), trace)
    for handler in logging.getLogger().handlers:
        if isinstance(handler, logging.FileHandler):
            handler.handle(record)
            file = Path(handler.baseFilename)
    return file
