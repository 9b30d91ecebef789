"""The folder of a run: what is written to it, and how it is compared with a run to be resumed.

manifest.json   before training: command, config, versions, git commit, device, seed
metrics.json    metrics of the best state, steps, seconds; written last
history.csv     one row per evaluation
layers.csv      with training.diagnostics, what each layer does; written while it trains
best.pt         the best state's tensors and the config, with best.pt.sha256
model.pt        the tensors alone, for load_state_dict of the same module anywhere
classes.json    of classes or labels: validation samples by class and prediction in that state
checkpoints/    only while the run is unfinished
tensorboard/    with logger=tensorboard
.hydra/         what Hydra composed, and sweepstack.log
"""

from __future__ import annotations

import csv
import hashlib
import io
import json
import math
import platform
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any

from sweepstack.config import errors
from sweepstack.config.errors import EnvironmentFault, InputError, one_line
from sweepstack.runs import seeds
from sweepstack.training.spec import TrialResult, TrialSpec

MAX_CLASSES = 1000
"""More classes have no classes.json: a matrix of so many rows and columns helps nobody."""
PACKAGES = ("sweepstack", "torch", "torchvision", "hydra-core", "optuna", "numpy", "scikit-learn")


def claim(wanted: Path) -> Path:
    """Make a new folder called `wanted`, or `wanted_2` and so on when it exists, atomically.

    Raises:
        EnvironmentFault: the folder cannot be made.
    """
    try:
        wanted.parent.mkdir(parents=True, exist_ok=True)
        for number in range(1, 10_000):
            path = wanted if number == 1 else wanted.with_name(f"{wanted.name}_{number}")
            try:
                path.mkdir()
            except FileExistsError:
                continue
            return path
    except OSError as error:
        raise EnvironmentFault(f"cannot make {wanted}: {error.strerror or error}") from error
    raise EnvironmentFault(f"{wanted} and 9,999 folders after it exist already")


def make(folder: Path) -> Path:
    """Make a folder that a person named, if it is not there.

    Raises:
        EnvironmentFault: the folder cannot be made.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise EnvironmentFault(f"cannot make {folder}: {error.strerror or error}") from error
    return folder


def need_space(folder: Path, megabytes: float) -> None:
    """Check that a run's files will fit.

    Raises:
        EnvironmentFault: fewer than `megabytes` (10^6 bytes) are free where `folder` lies.
    """
    place = folder.resolve()
    while not place.exists():
        place = place.parent
    free = shutil.disk_usage(place).free / 1e6
    if free < megabytes:
        raise EnvironmentFault(
            f"no space on disk: a run needs about {megabytes:.1f} MB in {folder}, "
            f"{free:.1f} MB are free"
        )


def compare(folder: Path, spec: TrialSpec) -> dict[str, Any] | None:
    """Check that a folder is free, or holds the same run.

    Returns:
        metrics.json of the run when it is complete, else None.

    Raises:
        InputError: the folder holds a run with another config, or links out of it.
    """
    for path in folder.rglob("*"):
        if path.is_symlink():  # what is written to it would land elsewhere
            raise InputError(f"{path} is a symbolic link, which the folder of a run may not hold")
    manifest = read(folder / "manifest.json")
    if manifest is None:
        return None
    if manifest.get("config_hash") != spec.config_hash:
        found = differences(manifest.get("config", {}), _plain(spec))[:5]
        changed = "; ".join(f"{path} is {old} there, {new} here" for path, old, new in found)
        raise InputError(
            f"{folder} holds a run with another config ({changed}): resume it with the same one, "
            "or choose another hydra.run.dir"
        )
    metrics = read(folder / "metrics.json")
    return metrics if metrics and metrics.get("state") == "complete" else None


def differences(old: Any, new: Any, path: str = "") -> list[tuple[str, Any, Any]]:
    """The dotted keys in which two nested mappings differ, with both values; None where one has
    none."""
    if isinstance(old, Mapping) and isinstance(new, Mapping):
        return [
            found
            for key in sorted({*old, *new}, key=str)
            for found in differences(old.get(key), new.get(key), f"{path}.{key}".lstrip("."))
        ]
    are_lists = all(isinstance(value, list | tuple) for value in (old, new))
    return [] if (list(old) == list(new) if are_lists else old == new) else [(path, old, new)]


def _plain(spec: TrialSpec) -> Any:
    return json.loads(json.dumps(asdict(spec.config), default=str))


def read(path: Path) -> dict[str, Any] | None:
    """A JSON object from a file, None where there is no file.

    Raises:
        EnvironmentFault: the file cannot be read.
    """
    try:
        found = json.loads(path.read_text("utf-8"))
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise EnvironmentFault(f"cannot read {path}: {one_line(error)}") from error
    return found if isinstance(found, dict) else None


def begin(folder: Path, spec: TrialSpec, arguments: Sequence[str]) -> None:
    """Write the manifest of a run; a folder that cannot even hold that is removed again.

    Raises:
        EnvironmentFault: the folder cannot be written.
    """
    from sweepstack.engine.program import Program
    from sweepstack.training import device

    try:
        name = device.describe(Program.of(spec).device)
        write_manifest(folder, spec, arguments, name)
    except EnvironmentFault:
        if not any(folder.iterdir()):
            folder.rmdir()
        raise


def write_manifest(folder: Path, spec: TrialSpec, arguments: Sequence[str], device: str) -> None:
    """Write manifest.json: everything needed to repeat the run.

    A run that is resumed adds when and where to the manifest that is there.

    Raises:
        EnvironmentFault: the folder cannot be written.
    """
    started = time.strftime("%Y-%m-%dT%H:%M:%S%z")
    before = read(folder / "manifest.json")
    if before is not None:
        part = {"started": started, "device": device, **environment()}
        before["resumed"] = [*before.get("resumed", []), part]
        write_json(folder / "manifest.json", before)
        return
    write_json(
        folder / "manifest.json",
        {
            "command": shlex.join(["sweepstack", *arguments]),
            "arguments": list(arguments),
            "config_hash": spec.config_hash,
            "config": _plain(spec),
            "seed": spec.config.training.seed,
            "device": device,
            **environment(),
            "started": started,
        },
    )


def write_results(folder: Path, spec: TrialSpec, results: Sequence[TrialResult]) -> None:
    """Write a run of one or several seeds; each of several has a folder seed_N inside.

    Raises:
        EnvironmentFault: the disk is full or the folder cannot be written.
    """
    if spec.config.training.seeds == 1:
        write_result(folder, results[0])
        return
    for result in results:
        assert result.spec.folder is not None
        make(result.spec.folder)
        write_result(result.spec.folder, result)
    write_json(folder / "metrics.json", summary_of(spec, results))


def write_result(folder: Path, result: TrialResult) -> None:
    """Write history.csv, best.pt and, last, metrics.json; then drop the checkpoints.

    Raises:
        EnvironmentFault: the disk is full or the folder cannot be written.
    """
    from sweepstack.training import checkpoint  # imports torch, which --help does not need

    if result.history:
        write_history(folder, result.history)
    if result.best_state:
        write_model(folder, result)
    write_json(folder / "metrics.json", summary(result))
    if result.state == "complete":
        checkpoint.clear_trial(folder / "checkpoints")


def write_history(folder: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Write history.csv, one row per evaluation.

    Raises:
        EnvironmentFault: the disk is full or the folder cannot be written.
    """
    errors.write_bytes(folder / "history.csv", as_csv(rows).encode())


def as_csv(
    rows: Sequence[Mapping[str, Any]], columns: Sequence[str] | None = None, *, head: bool = True
) -> str:
    """Rows below their `head`, as history.csv has them: the `columns`, by default the keys of the
    first row; empty where a row has none, and what else a row has is left out."""
    text = io.StringIO()
    names = list(rows[0]) if columns is None else columns
    writer = csv.DictWriter(text, names, lineterminator="\n", extrasaction="ignore")
    if head:
        writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def write_model(folder: Path, result: TrialResult) -> None:
    """Write best.pt, which `sweepstack.load` reads, and model.pt, which
    `module.load_state_dict(torch.load(PATH))` does.

    Raises:
        EnvironmentFault: the disk is full or the folder cannot be written.
    """
    from sweepstack.training import checkpoint

    state, inputs = dict(result.best_state), dict(result.inputs)
    best = {
        "model": state,
        "config": _plain(result.spec),
        "inputs": inputs,
        "step": result.best_step,
        "metrics": result.metrics,
    }
    checkpoint.save(folder / "best.pt", best)
    checkpoint.save_state(
        folder / "model.pt", state, inputs.get("batch_norms", ()), result.best_step
    )
    _write_classes(folder, result)


def _write_classes(folder: Path, result: TrialResult) -> None:
    """Write classes.json, unless numbers are predicted: class names, and the confusion matrix or,
    of several labels, right predictions, predictions and samples of each."""
    from sweepstack.engine.program import Program
    from sweepstack.engine.step import Step

    program = Program.of(result.spec)
    if program.task.counts_hits and program.data.outputs <= MAX_CLASSES:
        found = Step(program).confusion(dict(result.best_state)).tolist()
        kind = "labels" if program.task.name == "multilabel" else "confusion"
        names = list(program.data.classes) or [str(place) for place in range(len(found[0]))]
        write_json(folder / "classes.json", {"classes": names, kind: found}, durable=False)


def summary(result: TrialResult) -> dict[str, Any]:
    """What metrics.json holds."""
    return {
        **result.metrics,
        "state": result.state,
        "objective": result.objective,
        "best_step": result.best_step,
        "steps": result.steps,
        "num_parameters": result.num_parameters,
        "seconds": round(result.seconds, 4),
        "samples_per_s": round(result.samples_per_s, 1),
        "device": result.device,
        "seed": result.spec.config.training.seed,
        "stopped": result.stopped,
        "error": result.error,
    }


def summary_of(spec: TrialSpec, results: Sequence[TrialResult]) -> dict[str, Any]:
    """What metrics.json holds of a run: of several seeds the means, with the standard deviation
    and each value of the objective."""
    if spec.config.training.seeds == 1:
        return summary(results[0])
    group = seeds.Group(spec, spec.config.training.seeds)
    for result in results:
        group.end(result)
    values = [result.value for result in results]
    return {
        **summary(results[0]),
        **group.metrics(),
        "state": group.state,
        "steps": sum(result.steps for result in results),
        "seconds": round(sum(result.seconds for result in results), 4),
        "seeds": len(results),
        "values": values,
        "std": seeds.spread(values),
        "stopped": next((result.stopped for result in results if result.stopped), None),
        "error": group.error,
    }


def write_json(path: Path, value: Mapping[str, Any], *, durable: bool = True) -> None:
    """Write a JSON object, see `as_json`.

    Raises:
        EnvironmentFault: the disk is full or the folder cannot be written.
    """
    errors.write_bytes(path, as_json(value).encode(), durable=durable)


def as_json(value: Mapping[str, Any]) -> str:
    """A JSON object for a file. JSON has no NaN or infinity: they are written as null."""
    clean = {
        key: [_finite(part) for part in item] if isinstance(item, list) else _finite(item)
        for key, item in value.items()
    }
    nested = any(isinstance(item, list | dict) for item in clean.values())
    if nested or not clean:
        text = json.dumps(clean, indent=2, ensure_ascii=False, allow_nan=False)
    else:  # the same; the encoder in C, which is many times as fast, does not indent
        by = (",\n  ", ": ")
        line = json.dumps(clean, ensure_ascii=False, allow_nan=False, separators=by)
        text = f"{{\n  {line[1:-1]}\n}}"
    return f"{text}\n"


def _finite(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value


@cache
def environment() -> dict[str, Any]:
    """What numbers may depend on besides the config: `versions` of Python and `PACKAGES`, `git`
    (commit of the working folder; dirty: tracked files were changed, or there was a .py file that
    git does not know; None outside of git), `platform`.
    """
    return {"git": _git(), "versions": _versions(), "platform": platform.platform()}


def key_of(environment: Mapping[str, Any]) -> str:
    """A short name of an environment, the same for equal ones: 8 hexadecimal digits."""
    text = json.dumps(environment, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:8]


def _versions() -> dict[str, str]:
    found = {"python": sys.version.split()[0]}
    for package in PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return found


def _git() -> dict[str, Any] | None:
    def ask(*arguments: str) -> str:
        command = ["git", *arguments]
        done = subprocess.run(command, capture_output=True, text=True, timeout=10, check=True)
        return done.stdout.strip()

    try:
        commit = ask("rev-parse", "HEAD")
        changed = ask("status", "--porcelain", "--untracked-files=no")
        # New files count where they may be code; outputs and data do not.
        new = changed or ask("ls-files", "--others", "--exclude-standard", "--", "*.py")
        return {"commit": commit, "dirty": bool(changed or new)}
    except (OSError, subprocess.SubprocessError):
        return None
