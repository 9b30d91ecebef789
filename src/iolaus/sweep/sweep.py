"""A sweep from beginning to end: plan, study, workers, results.

Called by the Hydra plugin, for iolaus itself and for any other application.
"""

from __future__ import annotations

import contextlib
import logging
import math
import shutil
import tempfile
import time
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol

import optuna
import yaml
from optuna.exceptions import ExperimentalWarning
from optuna.trial import TrialState

from iolaus import files, progress, storage
from iolaus.analysis.read import trials_of
from iolaus.attributes import SWEEP
from iolaus.errors import (
    NothingCompleted,
    Stopped,
    TrainingFailed,
    masked,
    one_line,
    without_passwords,
)
from iolaus.sweep import dry_run, plan, studies, twins, worker
from iolaus.sweep.failure_rate import too_many_failed
from iolaus.sweep.fallback import journal_of
from iolaus.sweep.launch import Crew, Launch, launch
from iolaus.sweep.ledger import Ledger
from iolaus.sweep.ledger_of import ledger_of
from iolaus.sweep.plan import Plan
from iolaus.sweep.scoreboard import Scoreboard
from iolaus.sweep.space import Space

log = logging.getLogger(__name__)

STUDIES = Path("outputs/studies")
RESULTS = "optimization_results.yaml"
_UNTOLD = ("hydra.mode=", "hydra.sweeper.storage=")
"""Overrides that a study does not keep: what goes without saying, and what may hold a password."""


class App(worker.App, Protocol):
    """What is swept."""

    @property
    def prefix(self) -> str:
        """What an unnamed study's name begins with."""
        ...

    @property
    def origin(self) -> Mapping[str, str | None]:
        """Where its configs come from: `name`, and of iolaus itself `config_dir`, `config_name`."""
        ...

    def check(self, space: Space) -> None:
        """Check the values of a space."""
        ...

    def prepare(self, plan: Plan) -> tuple[Plan, dict[str, Any]]:
        """Check the space; add objectives and directions, and what identifies the question."""
        ...

    def repeats(self, plan: Plan) -> int | None:
        """How many points of a grid do what another does, if that is soon known."""
        ...


def sweep(
    node: Mapping[str, Any],
    arguments: Sequence[str],
    app: App,
    *,
    hydra: Sequence[str] = (),
    launcher: Launch | None = None,
    results: Path | None = None,
) -> None:
    """Run a sweep until its study is complete.

    Args:
        node: `hydra.sweeper` as plain values.
        arguments: the command line's overrides.
        app: what is swept.
        hydra: the command line's overrides of Hydra's own node.
        launcher: carries the workers, where it is not this module's own.
        results: folder of optimization_results.yaml; the study's own by default.

    Raises:
        InputError: something is wrong; no trial was made.
        EnvironmentFault: the storage cannot be reached, or the disk is full.
        Stopped: Ctrl-C or SIGTERM; the same command goes on.
        NothingCompleted: no trial came to its end.
        TrainingFailed: more trials failed than `max_failure_rate` allows.
    """
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    warnings.simplefilter("ignore", ExperimentalWarning)
    began = time.time()
    chosen, question = app.prepare(plan.read(node, arguments, app.prefix, app.check))
    if chosen.dry_run:
        dry_run.show(chosen, app.repeats(chosen) if chosen.duplicates == "once" else None)
        return
    with _storage(chosen) as (url, opened), storage.named(url):
        # The trials of a grid are its points; others would count, and not be among them.
        identity = {"grid": chosen.grid, "space": chosen.space.signature(), **question}
        study = studies.open_study(
            opened, chosen.study, chosen.directions, identity, chosen.on_mismatch
        )
        temporary = chosen.storage is None
        chosen = replace(chosen, study=study.study_name, storage=url)
        if list(study.metric_names or ()) != list(chosen.objectives):
            study.set_metric_names(list(chosen.objectives))
        if SWEEP not in study.user_attrs:
            study.set_user_attr(SWEEP, _asked(chosen, arguments, hydra, app))
        folder = studies.folder_of(opened, study, STUDIES.absolute())
        ledger = ledger_of(chosen, study)
        _take_up(chosen, ledger)
        deadline = began + chosen.timeout_s if chosen.timeout_s else math.inf
        before = ledger.counts() | {"again": ledger.tried_again()}
        crew = Crew(chosen, app, folder, before, deadline)
        single = chosen.directions[0] if len(chosen.directions) == 1 else None
        board = Scoreboard(ledger, journal_of(study), single, chosen.objectives[0])
        _announce(chosen, ledger)
        code = None
        if ledger.total is None or ledger.counts()["remaining"]:
            code = launch(crew, study, board, launcher)
        _conclude(crew, study, ledger, code, results or folder)
        if not temporary:
            _show(chosen, study, url)


def _asked(
    chosen: Plan, arguments: Sequence[str], hydra: Sequence[str], app: App
) -> dict[str, Any]:
    """What a study keeps of how it was asked, for reports and reruns; no storage's password."""
    return {
        "arguments": list(arguments),
        "hydra": [
            without_passwords(word) for word in hydra if not word.lstrip("+").startswith(_UNTOLD)
        ],
        "application": dict(app.origin),
        "sampler": {"name": chosen.sampler.name, **chosen.sampler.given, "seed": chosen.seed},
        "pruner": {"name": chosen.pruner.name, **chosen.pruner.given},
        "n_trials": chosen.total,
        "grid": chosen.grid,
    }


def _take_up(chosen: Plan, ledger: Ledger) -> None:
    """Put back what earlier workers left, and let known points and failed grid points wait."""
    ledger.recover()
    if chosen.grid:
        ledger.retry_failed()
    else:
        ledger.enqueue(chosen.enqueue)


def _announce(chosen: Plan, ledger: Ledger) -> None:
    counts = ledger.counts()
    finished = counts["done"] + counts["pruned"] + counts["failed"]
    what = "every point of the grid once" if chosen.grid else f"sampler {chosen.sampler.name}"
    pruner = "" if chosen.pruner.name == "none" else f", pruner {chosen.pruner.name}"
    before = finished if ledger.total is None else min(finished, ledger.total)
    so_far = f", {before} of them done before" if finished else ""
    total = "trials" if ledger.total is None else f"{ledger.total} trials{so_far}"
    line = f"study {chosen.study}: {total}, {what}{pruner}"
    _say(line)


def _conclude(
    crew: Crew, study: optuna.Study, ledger: Ledger, code: int | None, results: Path
) -> None:
    """Say what came of it, and end as it ended."""
    counts = ledger.counts()
    if code is not None:
        raise Stopped(
            f"interrupted with {counts['remaining']} trials to go; the same command goes on", code
        )
    rate = f"hydra.sweeper.max_failure_rate={crew.plan.max_failure_rate:g}"
    too_many = too_many_failed(crew.plan, dict(crew.before), counts)
    if not counts["done"]:
        early = f"; {rate} ended it early" if too_many and counts["remaining"] else ""
        raise NothingCompleted(
            f"no trial of study {crew.plan.study} completed: {counts['pruned']} pruned, "
            f"{counts['failed']} failed{early}{_because(study)}"
        )
    if too_many:
        raise TrainingFailed(
            f"{counts['failed']} trials failed, more than {rate} allows{_because(study)}"
        )
    from iolaus.analysis import terminal

    terminal.show(study, progress.console())
    finished = counts["done"] + counts["pruned"] + counts["failed"]
    if equal := twins.recorded(study):
        had = f"{equal:,} of {finished:,} trials had the same effect as another"
        _say(f"{had} and {'was' if equal == 1 else 'were'} not trained again")
    _write_results(study, results)
    if crew.folder.is_dir():
        _say(f"all of it is in {progress.shown(crew.folder)}")


def _say(line: str) -> None:
    progress.console().print(line, highlight=False, soft_wrap=True)


def _show(chosen: Plan, study: optuna.Study, url: str) -> None:
    """Write the report, dress the study for the dashboard, and say where both are."""
    if chosen.report:
        from iolaus.analysis import decorate, library, report

        try:
            opened = library.open_study(study.study_name, url)  # to read: others may write
            written = report.write(opened, report.place_of(opened))
            _say(f"report: {progress.shown(written)}")
            decorate.decorate(opened, written=written)
        except Exception as error:  # the results are kept, whatever is wrong with a picture
            log.warning("the report could not be written: %s", one_line(error))
            log.debug("the report", exc_info=True)
    place = _relative(masked(url))
    where = "" if place == storage.DEFAULT else f" --storage {place}"
    _say(f"dashboard: iolaus-study dashboard{where}")


def _relative(url: str) -> str:
    prefix = f"sqlite:///{Path.cwd()}/"
    return f"sqlite:///{url.removeprefix(prefix)}" if url.startswith(prefix) else url


def _because(study: optuna.Study) -> str:
    """The most frequent reason of failed trials."""
    failed = [trial for trial in trials_of(study) if trial.state == TrialState.FAIL]
    reasons = [one_line(t.user_attrs["error"], 200) for t in failed if "error" in t.user_attrs]
    return f"; most often: {max(set(reasons), key=reasons.count)}" if reasons else ""


def _write_results(study: optuna.Study, folder: Path) -> None:
    """optimization_results.yaml, as hydra-optuna-sweeper writes it."""
    if len(study.directions) == 1:
        try:
            best = study.best_trial
        except ValueError:  # all are complete and none is feasible
            _say("no trial keeps hydra.sweeper.constraints")
            return
        found: dict[str, Any] = {"best_params": dict(best.params), "best_value": best.value}
    else:
        front = [{"params": dict(t.params), "values": list(t.values)} for t in study.best_trials]
        found = {"solutions": front}
    text = yaml.safe_dump({"name": "iolaus", **found}, sort_keys=False, allow_unicode=True)
    folder.mkdir(parents=True, exist_ok=True)
    files.write_bytes(folder / RESULTS, text.encode())


@contextlib.contextmanager
def _storage(chosen: Plan) -> Iterator[tuple[str, Any]]:
    """The URL and the opened storage; one that nobody named goes away again."""
    if chosen.storage is not None:
        yield chosen.storage, storage.connect(chosen.storage)
        return
    place = tempfile.mkdtemp(prefix="iolaus-")
    try:
        url = f"sqlite:///{place}/studies.db"
        yield url, storage.connect(url)
    finally:
        shutil.rmtree(place, ignore_errors=True)
