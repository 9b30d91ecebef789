"""TensorBoard's event files: scalars, the hyperparameters of a run and its config as text.

Of a run by itself `FOLDER/tensorboard`, of several seeds `FOLDER/tensorboard/seed_N`; of a study
`tensorboard/NUMBER WHAT VARIES` in its folder, so that `tensorboard --logdir` shows what was varied
as the names of runs. A run that is resumed writes its file anew from the history in its checkpoint,
so that no step appears twice. tensorboard is an optional extra.
"""

from __future__ import annotations

import os
import re
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from sweepstack.runs.logger import Ending, Row, Run, Update

FOLDER = "tensorboard"
_ODD = re.compile(r"[^\w.,=+\-…() ]+")
"""What the name of a folder does not have."""


class TensorBoard:
    """Writes one event file per run. It is opened for each write only: a stack may have a thousand
    runs, and a file is readable after a kill."""

    def __init__(self) -> None:
        self._files: dict[str, Path] = {}

    def write(self, run: Run, update: Update) -> bool:
        """Write what is new of a run.

        Raises:
            OSError: the disk is full or the folder cannot be written.
        """
        events = []
        if update.run is not None:
            self._files[run.key] = _new_file(run)
            events = list(_beginning(run))
        events += [_scalars(row) for row in [*update.rows, *update.layers]]
        if update.end is not None:
            events += _ending(update.end)
        if events:
            _append(self._files[run.key], events)
        if update.end is not None:
            del self._files[run.key]
        return True

    def close(self) -> None:
        """Nothing is open."""


def folder_of(run: Run) -> Path:
    """The folder of a run's event file."""
    place = run.place / FOLDER
    if run.study is None:
        return place / run.key.partition("/")[2]
    return place / _ODD.sub("_", run.name)


def _new_file(run: Run) -> Path:
    """An empty event file, in place of those of before."""
    folder = folder_of(run)
    former = [folder]
    if run.study is not None:
        numbers = {key.partition("/")[0] for key in (run.key, *run.continues)}
        seed = run.name.rpartition(" ")[2] if "/" in run.key else ""
        former += [
            path
            for number in numbers
            for path in folder.parent.glob(f"{number} *")
            if path.name.endswith(seed)
        ]
    for path in former:
        if path != folder:
            shutil.rmtree(path, ignore_errors=True)
    folder.mkdir(parents=True, exist_ok=True)
    for file in folder.glob("events.out.tfevents.*"):
        file.unlink()
    file = folder / f"events.out.tfevents.{int(time.time())}.{os.getpid()}"
    file.touch()
    return file


def _append(file: Path, events: Sequence[Mapping[str, Any]]) -> None:
    from tensorboard.compat.proto import event_pb2
    from tensorboard.summary.writer.record_writer import RecordWriter

    now = time.time()
    with open(file, "ab") as opened:
        records = RecordWriter(opened)
        for event in events:
            record = event_pb2.Event(**{"wall_time": now, **event})
            records.write(record.SerializeToString())


def _beginning(run: Run) -> Iterator[dict[str, Any]]:
    """A TensorBoard that has read the former file forgets it."""
    from tensorboard.compat.proto import event_pb2
    from tensorboard.plugins.hparams import metadata, plugin_data_pb2

    yield {"file_version": "brain.Event:2"}
    started = event_pb2.SessionLog(status=event_pb2.SessionLog.START)
    yield {"session_log": started, "step": 0}
    text = yaml.safe_dump(dict(run.config), sort_keys=False, allow_unicode=True)
    yield {"summary": _text("config", f"```yaml\n{text}```")}
    session = plugin_data_pb2.SessionStartInfo(group_name=run.name, start_time_secs=time.time())
    for name, value in run.params.items():
        kept = session.hparams[name]
        if isinstance(value, bool):
            kept.bool_value = value
        elif isinstance(value, int | float):
            kept.number_value = value
        else:
            kept.string_value = str(value)
    data = plugin_data_pb2.HParamsPluginData(session_start_info=session)
    yield {"summary": _of_plugin(metadata.SESSION_START_INFO_TAG, data)}


def _ending(end: Ending) -> list[dict[str, Any]]:
    from tensorboard.plugins.hparams import api_pb2, metadata, plugin_data_pb2

    failed = end.state == "failed"
    status = api_pb2.STATUS_FAILURE if failed else api_pb2.STATUS_SUCCESS
    info = plugin_data_pb2.SessionEndInfo(status=status, end_time_secs=end.at)
    data = plugin_data_pb2.HParamsPluginData(session_end_info=info)
    facts = "\n".join(f"- {key}: {text}" for key, text in {"state": end.state, **end.facts}.items())
    return [
        _scalars({"step": end.step, "at": end.at, **end.best}),
        {"summary": _text("end", facts)},
        {"summary": _of_plugin(metadata.SESSION_END_INFO_TAG, data)},
    ]


def _scalars(row: Row) -> dict[str, Any]:
    from tensorboard.compat.proto import summary_pb2

    values = [
        summary_pb2.Summary.Value(tag=name, simple_value=value)
        for name, value in row.items()
        if name not in ("step", "at")
    ]
    summary = summary_pb2.Summary(value=values)
    return {"step": int(row["step"]), "wall_time": row["at"], "summary": summary}


def _of_plugin(tag: str, data: Any) -> Any:
    """What the HParams page reads."""
    from tensorboard.compat.proto import summary_pb2
    from tensorboard.plugins.hparams import metadata

    kept = metadata.create_summary_metadata(data)
    value = summary_pb2.Summary.Value(tag=tag, metadata=kept, tensor=metadata.NULL_TENSOR)
    return summary_pb2.Summary(value=[value])


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
