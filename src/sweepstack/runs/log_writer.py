"""The process that writes what runs log: `python -m sweepstack.runs.log_writer`, started by
`logger.Writer`.

Reads pickled lists of updates from its own parent on stdin, until that ends, and gives them to each
backend that is on. What it prints are warnings. A backend that fails (a server gone, a full disk)
keeps what it could not write and tries again; it says so once.
"""

from __future__ import annotations

import contextlib
import csv
import fcntl
import hashlib
import os
import pickle
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from sweepstack.config import errors, schema
from sweepstack.config.errors import one_line
from sweepstack.runs.folder import as_csv
from sweepstack.runs.logger import MAX_WAITING, Row, Run, Update
from sweepstack.runs.tensorboard import TensorBoard

RETRY_S = 20.0
"""Seconds until a backend that failed is tried again."""
MAX_LIVE = 50
"""W&B runs that are open at once; others are written when they end."""


class Backend(Protocol):
    """Where runs are logged."""

    def write(self, run: Run, update: Update) -> bool:
        """Write what is new of a run, again if it failed before; False if that has to wait."""

    def close(self) -> None:
        """All is written; runs without an end were interrupted."""


class Sink:
    """A backend with what waits for it."""

    def __init__(self, name: str, make: Callable[[], Backend], say: Callable[[str], None]):
        self.name, self._make, self._say = name, make, say
        self._backend: Backend | None = None
        self._runs: dict[str, Run] = {}
        self._waiting: dict[str, Update] = {}
        self._again, self._said, self._full = 0.0, False, False

    def take(self, updates: Sequence[Update]) -> None:
        """Write these and what waits, unless it failed a moment ago."""
        for update in updates:
            own = Update(update.key)
            self._waiting.setdefault(update.key, own).add(update)
        if time.monotonic() >= self._again:
            self._write()

    def _write(self) -> None:
        try:
            if self._backend is None:
                self._backend = self._make()
            for key, update in list(self._waiting.items()):
                if update.run is not None:
                    self._runs[key] = update.run
                if key in self._runs and not self._backend.write(self._runs[key], update):
                    if not self._full:
                        self._say(
                            f"logger={self.name} has {MAX_LIVE} runs open: others are "
                            "written when one of these ends, or they do"
                        )
                    self._full = True
                    continue
                del self._waiting[key]
                if update.end is not None:
                    self._runs.pop(key, None)
        except Exception as error:
            self._again = time.monotonic() + RETRY_S
            if not self._said:
                self._say(f"logger={self.name} fails, training goes on: {one_line(error, 200)}")
            self._said = True
            if sum(len(update.rows) for update in self._waiting.values()) > MAX_WAITING:
                self._waiting.clear()

    def close(self) -> None:
        """Try a last time, and close."""
        if self._waiting:
            self._write()
        if self._waiting:
            self._say(f"logger={self.name} lacks the last of {len(self._waiting)} runs")
        elif self._backend is not None:
            with contextlib.suppress(Exception):
                self._backend.close()


class Csv:
    """log.csv of a run or study: trial, seed, run, what was set, step and metrics; a row for each
    evaluation. What a resumed trial has in it already goes over to its new number, and is not
    written again."""

    def __init__(self) -> None:
        self._known: dict[str, set[float]] = {}  # of resumed runs, the steps that the file has

    def write(self, run: Run, update: Update) -> bool:
        """Add a run's rows; new columns make a new file, which takes the place of the old one.

        Raises:
            OSError, EnvironmentFault: the disk is full or the folder cannot be written.
        """
        number, seed = int(run.key.partition("/")[0]), run.config["training"]["seed"]
        own = {"trial": number, "seed": seed, "run": run.name, **run.params}
        rows = [{**own, **row} for row in update.rows]
        path = run.place / "log.csv"
        with _locked_folder(run.place):  # not the file, which another may take the place of
            columns, is_whole = _head_of(path)
            new = dict.fromkeys(n for row in rows for n in row if n not in columns and n != "at")
            resumed = update.run is not None and (run.continues or run.study is None)
            if new or resumed or not is_whole:
                before = _rows_of(path, is_whole)
                if resumed:
                    self._known[run.key] = _taken_over(before, run, own)
                columns += new
                errors.write_bytes(path, as_csv(before, columns).encode("utf-8", "replace"))
            known = self._known.get(run.key, ())
            added = [row for row in rows if row["step"] not in known]
            if added:
                with path.open("ab") as file:
                    file.write(as_csv(added, columns, head=False).encode("utf-8", "replace"))
        return True

    def close(self) -> None:
        """Nothing is open."""


def _taken_over(rows: Sequence[dict[str, Any]], run: Run, own: Mapping[str, Any]) -> set[float]:
    """Give a run the rows of those in whose place it trains; returns their steps."""
    numbers = {key.partition("/")[0] for key in (run.key, *run.continues)}
    steps = set()
    for row in rows:
        if row["trial"] in numbers and row["seed"] == str(own["seed"]):
            row |= {"trial": own["trial"], "run": own["run"]}
            steps.add(float(row["step"]))
    return steps


def _head_of(path: Path) -> tuple[list[str], bool]:
    """The columns of a table, none where there is no file yet; and whether it ends with a line, as
    one does not whose writer was killed."""
    try:
        with path.open("rb") as file:
            first = file.readline().decode("utf-8", "replace")
            file.seek(-1, os.SEEK_END)
            return next(csv.reader([first]), []), file.read(1) == b"\n"
    except OSError:  # there is none, or it is empty
        return [], not path.exists()


def _rows_of(path: Path, is_whole: bool) -> list[dict[str, Any]]:
    """The rows of a table, without a last one that was cut off."""
    if not path.exists():
        return []
    with path.open(encoding="utf-8", errors="replace", newline="") as file:
        rows = list(csv.DictReader(file))
    return rows if is_whole else rows[:-1]


def _identity(run: Run, key: str = "") -> str:
    """The same for a study, or for a run of it, in every process and however often resumed."""
    text = f"{run.place}/{run.study}/{key}"
    return hashlib.sha256(text.encode(errors="replace")).hexdigest()[:16]


class Mlflow:
    """A run of MLflow for each run, below a parent run for the study.

    A run is found by its first key again when it is resumed; steps that it has are not logged
    again.
    """

    def __init__(self, settings: schema.Logger):
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "20")
        os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
        uri = settings.tracking_uri or os.environ.get("MLFLOW_TRACKING_URI")
        if uri is None:
            Path("outputs").mkdir(exist_ok=True)
            uri = "sqlite:///outputs/mlflow.db"
        from mlflow.tracking import MlflowClient

        self._client: Any = MlflowClient(uri)
        self._name, self._experiment = settings.experiment, ""
        self._open: dict[str, tuple[str, float]] = {}  # key -> its id, and the last step it has
        self._parent: str | None = None

    def write(self, run: Run, update: Update) -> bool:
        """Log what is new of a run.

        Raises:
            mlflow.MlflowException: the server or database does not answer.
        """
        if run.key not in self._open:
            self._begin(run)
        found, last = self._open[run.key]
        rows = [row for row in [*update.rows, *update.layers] if row["step"] > last]
        self._log(found, rows)
        if (end := update.end) is not None:
            self._log(found, [{"step": end.step, "at": end.at, **end.best}])
            for name, text in {"state": end.state, **end.facts}.items():
                self._client.set_tag(found, name, str(text)[:5000])
            status = "FAILED" if end.state == "failed" else "FINISHED"
            self._client.set_terminated(found, status, int(end.at * 1000))
            del self._open[run.key]
        return True

    def _begin(self, run: Run) -> None:
        with _locked_folder(run.place):
            self._set_up(run)
        identity, last = _identity(run, run.first), -1.0
        facts = {"trial": run.key, "sweepstack.id": identity, **run.facts}
        resumed = run.continues or run.study is None
        if found := resumed and self._find(identity):
            last = self._last_step(found)
            self._client.update_run(found, "RUNNING", run.name)
            for name, text in facts.items():
                self._client.set_tag(found, name, text)
        else:
            if self._parent is not None:
                facts |= {"mlflow.parentRunId": self._parent, "study": str(run.study)}
            made = self._client.create_run(self._experiment, tags=facts, run_name=run.name)
            found = made.info.run_id
            self._client.log_batch(found, params=_params(run.params))
        self._open[run.key] = found, last

    def _set_up(self, run: Run) -> None:
        """The experiment and the study's run, made by the first process that needs them."""
        if not self._experiment:
            known = self._client.get_experiment_by_name(self._name)
            self._experiment = (
                known.experiment_id if known else self._client.create_experiment(self._name)
            )
        if run.study is not None and self._parent is None:
            identity = _identity(run)
            self._parent = self._find(identity)
            if self._parent is None:
                tags = {"sweepstack.id": identity, "study": run.study}
                made = self._client.create_run(self._experiment, tags=tags, run_name=run.study)
                self._parent = made.info.run_id
                self._client.log_batch(self._parent, params=_params(run.fixed))
            else:
                self._client.update_run(self._parent, "RUNNING")

    def _find(self, identity: str) -> str | None:
        text = f"tags.`sweepstack.id` = '{identity}'"
        found = self._client.search_runs([self._experiment], text, max_results=1)
        return found[0].info.run_id if found else None

    def _last_step(self, found: str) -> float:
        names = [n for n in self._client.get_run(found).data.metrics if n == "train_loss"]
        points = [p for name in names for p in self._client.get_metric_history(found, name)]
        return max((float(point.step) for point in points), default=-1.0)

    def _log(self, found: str, rows: Sequence[Row]) -> None:
        from mlflow.entities import Metric

        metrics = [
            Metric(name, float(value), int(row["at"] * 1000), int(row["step"]))
            for row in rows
            for name, value in row.items()
            if name not in ("step", "at")
        ]
        for first in range(0, len(metrics), 1000):  # MLflow takes no more at once
            self._client.log_batch(found, metrics=metrics[first : first + 1000])

    def close(self) -> None:
        """End the study's run, and those that were interrupted."""
        for found, _ in self._open.values():
            self._client.set_terminated(found, "KILLED")
        if self._parent is not None:
            self._client.set_terminated(self._parent, "KILLED" if self._open else "FINISHED")


def _params(values: Mapping[str, Any]) -> list[Any]:
    """As MLflow takes them at once: 100, of 6,000 letters at most."""
    from mlflow.entities import Param

    return [Param(name, str(value)[:5000]) for name, value in values.items()][:100]


@contextlib.contextmanager
def _locked_folder(path: Path) -> Iterator[None]:
    """Let other processes that lock it wait."""
    path.mkdir(parents=True, exist_ok=True)
    opened = os.open(path, os.O_RDONLY)
    try:
        with contextlib.suppress(OSError):  # a file system without locks
            fcntl.flock(opened, fcntl.LOCK_EX)
        yield
    finally:
        os.close(opened)


class Wandb:
    """A run of W&B for each run, in a group for the study.

    A run has the same id when it is resumed; a file beside its data has the last step, because W&B
    cannot be asked while it is offline.
    """

    def __init__(self, settings: schema.Logger):
        import wandb

        self._wandb, self._project = wandb, os.environ.get("WANDB_PROJECT", settings.project)
        self._open: dict[str, tuple[Any, Path, float]] = {}  # key -> run, file of its step, step

    def write(self, run: Run, update: Update) -> bool:
        """Log what is new of a run, unless so many are open that it has to wait for its end.

        Raises:
            wandb.Error: W&B does not answer.
        """
        if run.key not in self._open:
            if update.end is None and len(self._open) >= MAX_LIVE:
                return False
            self._begin(run)
        opened, file, last = self._open[run.key]
        at: dict[float, dict[str, float]] = {}
        for row in [*update.rows, *update.layers]:
            if row["step"] > last:
                kept = {name: value for name, value in row.items() if name not in ("step", "at")}
                at.setdefault(row["step"], {}).update(kept)
        for step, values in sorted(at.items()):
            opened.log(values, step=int(step))
        if at:
            file.write_text(str(max(at)))
        if (end := update.end) is not None:
            opened.summary.update({"state": end.state, **end.facts, **end.best})
            opened.tags = (*opened.tags, end.state)
            opened.finish(exit_code=int(end.state == "failed"))
            del self._open[run.key]
        return True

    def _begin(self, run: Run) -> None:
        folder, identity = run.place / "wandb", _identity(run, run.first)
        folder.mkdir(parents=True, exist_ok=True)
        opened = self._wandb.init(
            project=self._project,
            group=run.study,
            name=run.name,
            id=identity,
            dir=run.place,
            config={**run.config, "swept": dict(run.params)},
            tags=[word[:64] for word in run.varied],
            resume="allow",
            reinit="create_new",
            settings=self._wandb.Settings(silent=True, console="off", x_disable_stats=True),
        )
        file = folder / f"{identity}.step"
        last = float(file.read_text()) if file.exists() else -1.0
        self._open[run.key] = opened, file, last

    def close(self) -> None:
        """End the runs that were interrupted; they can be resumed."""
        for opened, _, _ in self._open.values():
            opened.finish(exit_code=1)
        self._wandb.teardown()  # waits until W&B's own process has written everything


def main() -> None:
    """Write until the parent has nothing more to say, or is gone."""
    os.nice(10)  # training goes first
    said = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # what the packages print

    def say(line: str) -> None:
        with contextlib.suppress(OSError):  # nobody listens any more
            print(line, file=said)

    settings: schema.Logger = pickle.load(sys.stdin.buffer)
    makes: dict[str, Callable[[], Backend]] = {
        "tensorboard": TensorBoard,
        "csv": Csv,
        "mlflow": lambda: Mlflow(settings),
        "wandb": lambda: Wandb(settings),
    }
    sinks = [Sink(name, makes[name], say) for name in settings.names]
    with contextlib.suppress(EOFError, pickle.UnpicklingError):
        while True:
            updates = pickle.load(sys.stdin.buffer)
            for sink in sinks:
                sink.take(updates)
    for sink in sinks:
        sink.close()


if __name__ == "__main__":
    main()
