"""What a study shows in optuna-dashboard besides its trials: notes, a heatmap, the report, files.

    each finished trial   a note: overrides, metrics, how to run it again (`notes.py`)
    the best trials       best.pt and history.csv as artifacts
    the study             a note, the heatmap as a plot, the report as an artifact

All of it is kept where optuna-dashboard keeps its own: in the study's system attributes, which
`dashboard_rows.py` writes, and in a `FileSystemArtifactStore` beside the database. This file says
what is to stand there, and whether anything has changed since it was written. Artifacts of trials
have the keys that the dashboard gives them in the study, since Optuna lets nothing be added to a
trial that has ended. Every key and every name of a file follows from what it is of: decorating
again adds nothing twice, also when two processes do it at once, and what a person has changed or
deleted stays so.
"""

from __future__ import annotations

import json
import os
import tempfile
import uuid
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import optuna
from optuna.artifacts import ArtifactMeta, FileSystemArtifactStore
from optuna.trial import FrozenTrial

from sweepstack.config.errors import EnvironmentFault
from sweepstack.reporting import report
from sweepstack.reporting.dashboard import dashboard_rows, notes
from sweepstack.reporting.dashboard.dashboard_rows import Attributes, Rows
from sweepstack.study import storage
from sweepstack.study.attributes import IDENTITY, SWEEP
from sweepstack.study.keys import objectives
from sweepstack.study.library import OpenStudy, place
from sweepstack.study.ranking import best_trials
from sweepstack.study.read import trials_of

MOST_NOTES = 2000
"""Trials of a study that have notes unless more are asked for, the best first: plain
optuna-dashboard goes through all notes for each trial, which of 10,000 takes minutes."""
TOP = 5
"""Trials that keep their files as artifacts."""
FILES = {"best.pt": "application/octet-stream", "history.csv": "text/csv"}
REPORT = "report.html"
MOST_BYTES = 256 * 2**20
"""A larger file is no artifact: it is a copy."""
DELETED = "null"
"""What the dashboard makes of the attribute of an artifact that a person deletes."""
DECORATED = "sweepstack:decorated"
"""System attribute of a study: what it was like when it was decorated."""
FORMAT = 1
"""To be raised when more is written, so that old studies get it."""

Asked = Callable[[str], bool]


def is_of_sweepstack(study: optuna.Study) -> bool:
    """Whether a sweep of sweepstack made the study."""
    known = study.user_attrs
    return IDENTITY in known or SWEEP in known


def artifacts(where: str) -> Path:
    """The folder of the artifacts of all studies in a storage."""
    return place(where) / "artifacts"


def decorate(
    opened: OpenStudy, *, most_notes: int | None = MOST_NOTES, written: Path | None = None
) -> bool:
    """Write what the dashboard shows of a study, where anything has changed since the last time.

    Waits for no sweep, and lets none wait for longer than one transaction takes.

    Args:
        opened: a study; one of another program is left as it is.
        most_notes: of that many trials at most, the best first; None: of all.
        written: its report, if there is one that is up to date; it is written otherwise.

    Returns:
        Whether there was anything to write.

    Raises:
        EnvironmentFault: the storage or the artifacts' folder cannot be written.
    """
    if not is_of_sweepstack(opened.study):
        return False
    with storage.named(opened.where), dashboard_rows.rows_of(opened) as rows:
        return _decorate(opened, rows, most_notes, written)


def _decorate(opened: OpenStudy, rows: Rows, most_notes: int | None, written: Path | None) -> bool:
    folder = artifacts(opened.where)
    before = rows.attribute(DECORATED) if folder.is_dir() else None
    before = before if isinstance(before, dict) else {}
    ended = rows.ended()
    state = {"format": FORMAT, "trials": ended, "notes": most_notes}
    has_grown = before.get("format") != FORMAT or before.get("trials") != ended
    if not has_grown and before.get("notes") in (None, most_notes):
        return False
    opened = OpenStudy(opened.study, opened.where)  # read anew
    every = trials_of(opened.study)
    trials = [trial for trial in every if trial.state.is_finished()]
    first = best_trials(opened.study, trials)
    noted = _noted(trials, first, most_notes)
    state["notes"] = None if len(noted) == len(trials) else most_notes
    texts = _notes(opened, noted)
    plots, added = {}, Attributes()

    def is_deleted(key: str) -> bool:
        return bool(rows.attribute(key) == DELETED)

    if has_grown:
        plots = _plots(opened)
        added = _files(opened, folder, first[:TOP], is_deleted)
        if trials:
            added |= _report(opened, folder, written, every[0], is_deleted)

    def change(known: Mapping[str, Any]) -> Attributes:
        # What a person has deleted is known still.
        new = {key: value for key, value in added.items() if key not in known}
        told = dashboard_rows.changed_notes(texts, known)
        drawn = dashboard_rows.changed_plots(plots, known)
        return {**told, **drawn, **new, DECORATED: state}

    rows.write(change)
    return True


def _noted(
    trials: list[FrozenTrial], first: list[FrozenTrial], most: int | None
) -> list[FrozenTrial]:
    if most is None or len(trials) <= most:
        return trials
    return list({trial.number: trial for trial in [*first, *trials]}.values())[:most]


def _notes(opened: OpenStudy, trials: Iterable[FrozenTrial]) -> dict[int | None, str]:
    """The note of each trial by its row; of the study, by None."""
    goals = list(objectives(opened.study))
    rerun = notes.is_rerun_known(opened)
    texts: dict[int | None, str] = {None: notes.of_study(opened)}
    for trial in trials:
        texts[trial._trial_id] = notes.of_trial(opened, goals, trial, rerun=rerun)
    return texts


def _plots(opened: OpenStudy) -> dict[str, str]:
    """plotly's JSON of the plots that the dashboard does not draw itself, by their ids."""
    from sweepstack.reporting.plots import heatmap
    from sweepstack.reporting.plots.material import Material
    from sweepstack.reporting.plots.words import label

    material = Material(opened)
    plot = heatmap.plot(material)
    if plot is None:
        return {}
    title = f"{label(material.value)}, mean ± std and n"
    plot.figure.update_layout(title=title, margin={"t": 80})
    return {plot.key: plot.figure.to_json()}


def _files(
    opened: OpenStudy, folder: Path, trials: Iterable[FrozenTrial], is_deleted: Asked
) -> Attributes:
    """Copy the files of `trials` into the artifacts' folder."""
    added: Attributes = {}
    if opened.folder is None:
        return added
    for trial in trials:
        for name, kind in FILES.items():
            file = opened.folder / str(trial.number) / name
            elsewhere = not file.resolve().is_relative_to(opened.folder.resolve())
            if not file.is_file() or elsewhere or file.stat().st_size > MOST_BYTES:
                continue
            artifact = _id(opened.name, trial, name)
            key = f"dashboard:artifacts:{trial._trial_id}:{artifact}"
            if is_deleted(key):
                continue
            if not (folder / artifact).exists():
                _store(folder, artifact, file)
            added[key] = _meta(artifact, name, kind)
    return added


def _report(
    opened: OpenStudy, folder: Path, written: Path | None, first: FrozenTrial, is_deleted: Asked
) -> Attributes:
    """Copy the study's report into the artifacts' folder; by its `first` trial, which stays the
    same, it is told from that of another study that had the name before."""
    artifact = _id(opened.name, first, REPORT)
    key = f"artifacts:{artifact}"
    if is_deleted(key):
        return {}
    if written is not None:
        _store(folder, artifact, written)
    else:
        with tempfile.TemporaryDirectory(prefix="sweepstack-") as scratch:
            _store(folder, artifact, report.write(opened, Path(scratch) / REPORT))
    return {key: _meta(artifact, REPORT, "text/html")}


def _id(study: str, trial: FrozenTrial, name: str) -> str:
    """The same for the same file of the same trial, in whatever storage it is kept. Trials of a
    stack start at the same moment."""
    of = f"{study}/{trial.number}/{trial.datetime_start}/{name}"
    return str(uuid.uuid5(uuid.NAMESPACE_URL, of))


def _meta(artifact: str, name: str, kind: str) -> str:
    return json.dumps(asdict(ArtifactMeta(artifact, name, kind, None)))


def _store(folder: Path, artifact: str, file: Path) -> None:
    """Copy a file, so that it is there whole or not at all."""
    beside = f".{artifact}.{os.getpid()}.tmp"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        try:
            with file.open("rb") as content:
                FileSystemArtifactStore(folder).write(beside, content)
            os.replace(folder / beside, folder / artifact)
        finally:
            (folder / beside).unlink(missing_ok=True)
    except OSError as error:
        raise EnvironmentFault(
            f"cannot copy {file} to {folder}: {error.strerror or error}"
        ) from error
