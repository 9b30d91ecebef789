"""Loggers: what a run's evaluations measured, told to TensorBoard, MLflow, W&B or a CSV file while
it trains. Reads the `logger` config group.

`Logged` stands before a monitor and notes what passes. A process of its own (`log_writer.py`) does
the writing, so that training neither waits for a server nor shares its interpreter with one; what
goes wrong there is a warning and no trial's failure.
"""

from __future__ import annotations

import contextlib
import importlib.util
import logging
import math
import netrc
import os
import pickle
import re
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import IO, Any
from urllib.parse import urlsplit

from sweepstack.config import schema
from sweepstack.config.errors import EnvironmentFault
from sweepstack.training.spec import Monitor, TrialResult, TrialSpec, by_group, plain

log = logging.getLogger(__name__)

PACKAGES = {"tensorboard": "tensorboard", "mlflow": "mlflow", "wandb": "wandb"}
"""What a logger imports, by its name."""
SEND_S = 0.2
"""Seconds between two batches for the writer."""
MAX_WAITING = 100_000
"""Rows that may wait for the writer; training waits for it beyond that."""
NOTICE_S, STOPPED_S = 3.0, 10.0
"""Seconds of waiting for the writer at the end until that is said, and, once a signal asked to
stop, until it is left to finish alone."""
MAX_NAME = 100
"""Letters of a run's name."""
_ELSEWHERE = re.compile(r"(hydra|logger|sweeps)\b")
"""Keys that are no part of what is tried."""

Row = Mapping[str, float]


@dataclass(frozen=True)
class Run:
    """What a logger shows as one run: a trial of a study with one seed, or a run by itself.

    Attributes:
        key: the trial's number, and its seed where it has several.
        name: what was varied.
        study: the study's name; None for a run by itself.
        place: the folder of the study, or of the run.
        varied: the same, word by word.
        params: what was varied, by dotted key.
        fixed: what the command line set besides, the same in the whole study.
        config: the whole config.
        facts: what it is tagged with.
        continues: keys of the runs in whose place it trains, the last one first.
    """

    key: str
    name: str
    study: str | None
    place: Path
    varied: Sequence[str]
    params: Mapping[str, Any]
    fixed: Mapping[str, Any]
    config: Mapping[str, Any]
    facts: Mapping[str, str] = field(default_factory=dict)
    continues: tuple[str, ...] = ()

    @property
    def first(self) -> str:
        """The key by which it is known from its beginning, however often it is resumed."""
        return self.continues[-1] if self.continues else self.key


@dataclass
class Ending:
    """How a run ended: complete, pruned or failed, the metrics of its best state, that state's
    step, and what it is tagged with."""

    state: str
    metrics: Row
    step: int
    facts: Mapping[str, str]
    at: float

    @property
    def best(self) -> Row:
        """Those of the validation data as `best/NAME`, and those of the test data."""
        named = {n.replace("val_", "best/val_", 1): v for n, v in self.metrics.items()}
        return {n: v for n, v in named.items() if n.startswith(("best/val_", "test_"))}


@dataclass
class Update:
    """What is new about a run: that it begins (with the rows of before, if it is resumed), its
    evaluations, what its layers do, its end. Each row has the time in `at` beside its numbers."""

    key: str
    run: Run | None = None
    rows: list[Row] = field(default_factory=list)
    layers: list[Row] = field(default_factory=list)
    end: Ending | None = None

    def add(self, other: Update) -> None:
        """Take over what came later."""
        if other.run is not None:
            self.run, self.rows, self.layers = other.run, [], []
        self.rows += other.rows
        self.layers += other.layers
        self.end = other.end or self.end


def check(config: schema.RunConfig) -> None:
    """Check that the packages of a config's loggers are installed, and that W&B knows who it is.

    Raises:
        EnvironmentFault: they are not, or it does not.
    """
    for name in config.logger.names:
        package = PACKAGES.get(name, "csv")
        if package in sys.modules and sys.modules[package] is not None:
            continue
        if package in sys.modules or importlib.util.find_spec(package) is None:
            raise EnvironmentFault(
                f"logger={name} needs the package {package}: pip install 'sweepstack[{name}]'"
            )
    if config.logger.wandb and not _knows_wandb():
        raise EnvironmentFault(
            "logger=wandb needs an account: run `wandb login`, or set WANDB_MODE=offline"
        )


def _knows_wandb() -> bool:
    """Whether W&B is offline, or has a key as its own login keeps it."""
    if os.environ.get("WANDB_MODE") in ("offline", "disabled", "dryrun"):
        return True
    host = urlsplit(os.environ.get("WANDB_BASE_URL", "https://api.wandb.ai")).hostname
    try:
        return bool(os.environ.get("WANDB_API_KEY") or netrc.netrc().authenticators(str(host)))
    except (OSError, netrc.NetrcParseError):
        return False


def named(words: Sequence[str]) -> list[str]:
    """Overrides in short: `init=he`, `lr=0.01`."""
    pairs = [word.lstrip("+").partition("=")[::2] for word in words]
    lasts = [key.replace("/", ".").rpartition(".")[2] for key, _ in pairs]
    return [
        f"{last if lasts.count(last) == 1 else key}={_short(value)}"
        for (key, value), last in zip(pairs, lasts, strict=True)
    ]


def _short(text: str) -> str:
    value = value_of(text)
    return f"{value:.4g}" if isinstance(value, float) else text


@lru_cache(maxsize=4096)
def value_of(text: str) -> Any:
    """An override's value as a number or truth value where it is one."""
    if text.lower() in ("true", "false"):
        return text.lower() == "true"
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text.strip("'\"")


def _values(words: Sequence[str]) -> dict[str, Any]:
    pairs = [word.lstrip("+").partition("=")[::2] for word in words]
    return {key: value_of(value) for key, value in pairs if not _ELSEWHERE.match(key)}


def run_of(
    spec: TrialSpec,
    words: Sequence[str],
    place: Path,
    *,
    study: str | None = None,
    varied: Sequence[str] | None = None,
    seeds: int = 1,
    continues: Sequence[int] = (),
) -> Run:
    """The run that a spec is logged as.

    Args:
        spec: the trial, with one seed.
        words: the overrides that make it.
        place: the folder of the study, or of the run.
        study: its name; None for a run by itself.
        varied: those of `words` that vary in the study; None for all.
        seeds: how many the trial has.
        continues: numbers of the trials in whose place it trains, the last one first.
    """
    seed = spec.config.training.seed
    own = f"/seed_{seed}" if seeds > 1 else ""
    varied = words if varied is None else varied
    short = named([word for word in varied if not _ELSEWHERE.match(word.lstrip("+~"))])
    name = " ".join([place.name if study is None else str(spec.number), *short])
    last = f" seed={seed}" if own else ""
    if len(name) > MAX_NAME - len(last):
        name = f"{name[: MAX_NAME - len(last) - 1]}…"
    params = _values(varied)
    if own:
        params["training.seed"] = seed
    return Run(
        key=f"{spec.number}{own}",
        name=f"{name}{last}",
        study=study,
        place=place.absolute(),
        varied=short + last.split(),
        params=params,
        fixed=_values([word for word in words if word not in varied]),
        config=by_group(spec.config, "_plain", lambda _, value: plain(value)),
        facts={"config_hash": spec.config_hash},
        continues=tuple(f"{number}{own}" for number in continues),
    )


class Logged(Monitor):
    """Tells loggers what happens to trials, and passes it on to the monitor behind it.

    Args:
        behind: the monitor.
        settings: which loggers are on.
        describe: the run that a trial is logged as.
    """

    def __init__(
        self, behind: Monitor, settings: schema.Logger, describe: Callable[[TrialSpec], Run]
    ):
        self.behind, self._describe = behind, describe
        self._writer = Writer(settings) if settings.names else None
        self._runs: dict[tuple[int, int], str] = {}
        """Keys of runs that have begun, by the trial's number and seed."""

    def room(self, slots: int) -> None:
        """Pass it on."""
        self.behind.room(slots)

    def started(
        self, spec: TrialSpec, step: int, total_steps: int, history: Sequence[Mapping[str, float]]
    ) -> None:
        """Begin a run with the rows that a resumed trial had before."""
        self._begin(spec, history)
        self.behind.started(spec, step, total_steps, history)

    def _begin(self, spec: TrialSpec, history: Sequence[Mapping[str, float]]) -> None:
        if self._writer is not None:
            run, now = self._describe(spec), time.time()
            self._runs[_place(spec)] = run.key
            rows: list[Row] = [{**row, "at": now} for row in history]
            self._writer.add(Update(run.key, run, rows))

    def stepped(self, steps: int, specs: Sequence[TrialSpec]) -> None:
        """Send what waits."""
        if self._writer is not None:
            self._writer.send()
        self.behind.stepped(steps, specs)

    def report(self, spec: TrialSpec, row: Mapping[str, float]) -> None:
        """Note an evaluation."""
        if self._writer is not None:
            key = self._runs[_place(spec)]
            self._writer.add(Update(key, rows=[{**row, "at": time.time()}]))
        self.behind.report(spec, row)

    def diagnosed(self, spec: TrialSpec, rows: Sequence[Mapping[str, Any]]) -> None:
        """Note what layers do, each number as METRIC/LAYER, but for those that a layer has not."""
        if self._writer is not None:
            at: dict[float, dict[str, float]] = {}
            for row in rows:
                step, layer, *_ = row.values()
                found = {f"{k}/{layer}": v for k, v in row.items() if k not in ("step", "layer")}
                known = {name: value for name, value in found.items() if value == value}
                at.setdefault(step, {"step": step, "at": time.time()}).update(known)
            self._writer.add(Update(self._runs[_place(spec)], layers=list(at.values())))
        self.behind.diagnosed(spec, rows)

    def should_stop(self, spec: TrialSpec) -> bool:
        """Pass it on."""
        return self.behind.should_stop(spec)

    def interrupted(self) -> int | None:
        """Pass it on."""
        return self.behind.interrupted()

    def end(self, result: TrialResult, facts: Mapping[str, str] | None = None) -> None:
        """End the run of a trial; one that never started begins first."""
        if self._writer is None:
            return
        if _place(result.spec) not in self._runs:
            self._begin(result.spec, ())
        said = {"error": result.error, "stopped": result.stopped}
        tags = {key: text for key, text in said.items() if text} | dict(facts or {})
        end = Ending(result.state, result.metrics, result.best_step, tags, time.time())
        self._writer.add(Update(self._runs.pop(_place(result.spec)), end=end))

    def duplicate(
        self, describe: Callable[[], Run], state: str, metrics: Row, original: int
    ) -> None:
        """Log a trial that was not trained because it duplicates trial `original`."""
        if self._writer is not None:
            run = describe()
            end = Ending(state, metrics, 0, {"equals": str(original)}, time.time())
            self._writer.add(Update(run.key, run, end=end))

    def close(self, *, stopped: Callable[[], bool] = lambda: False) -> None:
        """Wait until all is written; once `stopped`, not for long."""
        if self._writer is not None:
            self._writer.close(stopped)
            self._writer = None


def _place(spec: TrialSpec) -> tuple[int, int]:
    return spec.number, spec.config.training.seed


class Writer:
    """This end of the process that writes.

    `add` notes an update and `send` makes what was noted ready; a thread sends it on. The process
    has a session of its own: Ctrl-C and a killed parent leave it to write what it has.
    """

    def __init__(self, settings: schema.Logger):
        self.name = ",".join(settings.names)
        self._noted: list[Update] = []
        self._queue = deque[list[Update]]()
        self._given, self._taken, self._dead = 0, 0, False
        self._more, self._closing = threading.Event(), threading.Event()
        self._process = subprocess.Popen(
            [sys.executable, "-P", "-m", "sweepstack.runs.log_writer"],  # not from the folder here
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._threads = [
            threading.Thread(target=self._send, args=(self._process.stdin, settings), daemon=True),
            threading.Thread(target=self._read, args=(self._process.stdout,), daemon=True),
        ]
        for thread in self._threads:
            thread.start()

    def add(self, update: Update) -> None:
        """Note something new."""
        self._noted.append(update)

    def send(self) -> None:
        """Let what was noted be sent; waits while far too much waits already."""
        while self._given - self._taken > MAX_WAITING and not self._dead:
            time.sleep(SEND_S)
        if self._noted and not self._dead:
            self._queue.append(self._noted)
            self._given += len(self._noted)
        self._noted = []
        self._more.set()

    def _send(self, pipe: IO[bytes], settings: schema.Logger) -> None:
        try:
            pickle.dump(settings, pipe)
            closing = False
            while not closing:
                self._more.wait()
                self._more.clear()
                closing = self._closing.is_set()  # before the last look
                updates: list[Update] = []
                while self._queue:
                    updates += self._queue.popleft()
                if updates:
                    pickle.dump(updates, pipe)
                    pipe.flush()
                    self._taken += len(updates)
                self._closing.wait(SEND_S)
        except OSError:
            self._dead = True
            self._queue.clear()
        finally:
            with contextlib.suppress(OSError):
                pipe.close()

    def _read(self, pipe: IO[bytes]) -> None:
        with pipe:
            for line in pipe:
                log.warning("%s", line.decode(errors="replace").strip())

    def close(self, stopped: Callable[[], bool]) -> None:
        """Send the rest and wait for the process to end."""
        self.send()
        self._closing.set()
        self._more.set()
        began, said, asked = time.monotonic(), False, math.inf
        while self._process.poll() is None:
            now = time.monotonic()
            asked = min(asked, now) if stopped() else asked
            if now - asked > STOPPED_S:
                log.warning("logger=%s goes on writing in the background", self.name)
                return
            if now - began > NOTICE_S and not said:
                log.warning("waiting for logger=%s to write what is left", self.name)
                said = True
            time.sleep(0.02)
        for thread in self._threads:
            thread.join(1.0)
        if self._process.returncode:
            log.warning("logger=%s is incomplete: its process died; results are safe", self.name)
