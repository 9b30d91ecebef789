"""Scalars for TensorBoard: what a run's evaluations measured (and, with training.diagnostics,
what its layers do), and its config as text.

Reads the `logger` config group. A single run is written while it trains (`follow`), the best trials
of a sweep when they end (`write`), to `FOLDER/tensorboard`; with several seeds, to
`FOLDER/tensorboard/seed_N`. A run that is resumed writes its file anew from the history in its
checkpoint, so that no step appears twice. tensorboard is an optional extra.
"""

from __future__ import annotations

import importlib.util
import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import yaml

from sweepstack.config import schema
from sweepstack.config.errors import EnvironmentFault
from sweepstack.config.schema import RunConfig
from sweepstack.training.spec import Monitor, TrialResult, TrialSpec

FOLDER = "tensorboard"


def check(config: RunConfig) -> None:
    """Check that the package that a config's logger needs is installed.

    Raises:
        EnvironmentFault: it is not.
    """
    wanted = isinstance(config.logger, schema.TensorBoard)
    if wanted and importlib.util.find_spec("tensorboard") is None:
        raise EnvironmentFault(
            "logger=tensorboard needs the package tensorboard: "
            "pip install 'sweepstack[tensorboard]'"
        )


def follow(spec: TrialSpec, folder: Path, monitor: Monitor) -> Monitor:
    """`monitor`, and before it the logger if the config asks for one."""
    if isinstance(spec.config.logger, schema.NoLogger):
        return monitor
    return _Logged(folder, spec.config.training.seeds > 1, monitor)


def write(folder: Path, config: RunConfig, results: Sequence[TrialResult]) -> None:
    """Write a trial that has ended; `results` are those of its seeds.

    Raises:
        EnvironmentFault: the disk is full, the folder cannot be written, or the package is gone.
    """
    if isinstance(config.logger, schema.NoLogger):
        return
    check(config)
    for result in results:
        events = Events(_place(folder, result.spec, several=config.training.seeds > 1))
        events.begin(result.spec.config, result.history)
        events.layers(result.layers)
        events.scalars(result.best_step, _of_test(result))


def finish(folder: Path, spec: TrialSpec, results: Sequence[TrialResult]) -> None:
    """Add the test metrics of a run that `follow` watched, at the step of its best state.

    Raises:
        EnvironmentFault: the disk is full or the folder cannot be written.
    """
    if isinstance(spec.config.logger, schema.NoLogger):
        return
    for result in results:
        place = _place(folder, result.spec, several=spec.config.training.seeds > 1)
        Events(place).scalars(result.best_step, _of_test(result))


def _of_test(result: TrialResult) -> dict[str, float]:
    return {name: value for name, value in result.metrics.items() if name.startswith("test_")}


def _place(folder: Path, spec: TrialSpec, *, several: bool) -> Path:
    inner = f"seed_{spec.config.training.seed}" if several else ""
    return folder / FOLDER / inner


class _Logged(Monitor):
    """Logs evaluations, and passes everything on to the monitor behind it."""

    def __init__(self, folder: Path, several: bool, behind: Monitor):
        self.folder, self.several, self.behind = folder, several, behind

    def _events(self, spec: TrialSpec) -> Events:
        return Events(_place(self.folder, spec, several=self.several))

    def room(self, slots: int) -> None:
        self.behind.room(slots)

    def started(
        self, spec: TrialSpec, step: int, total_steps: int, history: Sequence[Mapping[str, float]]
    ) -> None:
        self._events(spec).begin(spec.config, history)
        self.behind.started(spec, step, total_steps, history)

    def stepped(self, steps: int, specs: Sequence[TrialSpec]) -> None:
        self.behind.stepped(steps, specs)

    def report(self, spec: TrialSpec, row: Mapping[str, float]) -> None:
        self._events(spec).row(row)
        self.behind.report(spec, row)

    def diagnosed(self, spec: TrialSpec, rows: Sequence[Mapping[str, Any]]) -> None:
        self._events(spec).layers(rows)
        self.behind.diagnosed(spec, rows)

    def should_stop(self, spec: TrialSpec) -> bool:
        return self.behind.should_stop(spec)

    def interrupted(self) -> int | None:
        return self.behind.interrupted()


class Events:
    """The one event file of a folder. It is opened for each write only: a run may have a thousand
    seeds, and is readable after a kill."""

    def __init__(self, folder: Path):
        self.folder = folder

    def begin(self, config: RunConfig, history: Sequence[Mapping[str, float]]) -> None:
        """Replace the file by one with the config and the history; a TensorBoard that has read the
        former one forgets it.

        Raises:
            EnvironmentFault: the disk is full or the folder cannot be written.
        """
        from tensorboard.compat.proto import event_pb2

        started = event_pb2.SessionLog(status=event_pb2.SessionLog.START)
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            for former in self._files():
                former.unlink()
            name = f"events.out.tfevents.{int(time.time())}.{os.getpid()}"
            (self.folder / name).touch()
        except OSError as error:
            raise self._fault(error) from error
        self._write(
            [
                {"file_version": "brain.Event:2"},
                {"session_log": started, "step": 0},
                {"summary": _text("config", _markdown(config))},
                *(_scalars(row) for row in history),
            ]
        )

    def row(self, row: Mapping[str, float]) -> None:
        """Add an evaluation.

        Raises:
            EnvironmentFault: the disk is full or the folder cannot be written.
        """
        self._write([_scalars(row)])

    def layers(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """Add what layers do, each number as METRIC/LAYER, but for those that a layer has not.

        Raises:
            EnvironmentFault: the disk is full or the folder cannot be written.
        """
        named: dict[int, dict[str, float]] = {}
        for row in rows:
            step, layer, *_ = row.values()
            found = {f"{k}/{layer}": v for k, v in row.items() if k not in ("step", "layer")}
            known = {name: value for name, value in found.items() if value == value}
            named.setdefault(step, {"step": step}).update(known)
        self._write([_scalars(row) for row in named.values()])

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """Add numbers at a step.

        Raises:
            EnvironmentFault: the disk is full or the folder cannot be written.
        """
        if values:
            self.row({"step": step, **values})

    def _files(self) -> list[Path]:
        return sorted(self.folder.glob("events.out.tfevents.*"))

    def _write(self, events: Sequence[Mapping[str, Any]]) -> None:
        from tensorboard.compat.proto import event_pb2
        from tensorboard.summary.writer.record_writer import RecordWriter

        try:
            with open(self._files()[-1], "ab") as file:
                records = RecordWriter(file)
                for event in events:
                    record = event_pb2.Event(wall_time=time.time(), **event)
                    records.write(record.SerializeToString())
        except OSError as error:
            raise self._fault(error) from error

    def _fault(self, error: OSError) -> EnvironmentFault:
        return EnvironmentFault(f"cannot write {self.folder}: {error.strerror or error}")


def _scalars(row: Mapping[str, float]) -> dict[str, Any]:
    from tensorboard.compat.proto import summary_pb2

    values = [
        summary_pb2.Summary.Value(tag=name, simple_value=value)
        for name, value in row.items()
        if name != "step"
    ]
    return {"step": int(row["step"]), "summary": summary_pb2.Summary(value=values)}


def _text(tag: str, markdown: str) -> Any:
    """A summary that TensorBoard shows among the texts."""
    from tensorboard.compat.proto import summary_pb2, tensor_pb2, types_pb2

    kind = summary_pb2.SummaryMetadata.PluginData(plugin_name="text")
    value = summary_pb2.Summary.Value(
        tag=tag,
        metadata=summary_pb2.SummaryMetadata(plugin_data=kind),
        tensor=tensor_pb2.TensorProto(
            dtype=types_pb2.DT_STRING, string_val=[markdown.encode("utf-8")]
        ),
    )
    return summary_pb2.Summary(value=[value])


def _markdown(config: RunConfig) -> str:
    text = yaml.safe_dump(asdict(config), sort_keys=False, allow_unicode=True)
    return f"```yaml\n{text}```"
