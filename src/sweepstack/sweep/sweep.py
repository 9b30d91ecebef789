"""A sweep from beginning to end: plan, study, workers, results; or what it would do."""

from __future__ import annotations

import contextlib
import logging
import math
import sys
import tempfile
import time
import warnings
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import optuna
import yaml
from optuna.exceptions import ExperimentalWarning
from optuna.trial import FrozenTrial, TrialState
from rich.table import Column, Table

from sweepstack import storage
from sweepstack.config import commands, errors, sweeper
from sweepstack.config.errors import one_line
from sweepstack.reporting.scoreboard import Scoreboard, count_finished
from sweepstack.runs import progress, register
from sweepstack.runs.progress import say
from sweepstack.storage import artifacts
from sweepstack.storage import url as storage_url
from sweepstack.study.attributes import EQUALS, LOST, OVERRIDES, RETRIED, SWEEP, WORKER
from sweepstack.study.book.book import Book
from sweepstack.study.read import best_trials, trials_of
from sweepstack.sweep import plan, studies
from sweepstack.sweep.plan import Choice, Plan
from sweepstack.sweep.worker import trial_folder
from sweepstack.sweep.worker.jobs import Crew, Launch
from sweepstack.sweep.worker.launch import check as check_workers
from sweepstack.sweep.worker.launch import launch
from sweepstack.sweep.worker.worker import App, too_many_failed

if TYPE_CHECKING:
    from sweepstack.study.view import StudyView

log = logging.getLogger(__name__)

STUDIES = Path("outputs/studies")
RESULTS = "optimization_results.yaml"
_NOT_KEPT = ("hydra.mode=", "hydra.sweeper.storage=")
"""Overrides that a study does not keep: what every sweep has, and what may hold a password."""
_OWN = ("study_name", "storage", "n_jobs", "workers_per_gpu", "dry_run", "on_mismatch")
"""Settings of the sweeper that a study does not keep: those of one command alone."""


def sweep(
    node: Mapping[str, Any],
    arguments: Sequence[str],
    app: App,
    *,
    hydra: Sequence[str] = (),
    launcher: Launch | None = None,
    results: Path | None = None,
    joins: Path | None = None,
) -> None:
    """Run a sweep until its study is complete.

    Args:
        node: `hydra.sweeper` as plain values.
        arguments: the command line's overrides.
        app: what is swept.
        hydra: the command line's overrides of Hydra's own node.
        launcher: starts the workers; our own by default.
        results: folder of optimization_results.yaml; the study's own by default.
        joins: the folder of the study's trials, where a study is joined that other commands began
            and may work on.

    Raises:
        InputError: something is wrong; no trial was made.
        EnvironmentFault: the storage cannot be reached, or the disk is full.
        Stopped: Ctrl-C or SIGTERM.
        NothingCompleted: no trial completed.
        TrainingFailed: more trials failed than `max_failure_rate` allows.
    """
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    warnings.simplefilter("ignore", ExperimentalWarning)
    began = time.time()
    chosen, question = app.prepare(plan.read(node, arguments, app.prefix, app.check))
    if chosen.dry_run:
        _show(chosen, app.repeats(chosen) if chosen.duplicates == "once" else None)
        return
    if launcher is None:
        check_workers(chosen)
    with _storage(chosen) as (url, opened), storage.named(url):
        # A grid's trials are its points: those of another kind of sweep must not count.
        identity = {"grid": chosen.grid, "space": chosen.space.signature(), **question}
        on_mismatch = chosen.on_mismatch if joins is None else "join"
        known = optuna.get_all_study_names(opened)
        study = studies.open_study(opened, chosen.study, chosen.directions, identity, on_mismatch)
        temporary = chosen.storage is None
        chosen = replace(chosen, study=study.study_name, storage=url, identity=identity)
        if list(study.metric_names or ()) != list(chosen.objectives):
            study.set_metric_names(list(chosen.objectives))
        deadline = began + chosen.timeout_s if chosen.timeout_s else math.inf
        folder = joins or studies.folder_of(opened, study, STUDIES.absolute())
        book = studies.open_book(chosen, study, opened, partial(app.checkpointed, folder))
        store = studies.artifacts_of(book, chosen.artifacts)  # the last that may refuse
        asked = _command(chosen, arguments, hydra, app) | _settings_of(node, deadline)
        if joins is None and study.user_attrs.get(SWEEP) != asked:
            study.set_user_attr(SWEEP, asked)
        trial_folder.keep_models(study, chosen.keep_models)
        book.recover()
        if not chosen.grid:
            book.enqueue(chosen.enqueue)
        elif joins is None:
            book.retry_failed()
        crew = Crew(chosen, app, folder, deadline, stops=book.stops(), store=store)
        single = chosen.directions[0] if len(chosen.directions) == 1 else None
        board = Scoreboard(book, single, chosen.objectives[0])
        _announce(chosen, book, store)
        code, counts = None, book.counts()
        if (book.total is None or counts["remaining"]) and not too_many_failed(chosen, counts):
            with _undone(book, crew, is_new=study.study_name not in known):
                code = launch(crew, board, launcher, joins=joins is not None)
        from sweepstack.study.view import StudyView  # imports pandas, which no start needs

        view = StudyView(study, "" if temporary else url, opened)
        if app.origin["name"] == "sweepstack":  # others keep what they want
            trial_folder.remove_models(study, folder, opened, store, view.trials)
        if joins is not None:
            if code is None and _leaves(crew, book):
                return
            view = view.latest()  # the others may have ended trials since
        _conclude(crew, book, code, results or folder, view, launcher.logs if launcher else None)


@contextlib.contextmanager
def _undone(book: Book, crew: Crew, *, is_new: bool) -> Iterator[None]:
    """Delete a study that this command has made and in which no worker has begun, where it fails:
    of a launcher that refuses its jobs nothing is left."""
    try:
        yield
    except errors.SweepstackError:
        with storage.ignored():
            others = [e for e in register.workers(book.study) if e.crew != crew.name and e.is_alive]
            # What was requeued has begun too.
            begun = book.numbers_with(WORKER) or book.counts()["running"]
            if is_new and not others and not begun and studies.delete_idle(book):
                log.debug("study %s is deleted again", book.study.study_name)
        raise


def _show(plan: Plan, repeats: int | None) -> None:
    """Print what a sweep would do; `repeats` trials of it will not be trained, because another does
    the same."""
    constant = [p for p in plan.space.parameters if p.size == 1 and not p.when]
    space = [(p.name, p.description) for p in plan.space.parameters if p not in constant]
    fixed = [f"{p.path}={p.text(label)}" for p in constant for label in p.labels()]
    same = f"{repeats} of them do what another does and will not be trained again"
    trials = ["no limit" if plan.total is None else str(plan.total)]
    trials += [same] if repeats else []
    trials += [f"none begins after {plan.timeout_s:g} s"] if plan.timeout_s else []
    trials += [f"none begins after {plan.max_steps_total} steps"] if plan.max_steps_total else []
    objectives = zip(plan.objectives, plan.directions, strict=True)
    grid = "every point of the grid once"
    facts = {
        "study": plan.study,
        "trials": ", ".join(trials),
        "objective": ", ".join(f"{direction} {name}" for name, direction in objectives),
        "sampler": grid if plan.grid else _settings(plan.sampler, plan.seed),
        "pruner": _settings(plan.pruner),
        "storage": _progress_of(plan),
        "workers": str(plan.n_jobs),
        **({} if plan.artifacts is None else {"artifacts": plan.artifacts}),
        "fixed": " ".join([*plan.space.fixed, *fixed]) or "nothing besides the defaults",
    }
    if plan.enqueue:
        facts["tried first"] = f"{len(plan.enqueue)} known points"
    for constraint in plan.constraints:
        facts[f"constraint {constraint.name}"] = f"{constraint.relation} {constraint.bound:g}"
    console = progress.console()
    for head, rows in ((("parameter", "values"), space), (("", ""), facts.items())):
        columns = (Column(head[0]), Column(head[1], overflow="fold"))
        table = Table(*columns, box=None, pad_edge=False, show_header=any(head))
        for row in rows:
            table.add_row(*row)
        console.print(table)
        if any(head):
            console.print()
    say("nothing was run (hydra.sweeper.dry_run=true)", console)


def _settings(choice: Choice, seed: int | None = None) -> str:
    given = {**choice.given, **({} if seed is None else {"seed": seed})}
    settings = ", ".join(f"{key}={value}" for key, value in given.items())
    return f"{choice.name} ({settings})" if settings else choice.name


def _progress_of(plan: Plan) -> str:
    """The storage, and how far the study is if it is there already."""
    if plan.storage is None:
        return "a temporary file"
    shown = errors.masked(plan.storage)
    if storage_url.is_new(plan.storage):
        return f"{shown} (new)"
    opened = storage.connect(plan.storage)
    if plan.study not in optuna.get_all_study_names(opened):
        return f"{shown} (the study is new)"
    trials = trials_of(optuna.load_study(study_name=plan.study, storage=opened), opened)
    ended = sum(trial.state.is_finished() for trial in trials)
    return f"{shown} (the study has {ended} finished trials)"


def _command(
    chosen: Plan, arguments: Sequence[str], hydra: Sequence[str], app: App
) -> dict[str, Any]:
    """What a study keeps of how it was asked, for reports and reruns; no storage's password."""
    kept = [line for line in hydra if not line.lstrip("+").startswith(_NOT_KEPT)]
    return {
        "arguments": list(arguments),
        "hydra": [errors.without_passwords(line) for line in kept],
        "application": dict(app.origin),
        "sampler": {"name": chosen.sampler.name, **chosen.sampler.given, "seed": chosen.seed},
        "pruner": {"name": chosen.pruner.name, **chosen.pruner.given},
        "n_trials": chosen.total,
        "grid": chosen.grid,
    }


def _settings_of(node: Mapping[str, Any], deadline: float) -> dict[str, Any]:
    """What of `hydra.sweeper` is not the default, and until when; another machine that joins the
    study needs no more."""
    known = sweeper.defaults(sweeper.Sweeper)
    settings = {k: v for k, v in node.items() if k in known and k not in _OWN and v != known[k]}
    return {"settings": settings, "deadline": deadline if deadline < math.inf else None}


def _leaves(crew: Crew, book: Book) -> bool:
    """Say what a command that joined a study did for it; whether others are still at work, of whom
    the last prints the results."""
    members = register.workers(book.study)
    ran = sum(entry.trials for entry in members if entry.crew == crew.name)
    others = sum(entry.is_alive for entry in members if entry.crew != crew.name)
    of = f"this command ran {ran} of the {count_finished(book.counts())} finished trials"
    if not others:
        say(of)
        return False
    say(f"{of}; others ({others}) still work on it, and the last of them prints the results")
    return True


def _announce(chosen: Plan, book: Book, store: artifacts.Store | None) -> None:
    done, total = count_finished(book.counts()), "trials"
    if book.total is not None:
        before = f", {min(done, book.total)} of them done before" if done else ""
        total = f"{book.total} trials{before}"
    how = "every point of the grid once" if chosen.grid else f"sampler {chosen.sampler.name}"
    pruner = "" if chosen.pruner.name == "none" else f", pruner {chosen.pruner.name}"
    say(f"study {chosen.study}: {total}, {how}{pruner}")
    if store is not None:
        say(f"artifacts: {store.where}")


@commands.without_collecting()
def _conclude(
    crew: Crew, book: Book, code: int | None, results: Path, view: StudyView, logs: Path | None
) -> None:
    """Print and write the results, the report too unless the storage is temporary; raise if the
    sweep failed."""
    counts, study, url = book.counts(), book.study, view.where
    if code is not None:
        others = [e for e in register.workers(study) if e.is_alive and e.crew != crew.name]
        on = f", which other workers ({len(others)}) go on with" if others else ""
        again = f"{on}; run the same command again to resume"
        raise errors.Stopped(f"interrupted with {counts['remaining']} trials to go{again}", code)
    rate = f"hydra.sweeper.max_failure_rate={crew.plan.max_failure_rate:g}"
    too_many = too_many_failed(crew.plan, counts, ended=True)
    hopeless = counts["remaining"] and too_many_failed(crew.plan, counts)
    early = f"; {rate} ended it early" if hopeless else ""
    if not counts["running"] + counts["waiting"] and crew.folder.is_dir():
        trial_folder.tidy(crew.folder, book.numbers_with(RETRIED), book.numbers_with(LOST))
    if not counts["done"]:
        report = commands.study("report", view.name, where=url) if url else ""
        raise errors.NothingCompleted(
            f"no trial of study {crew.plan.study} completed: {counts['pruned']} pruned, "
            f"{counts['failed']} failed{early}{_most_frequent_error(view.trials)}"
            + (f"; all of them: {report}" if report else "")
        )
    from sweepstack.analysis import terminal

    terminal.show(view, progress.console())
    ended = count_finished(counts)
    if equal := len(book.numbers_with(EQUALS)):
        say(f"{equal:,} of {ended:,} trials were duplicates and not trained again")
    _write_results(study, view.trials, results)
    following = _show_ending(crew, results, view)
    if crew.folder.is_dir():
        say(f"results: {progress.shown(crew.folder)}")
    if logs is not None:
        say(f"output of the workers: {progress.shown(logs)}")
    if url and crew.plan.report:
        from sweepstack.reporting.dashboard.decorate import write_report

        write_report(view)
    for command in following:
        say(f"next: {command}")
    if too_many:
        raise errors.TrainingFailed(
            f"{counts['failed']} of {ended} trials failed, more than {rate} allows"
            f"{early}{_most_frequent_error(view.trials)}"
        )


def _show_ending(crew: Crew, results: Path, view: StudyView) -> list[str]:
    """Print what a person wants to know, and return the commands to go on with."""
    from sweepstack.analysis import terminal

    again, config = "", ""
    best = best_trials(view.study, view.trials)
    if crew.app.origin["name"] != "sweepstack":
        config = str(progress.shown(results.absolute() / RESULTS))
        words = best[0].user_attrs.get(OVERRIDES, ()) if best else ()
        again = commands.shell("python", sys.argv[0], *words)
    elif view.where and view.has_one_objective:
        config = commands.study("best", view.name, "-o", "winner", where=view.where)
    try:
        return terminal.show_ending(view, progress.console(), again, config, crew.plan.report)
    except Exception as error:  # the results are kept, whatever is wrong with a sentence
        log.warning("the findings could not be printed: %s", one_line(error))
        log.debug("the findings", exc_info=True)
        return []


def _most_frequent_error(trials: Sequence[FrozenTrial]) -> str:
    failed = [trial for trial in trials if trial.state == TrialState.FAIL]
    reasons = (t.user_attrs.get("error") or t.user_attrs.get(LOST) for t in failed)
    lines = Counter(one_line(reason, 200) for reason in reasons if reason)
    return f"; most often: {lines.most_common(1)[0][0]}" if lines else ""


def _write_results(study: optuna.Study, trials: Sequence[FrozenTrial], folder: Path) -> None:
    """optimization_results.yaml as hydra-optuna-sweeper writes it, its `name: optuna` included."""
    best = best_trials(study, trials)
    if len(study.directions) > 1:
        front = [{"params": dict(t.params), "values": list(t.values)} for t in best]
        values: dict[str, Any] = {"solutions": front}
    elif best:
        values = {"best_params": dict(best[0].params), "best_value": best[0].value}
    else:
        say("no trial satisfies hydra.sweeper.constraints")
        return
    text = yaml.safe_dump({"name": "optuna", **values}, sort_keys=False, allow_unicode=True)
    folder.mkdir(parents=True, exist_ok=True)
    errors.write_bytes(folder / RESULTS, text.encode())


@contextlib.contextmanager
def _storage(chosen: Plan) -> Iterator[tuple[str, Any]]:
    """The URL and the opened storage, once artifacts can be kept; without a URL a temporary one."""
    if chosen.artifacts is not None:
        artifacts.check(chosen.artifacts)
    if chosen.storage is not None:
        yield chosen.storage, storage.connect(chosen.storage)
        return
    with tempfile.TemporaryDirectory(prefix="sweepstack-", ignore_cleanup_errors=True) as place:
        url = f"sqlite:///{place}/studies.db"
        yield url, storage.connect(url)
