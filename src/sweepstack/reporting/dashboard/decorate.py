"""What a study shows in optuna-dashboard besides its trials: notes, a heatmap, the report, files.

    each finished trial   a note: overrides, metrics, how to run it again
    the best trials       best.pt and history.csv as artifacts
    the study             a note, the heatmap as a plot, the report as an artifact

All of it is kept where optuna-dashboard keeps its own: in system attributes of the study, as its
`save_note` and `save_plotly_graph_object` write them, and in a `FileSystemArtifactStore` beside the
database. Those functions take two transactions or more for each note; here one transaction decides
and writes everything, so of two processes that decorate a study at once one sees what the other
wrote. Artifacts of trials have the dashboard's older keys in the study, since Optuna lets nothing
be added to a trial that has ended. Every key and file name follows from what it is of: decorating
again adds nothing twice, and what a person has changed or deleted stays so.

A note is rendered in a browser, and names, overrides and errors come from the study: such text
stands in code blocks whose fences are longer than any in it. A note ends with a hidden line with
the hash of what is above it, which tells a note that a person has changed.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import os
import re
import shutil
import tempfile
import time
import uuid
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any, TypeGuard

from optuna.exceptions import StorageInternalError
from optuna.storages import BaseStorage, RDBStorage
from optuna.trial import FrozenTrial, TrialState
from sqlalchemy import column, insert, select, table, update
from sqlalchemy.exc import SQLAlchemyError

from sweepstack import storage
from sweepstack.analysis import doctor
from sweepstack.analysis.terminal import number
from sweepstack.config import commands
from sweepstack.config.errors import EnvironmentFault, one_line, shown_to_people
from sweepstack.reporting import report
from sweepstack.reporting.report.content import chosen, command_of
from sweepstack.runs import progress
from sweepstack.study.attributes import EQUALS, IDENTITY, LOST, OVERRIDES, SWEEP
from sweepstack.study.book.public import held
from sweepstack.study.frame import STATES
from sweepstack.study.read import TRIALS, best_trials
from sweepstack.study.view import StudyView, place

log = logging.getLogger(__name__)
MAX_NOTES = 2000
"""Trials of a study that have notes unless more are asked for, the best first: optuna-dashboard by
itself searches all notes for each trial, which takes minutes for 10,000."""
TOP = 5
"""Trials that keep their files as artifacts."""
FILES = {"best.pt": "application/octet-stream", "history.csv": "text/csv"}
REPORT = "report.html"
OURS = {*FILES, REPORT}
"""File names of the artifacts that are written here."""
MAX_BYTES = 256 * 2**20
"""A larger file is no artifact: it would be copied."""
DELETED = "null"
"""What the dashboard makes of the attribute of an artifact that a person deletes."""
DECORATED = "sweepstack:decorated"
"""System attribute of a study: its state when it was last decorated."""
FINISHED = [state.name for state in TrialState if state.is_finished()]
FORMAT = 3
"""To be raised when more is written, so that old studies get it."""
PART = 2045
"""Letters of one attribute: optuna-dashboard splits longer texts."""
MAX_BLOCK = 4000
"""Letters of a code block in a note."""
METRICS = (
    *("train_loss", "train_accuracy", "val_loss", "val_accuracy", "val_mse", "val_mae"),
    *("test_loss", "test_accuracy", "test_mse", "test_mae", "std", "seeds", "best_step", "steps"),
    *("seconds", "num_parameters", "stopped", "device"),
)
"""Attributes of a trial that its note shows, in this order."""
_SIGNATURE = re.compile(r"\n\n\[//\]: # \(sweepstack ([0-9a-f]{16})\)\n\Z")

Attributes = dict[str, Any]
"""System attributes of a study."""
STUDIES = table("studies", column("study_id"))
ROWS = table("study_system_attributes", column("study_id"), column("key"), column("value_json"))


def artifacts(where: str) -> Path:
    """The folder of the artifacts of all studies in a storage."""
    return place(where) / "artifacts"


def write_report(view: StudyView) -> None:
    """Write the report, and its notes and files for the dashboard. Of two commands that end
    together one waits, and writes only what ended since the other has read the study."""
    asked = time.time()
    try:
        file = report.place_of(view)
        file.parent.mkdir(parents=True, exist_ok=True)
        lock = file.with_name(f".{file.name}.lock")
        with contextlib.ExitStack() as alone:
            with contextlib.suppress(StorageInternalError):  # a file system without locks
                alone.enter_context(held(lock))
            read, opened = time.time(), view.latest()
            ends = [t.datetime_complete for t in opened.trials if t.datetime_complete is not None]
            found = file.stat() if file.exists() else None
            last = max(ends, default=datetime.min)
            is_new = found is not None and found.st_ctime >= asked
            if not (found and is_new and datetime.fromtimestamp(found.st_mtime) >= last):
                report.write(opened, file)
                os.utime(file, (read, read))
            progress.say(f"report: {progress.shown(file)}")
            with progress.console().status("preparing notes and files for optuna-dashboard"):
                decorate(opened, written=file)
        lock.unlink(missing_ok=True)  # who waits holds it still; who comes later writes once more
    except Exception as error:  # the results are kept, whatever is wrong with a picture
        log.warning("the report could not be written: %s", one_line(error))
        log.debug("the report", exc_info=True)


def decorate(
    view: StudyView, *, max_notes: int | None = MAX_NOTES, written: Path | None = None
) -> bool:
    """Write what the dashboard shows of a study, where anything has changed since the last time.

    Takes one short transaction; no sweep waits for longer.

    Args:
        view: a study; one of another program is left as it is.
        max_notes: trials with a note, the best first; None: all.
        written: its report, if there is one that is up to date; it is written otherwise.

    Returns:
        Whether there was anything to write.

    Raises:
        EnvironmentFault: the storage or the artifacts' folder cannot be written.
    """
    if not {IDENTITY, SWEEP} & set(view.user_attrs):
        return False
    with storage.named(view.where), writable(view) as (target, study_id):
        folder = artifacts(view.where)
        known = target.get_study_system_attrs(study_id)
        before = known.get(DECORATED) if folder.is_dir() else None
        before = before if isinstance(before, dict) else {}
        known_trials = trial_ids(target, study_id)
        states = Counter(state for _, state in known_trials.values() if state in FINISHED)
        # What changes whenever a trial ends.
        ended = ", ".join(f"{state} {count}" for state, count in sorted(states.items()))
        state = {"format": FORMAT, "trials": ended, "notes": max_notes}
        has_grown = before.get("format") != FORMAT or before.get("trials") != ended
        if not has_grown and before.get("notes") in (None, max_notes):
            return False
        view = view.latest()
        trials = [t for t in view.trials if t.state.is_finished() and t.number in known_trials]
        first = best_trials(view.study, trials)
        noted = list({trial.number: trial for trial in [*first, *trials]}.values())[:max_notes]
        state["notes"] = None if len(noted) == len(trials) else max_notes
        ids = {trial: trial_id for trial, (trial_id, _) in known_trials.items()}
        goals = list(view.objectives)
        texts = {"dashboard:note_": study_note(view)}
        texts |= {f"dashboard:{ids[t.number]}:note_": trial_note(view, goals, t) for t in noted}
        plots: dict[str, str] = {}
        added: Attributes = {}
        if has_grown:
            plots, added = _plots(view), _files(view, folder, first[:TOP], ids, known)
            if trials:
                added |= _report(view, folder, written, view.trials[0], known)

        def change(known: Mapping[str, Any]) -> Attributes:
            # Deleted artifacts are still known.
            new = {key: value for key, value in added.items() if key not in known}
            shown = {**_changed_notes(texts, known), **_changed_plots(plots, known)}
            return {**shown, **new, DECORATED: state}

        _write(target, study_id, change)
    return True


@contextlib.contextmanager
def writable(view: StudyView) -> Iterator[tuple[BaseStorage, int]]:
    """A study's storage, opened to write, and the study's id there.

    Raises:
        EnvironmentFault: it cannot be opened.
    """
    if "://" not in view.where and view.storage is not None:  # a journal
        yield view.storage, view.storage.get_study_id_from_name(view.name)
        return
    target = storage.connect(view.where)
    try:
        yield target, target.get_study_id_from_name(view.name)
    finally:
        storage.close(target)


def _has_tables(target: BaseStorage) -> TypeGuard[RDBStorage]:
    """Whether a storage has Optuna's tables as they are used here; with others its public methods
    do the same, an attribute at a time."""
    if not isinstance(target, RDBStorage):
        return False
    try:
        with target.engine.connect() as connection:
            for each in (STUDIES, TRIALS, ROWS):
                connection.execute(select(each).limit(1))
    except SQLAlchemyError:
        return False
    return True


def trial_ids(target: BaseStorage, study_id: int) -> dict[int, tuple[int, str]]:
    """The id in the storage and the state of each trial, by its number."""
    if not _has_tables(target):
        find, trials = target.get_trial_id_from_study_id_trial_number, target.get_all_trials
        return {
            trial.number: (find(study_id, trial.number), trial.state.name)
            for trial in trials(study_id, deepcopy=False)
        }
    rows = TRIALS.c
    query = select(rows.number, rows.trial_id, rows.state).where(rows.study_id == study_id)
    with target.engine.connect() as connection:
        return {trial: (id_, str(state)) for trial, id_, state in connection.execute(query)}


def _write(
    target: BaseStorage, study_id: int, change: Callable[[Mapping[str, Any]], Attributes]
) -> None:
    """Set the attributes that `change` makes of all that there are, in one transaction where the
    storage has any."""
    if not _has_tables(target):
        for key, value in change(target.get_study_system_attrs(study_id)).items():
            target.set_study_system_attr(study_id, key, value)
        return
    mine = ROWS.c.study_id == study_id
    with target.engine.begin() as connection:
        # SQLite's transaction holds the whole file already.
        connection.execute(select(STUDIES).where(STUDIES.c.study_id == study_id).with_for_update())
        query = select(ROWS.c.key, ROWS.c.value_json).where(mine)
        known = {key: json.loads(text) for key, text in connection.execute(query)}
        wanted = {key: json.dumps(value) for key, value in change(known).items()}
        new = [{"key": key, "value_json": wanted[key]} for key in wanted if key not in known]
        if new:
            connection.execute(insert(ROWS).values(study_id=study_id), new)
        for key in wanted.keys() & known.keys():
            one = update(ROWS).where(mine, ROWS.c.key == key)
            connection.execute(one.values(value_json=wanted[key]))


def _parts(known: Mapping[str, Any], prefix: str) -> list[str]:
    """A text that stands in several attributes."""
    parts: list[str] = []
    while (part := known.get(f"{prefix}{len(parts)}")) is not None:
        parts.append(str(part))
    return parts


def _split(text: str, prefix: str, before: int) -> Attributes:
    """The attributes of a text that had `before` of them; those no longer needed become empty."""
    parts = [text[start : start + PART] for start in range(0, len(text), PART)]
    parts += [""] * (before - len(parts))
    return {f"{prefix}{index}": part for index, part in enumerate(parts)}


def _changed_notes(texts: Mapping[str, str], known: Mapping[str, Any]) -> Attributes:
    """The attributes that turn the notes of a study, by their prefixes, into `texts`; a note that a
    person has changed or emptied stays."""
    changed: Attributes = {}
    for prefix, text in texts.items():
        old = _parts(known, f"{prefix}str:")
        body, version = "".join(old), f"{prefix}ver"
        if body != text and (version not in known or is_signed(body)):
            changed[version] = known.get(version, 0) + 1
            changed |= _split(text, f"{prefix}str:", len(old))
    return changed


def _changed_plots(plots: Mapping[str, str], known: Mapping[str, Any]) -> Attributes:
    """The attributes that turn the plots of a study, plotly's JSON by their ids, into `plots`."""
    changed: Attributes = {}
    for key, text in plots.items():
        old = _parts(known, prefix := f"dashboard:plot_data:{key}:")
        if "".join(old) != text:
            changed |= _split(text, prefix, len(old))
    return changed


def trial_note(view: StudyView, goals: Sequence[str], trial: FrozenTrial) -> str:
    """A finished trial's note: how it ended, its metrics, its overrides, how to run it again."""
    parts = [f"### Trial {trial.number}: {STATES[trial.state]}"]
    known = trial.user_attrs
    if error := known.get("error") or known.get(LOST):
        parts += ["Why it ended:", fenced(one_line(error, MAX_BLOCK))]
    if isinstance(known.get(EQUALS), int):
        parts.append(f"Not trained again: a duplicate of trial {known[EQUALS]}, with its metrics.")
    complete = trial.state == TrialState.COMPLETE and trial.values
    metrics: dict[str, Any] = dict(zip(goals, trial.values, strict=False)) if complete else {}
    for name in METRICS:
        if name in known:
            metrics.setdefault(name, known[name])
    if metrics:
        parts.append(_table(metrics.items()))
    overrides = known.get(OVERRIDES)
    if isinstance(overrides, list) and overrides:
        parts += ["Overrides:", fenced("\n".join(map(str, overrides)))]
        application = view.asked.get("application")
        if isinstance(application, dict) and application.get("name") == "sweepstack":
            command = commands.study("rerun", view.name, trial.number, where=view.where)
            parts += ["Run it again alone, and compare:", fenced(command)]
    elif trial.params:
        parts += ["Parameters:", _table(trial.params.items())]
    return signed("\n\n".join(parts))


def study_note(view: StudyView) -> str:
    """A study's note: what the doctor finds, the command that started it, and those that show
    more."""
    findings = doctor.examine(view) if len(view.good) else []
    parts = []
    if findings:
        lines = (
            "\n    ".join(filter(None, [f"{finding.level}: {finding.text}", finding.command]))
            for finding in findings
        )
        parts += ["### Findings", fenced("\n".join(lines))]
    command = command_of(view.asked)
    parts += ["### Command", fenced(command)] if command else []
    known = [(name.lower(), text) for name, text in chosen(view)]
    known += [("trials", total) for total in [view.asked.get("n_trials")] if total is not None]
    parts += [_table(known)] if known else []
    page = commands.study("report", view.name, where=view.where)
    table = commands.study("export", view.name, "-o", "trials.csv", where=view.where)
    parts += ["### More", "All plots and tables in one file, and one row per trial:"]
    return signed("\n\n".join([*parts, fenced(f"{page}\n{table}")]))


def fenced(text: str) -> str:
    """`text` as a code block that nothing in it can end."""
    text = shown_to_people(text)
    text = text if len(text) <= MAX_BLOCK else f"{text[: MAX_BLOCK - 1]}…"
    longest = max((len(run) for run in re.findall("`+", text)), default=0)
    fence = "`" * max(3, longest + 1)
    return f"{fence}text\n{text}\n{fence}"


def signed(text: str) -> str:
    """`text` with the line by which `is_signed` knows it."""
    return f"{text}\n\n[//]: # (sweepstack {_hash(text)})\n"


def is_signed(note: str) -> bool:
    """Whether a note is sweepstack's, and as it was written."""
    signature = _SIGNATURE.search(note)
    return signature is not None and signature[1] == _hash(note[: signature.start()])


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "backslashreplace")).hexdigest()[:16]


def _table(rows: Iterable[tuple[str, Any]]) -> str:
    pairs = [(name, number(x) if isinstance(x, float) else str(x)) for name, x in rows]
    width = max((len(name) for name, _ in pairs), default=0)
    return fenced("\n".join(f"{name:<{width}}  {value}" for name, value in pairs))


def _plots(view: StudyView) -> dict[str, str]:
    """plotly's JSON of the plots that the dashboard does not draw itself, by their ids."""
    from sweepstack.analysis.plots.parameters import importance
    from sweepstack.analysis.plots.style import label
    from sweepstack.analysis.plots.tables import heatmap

    plot = heatmap(view, importance(view)[1])
    if plot is None:
        return {}
    title = f"{label(view.objective)}, mean ± std and n"
    plot.figure.update_layout(title=title, margin={"t": 80})
    return {plot.key: plot.figure.to_json()}


def _files(
    view: StudyView,
    folder: Path,
    trials: Iterable[FrozenTrial],
    ids: Mapping[int, int],
    known: Mapping[str, Any],
) -> Attributes:
    """Copy the files of `trials` into the artifacts' folder."""
    added: Attributes = {}
    chosen = list(trials)
    numbers = {trial.number for trial in chosen}
    if (parent := view.files(numbers, models=numbers)) is None:
        return added
    for trial in chosen:
        for name, kind in FILES.items():
            file = parent / str(trial.number) / name
            elsewhere = not file.resolve().is_relative_to(parent.resolve())
            if not file.is_file() or elsewhere or file.stat().st_size > MAX_BYTES:
                continue
            artifact = _id(view.name, trial, name)
            key = f"dashboard:artifacts:{ids[trial.number]}:{artifact}"
            if known.get(key) == DELETED:
                continue
            if not (folder / artifact).exists():
                _store(folder, artifact, file)
            added[key] = _meta(artifact, name, kind)
    return added


def _report(
    view: StudyView,
    folder: Path,
    written: Path | None,
    first: FrozenTrial,
    known: Mapping[str, Any],
) -> Attributes:
    """Copy the study's report into the artifacts' folder; its `first` trial, which stays the same,
    tells it from that of another study that had the name before."""
    artifact = _id(view.name, first, REPORT)
    key = f"artifacts:{artifact}"
    if known.get(key) == DELETED:
        return {}
    if written is not None:
        _store(folder, artifact, written)
    else:
        with tempfile.TemporaryDirectory(prefix="sweepstack-") as scratch:
            _store(folder, artifact, report.write(view, Path(scratch) / REPORT))
    return {key: _meta(artifact, REPORT, "text/html")}


def _id(study: str, trial: FrozenTrial, name: str) -> str:
    """The same for the same file of the same trial, in whatever storage it is kept. Trials of a
    stack start at the same time."""
    of = f"{study}/{trial.number}/{trial.datetime_start}/{name}"
    return str(uuid.uuid5(uuid.NAMESPACE_URL, of))


def _meta(artifact: str, name: str, kind: str) -> str:
    """What Optuna keeps of an artifact. It is not asked: `optuna.artifacts` brings the clients of
    all clouds that are installed."""
    names = {"artifact_id": artifact, "filename": name, "mimetype": kind, "encoding": None}
    return json.dumps(names)


def _store(folder: Path, artifact: str, file: Path) -> None:
    """Copy a file, so that it is there whole or not at all."""
    beside = f".{artifact}.{os.getpid()}.tmp"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        try:
            with file.open("rb") as content, (folder / beside).open("wb") as copy:
                shutil.copyfileobj(content, copy)
            os.replace(folder / beside, folder / artifact)
        finally:
            (folder / beside).unlink(missing_ok=True)
    except OSError as error:
        reason = error.strerror or error
        raise EnvironmentFault(f"cannot copy {file} to {folder}: {reason}") from error
