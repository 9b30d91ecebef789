"""A study as every reader sees it: one interpretation for tables, plots, reports and the doctor.

Trials.
- *good*: complete, keeps its constraints, and every objective is finite (`LARGEST`).
- *duplicate*: a complete trial that was not trained, since its effective configuration equals that
  of another, whose numbers it has (attribute `equals`). Its numbers are no new evidence.
- *configuration*: the trials that differ in seeds alone (`keys.is_seed`); its value is their mean.
- *best*: the top tenth of the configurations that were tried (pruned trials are tried too), at
  least `MIN_BEST` and at most `MAX_BEST`.

Trials that another trial replaced (`attributes.is_retried`) are left out everywhere.
Notation: `df` is `StudyView.frame` or some of its rows.
"""

from __future__ import annotations

import json
import math
import os
import re
from collections import Counter
from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import optuna
import pandas as pd
from optuna.storages import BaseStorage
from optuna.trial import FrozenTrial
from sqlalchemy import make_url
from sqlalchemy.exc import ArgumentError

from sweepstack import storage
from sweepstack.config.errors import EnvironmentFault, InputError, masked, nearest, one_line
from sweepstack.storage import artifacts
from sweepstack.storage import url as storage_url
from sweepstack.study.attributes import (
    ARTIFACTS,
    EQUALS,
    FOLDER,
    IDENTITY,
    SWEEP,
    WORKER,
    is_retried,
)
from sweepstack.study.frame import STATES, frame, history, layers, ranks
from sweepstack.study.keys import Direction, Key, Parameter, objectives, swept_keys
from sweepstack.study.read import best_rows, order, states_of, trials_of
from sweepstack.study.tables import statistics

MAX_NAMED = 8
"""Studies that are listed where a name is wrong."""
LARGEST = 1e37
"""Values from here on are infinite: a float32 has no larger ones."""
MIN_BEST, MAX_BEST = 5, 25
"""How few and how many configurations are "the best"."""
FINISHED = ("complete", "pruned", "failed")
"""States of trials that have ended."""


@dataclass(frozen=True)
class StudyView:
    """A study, opened for reading. Everything is read when it is first asked for, and once: a new
    view (`anew`) sees what has happened since.

    Attributes:
        study: Optuna's; of sweepstack or of any other program.
        where: URL or path of its storage.
        storage: the storage it was loaded from, where it is known; reading is faster with it.
    """

    study: optuna.Study
    where: str
    storage: BaseStorage | None = None

    def anew(self) -> StudyView:
        """The same study, read again."""
        return StudyView(self.study, self.where, self.storage)

    def latest(self) -> StudyView:
        """This view where no trial has begun or ended since it was read, else a new one."""
        states = states_of(self.study, self.storage)
        is_same = states == Counter(trial.state for trial in self.trials)
        return self if is_same else self.anew()

    # --- what it is ------------------------------------------------------------------------------

    @property
    def name(self) -> str:
        """The study's."""
        return str(self.study.study_name)

    @cached_property
    def user_attrs(self) -> dict[str, Any]:
        """Attributes of the study."""
        return self.study.user_attrs

    @property
    def identity(self) -> Mapping[str, Any]:
        """What the sweeper wrote of its question: space, objectives, config; empty for other
        programs."""
        found = self.user_attrs.get(IDENTITY)
        return found if isinstance(found, Mapping) else {}

    @property
    def asked(self) -> dict[str, Any]:
        """How sweepstack was asked for it: arguments, hydra (overrides of Hydra's own node),
        application, sampler, pruner, n_trials, grid; empty for other programs."""
        found = self.user_attrs.get(SWEEP)
        return found if isinstance(found, dict) else {}

    def config(self, key: str) -> Any:
        """A value that is the same in all trials, such as "training.max_steps"; None if unknown."""
        node: Any = self.identity.get("config")
        for part in key.split("."):
            node = node.get(part) if isinstance(node, Mapping) else None
        return node

    @property
    def folder(self) -> Path | None:
        """Where its trials have their folders, if that is to be found here: beside the database
        or under the working folder."""
        name = self.user_attrs.get(FOLDER)
        if not artifacts.is_name(name):
            return None
        return next((root / name for root in self.roots if (root / name).is_dir()), None)

    @cached_property
    def probed(self) -> dict[int, tuple[float, int | None]]:
        """The trials that `rerun` probed here: the share of their losses to which rounding grows,
        and the step from which on they are chaotic, if they are. The last probe counts."""
        started = {trial.number: str(trial.datetime_start) for trial in self.trials}
        found: dict[int, tuple[float, int | None]] = {}
        for path in sorted((outputs(self.where) / "reruns").glob("*/rerun.json"), key=_written):
            try:
                known = json.loads(path.read_text("utf-8"))
                trial, most, begins = (known[k] for k in ("trial", "grows_to", "chaotic_from"))
                # A study of that name may have been deleted and made anew.
                if known["study"] == self.name and known["started"] == started.get(trial):
                    found[trial] = float(most), None if begins is None else int(begins)
            except (OSError, ValueError, TypeError, LookupError, ArithmeticError, RecursionError):
                continue  # not probed, or not written by `rerun`
        return found

    @property
    def roots(self) -> list[Path]:
        """Where folders of studies are looked for, in this order."""
        return [place(self.where) / "studies", Path("outputs/studies")]

    @property
    def store(self) -> artifacts.Store | None:
        """Where its files are for all machines, if anywhere."""
        return artifacts.Store.of(self.user_attrs.get(ARTIFACTS))

    def missing(self, numbers: Container[int] | None = None, *, models: bool = False) -> set[int]:
        """Trials, all or those of `numbers`, that left files (or may have left `models`) which are
        not here."""
        folder, name = self.folder, artifacts.MODELS[-1] if models else artifacts.DONE
        return {
            trial.number
            for trial in self.trials
            if (numbers is None or trial.number in numbers)
            and trial.state.is_finished()
            and "config_hash" in trial.user_attrs  # else it never had a folder
            and not is_retried(trial)
            and not (folder is not None and os.path.isfile(f"{folder}/{trial.number}/{name}"))
        }

    def files(
        self, numbers: Container[int] | None = None, *, models: Container[int] = ()
    ) -> Path | None:
        """As `folder`, once files of trials (all, or `numbers`) and `models` that are not here have
        been taken from the artifact store. What cannot be had is told once, in a warning."""
        small, large = self.missing(numbers), self.missing(models, models=True) if models else set()
        if small or large:
            try:
                small = small - self.take(small, large)[0]
            except EnvironmentFault as error:
                line = f"{error}; sweepstack-study pull {self.name} --from PLACE names another"
            else:
                names = {str(trial.user_attrs.get(WORKER, "")) for trial in self.trials}
                hosts = {re.split("[/:]", name)[0] for name in names} - {""}
                if not small or (self.store is None and len(hosts) < 2):
                    return self.folder
                line = f"the files of {len(small)} of {len(self.trials)} trials of {self.name} are "
                line += "on other hosts"
                if self.store is None:
                    line += f"; with {artifacts.SETTING}=FOLDER or s3://... all hosts have them"
                else:
                    line += f", and not in {self.store.where} yet"
            artifacts.say_once((self.where, self.name), line)
        return self.folder

    def take(
        self, small: set[int], models: set[int], store: artifacts.Store | None = None
    ) -> tuple[set[int], set[int]]:
        """Take files from the artifact store, or from that one; see `artifacts.fetch`."""
        store, name = store or self.store, self.user_attrs.get(FOLDER)
        if store is None or not artifacts.is_name(name):
            return set(), set()
        root = next((root for root in self.roots if root.is_dir()), self.roots[-1])
        return artifacts.fetch(store, self.folder or root / name, small, models)

    # --- what it asks: objectives and keys -------------------------------------------------------

    @cached_property
    def objectives(self) -> dict[str, Direction]:
        """The direction of each objective, in the order of the study's values."""
        return objectives(self.study)

    @property
    def objective(self) -> str:
        """The first objective, by which trials are ordered; often the only one."""
        return next(iter(self.objectives))

    @property
    def direction(self) -> Direction:
        """Of the first objective."""
        return self.objectives[self.objective]

    @property
    def minimized(self) -> bool:
        """Whether less of the first objective is better."""
        return self.direction == "minimize"

    @property
    def has_one_objective(self) -> bool:
        """Whether there is no second objective."""
        return len(self.objectives) == 1

    @cached_property
    def keys(self) -> dict[str, Key]:
        """The swept keys by their columns, in declared order, seeds among them."""
        return swept_keys(self.study, self.trials)

    @cached_property
    def seeds(self) -> list[str]:
        """The columns of keys that only seed a trial."""
        return [column for column, key in self.keys.items() if key.is_seed]

    @cached_property
    def settings(self) -> list[str]:
        """The columns of the other keys: trials that agree in them are one configuration."""
        return [column for column in self.keys if column not in self.seeds]

    @cached_property
    def varied(self) -> list[str]:
        """Those `settings` of which finished trials have two values or more."""
        return self._with_several_values(self.settings)

    @cached_property
    def varied_seeds(self) -> list[str]:
        """Those `seeds` of which finished trials have two values or more."""
        return self._with_several_values(self.seeds)

    @property
    def parameters(self) -> list[Parameter]:
        """Every parameter of the `settings`: a key has several if it has cases."""
        return [p for column in self.settings for p in self.keys[column].parameters]

    def is_number(self, key: str) -> bool:
        """Whether a key's values are numbers of a range and not choices."""
        return self.keys[key].choices is None and is_numeric(self.frame[key])

    # --- trials ----------------------------------------------------------------------------------

    @cached_property
    def trials(self) -> list[FrozenTrial]:
        """All trials in the order of their numbers, replaced ones too; not to be changed."""
        return trials_of(self.study, self.storage)

    @cached_property
    def frame(self) -> pd.DataFrame:
        """One row per trial; see `frame.frame`."""
        return frame(self.study, trials=self.trials)

    @cached_property
    def outcomes(self) -> pd.Series:
        """Each trial's state, "infeasible" for a complete one that breaks a constraint."""
        states = self.frame["state"].astype(object)
        return states.where(self.feasible | (states != "complete"), "infeasible")

    @property
    def counts(self) -> dict[str, int]:
        """How many trials have each of the `outcomes`, in the order of `STATES`."""
        found = self.outcomes.value_counts()
        known = [*STATES.values(), "infeasible"]
        return {state: int(found[state]) for state in known if state in found}

    @property
    def frequent_error(self) -> str | None:
        """The most frequent error of failed trials, one line of text from the study."""
        if "error" not in self.frame:
            return None
        errors = self.frame.loc[self.frame["state"] == "failed", "error"].dropna().astype(str)
        return None if errors.empty else one_line(errors.mode().iloc[0])

    @cached_property
    def finished(self) -> pd.DataFrame:
        """The trials that have ended."""
        return self.frame[self.frame["state"].isin(FINISHED)]

    @cached_property
    def feasible(self) -> pd.Series:
        """Whether a trial keeps its constraints; True for all where there are none."""
        if "feasible" in self.frame:
            return self.frame["feasible"]
        return pd.Series(True, index=self.frame.index)

    @cached_property
    def duplicates(self) -> pd.Series:
        """Whether a trial is a duplicate."""
        if EQUALS in self.frame and EQUALS not in self.keys:
            return self.frame[EQUALS].notna()
        return pd.Series(False, index=self.frame.index)

    @cached_property
    def good(self) -> pd.DataFrame:
        """The good trials, duplicates among them."""
        values = self.frame[list(self.objectives)].abs()
        kept = (self.frame["state"] == "complete") & self.feasible
        return self.frame[kept & (values < LARGEST).all(axis=1)]

    @cached_property
    def trained(self) -> pd.DataFrame:
        """The good trials that were trained: without duplicates."""
        return self.good[~self.duplicates[self.good.index]]

    def scores(self, df: pd.DataFrame) -> pd.Series:
        """The first objective of rows where more is better: its negative where less is."""
        return -df[self.objective] if self.minimized else df[self.objective]

    def best_first(self, df: pd.DataFrame) -> pd.DataFrame:
        """Rows by the first objective, of equal ones the earlier trial first, NaN last."""
        return df.iloc[order(df[self.objective], df["number"], [self.direction])]

    def best_rows(self) -> pd.DataFrame:
        """Complete trials that keep their constraints, the best first; of several objectives the
        Pareto front."""
        return best_rows(self.frame)

    @property
    def winner(self) -> int:
        """Number of the best trial of the best configuration; there must be one."""
        members = self.configurations.iloc[0][".numbers"]
        return next(int(n) for n in self.best_rows()["number"] if n in members)

    # --- configurations --------------------------------------------------------------------------

    @cached_property
    def configurations(self) -> pd.DataFrame:
        """`configured` of the trained trials."""
        return self.configured(self.trained)

    def configured(self, df: pd.DataFrame) -> pd.DataFrame:
        """One row per configuration, the best first.

        Columns: the `settings`; .score, the mean of `scores`; .runs, how many seeds that is the
        mean of; .std, their sample standard deviation (NaN for one run); .numbers, the list of its
        trials. No key of Hydra begins with a dot.
        """
        if df.empty:
            columns = {".score": math.nan, ".runs": 0, ".std": math.nan, ".numbers": None}
            return df[self.settings].assign(**columns)
        codes = ranks(df, self.settings)[0] or [pd.Series(0, index=df.index)]
        place = df.groupby(codes).ngroup()
        found = df.loc[~place.duplicated(), self.settings].set_axis(place.unique())
        stats = statistics(df, [place], self.objective)
        found[".score"] = -stats["mean"] if self.minimized else stats["mean"]
        found[".runs"], found[".std"] = stats["n"], stats["std"]
        numbers: dict[int, list[int]] = {}  # not by pandas, which copies `attrs` for each of them
        for where, number in zip(place.tolist(), df["number"].tolist(), strict=True):
            numbers.setdefault(where, []).append(number)
        found[".numbers"] = pd.Series(numbers)
        firsts = found[".numbers"].map(min)
        return found.iloc[order(found[".score"], firsts, ["maximize"])].reset_index(drop=True)

    @cached_property
    def pruned(self) -> pd.DataFrame:
        """Pruned trials as `configurations`: worse than all that completed, so .score is -inf."""
        rows = self.frame[(self.frame["state"] == "pruned") & ~self.duplicates]
        return rows[self.settings].assign(**{".score": -math.inf, ".runs": 1, ".std": math.nan})

    @cached_property
    def best(self) -> pd.DataFrame:
        """The best configurations."""
        return self.configurations.head(best_of(len(self.configurations) + len(self.pruned)))

    @cached_property
    def best_trials(self) -> set[int]:
        """Numbers of the trials of the best configurations."""
        return {number for numbers in self.best[".numbers"] for number in numbers}

    # --- curves ----------------------------------------------------------------------------------

    @cached_property
    def history(self) -> pd.DataFrame:
        """One row per evaluation; see `frame.history`."""
        return history(self.study, self.files(), trials=self.trials)

    @cached_property
    def layers(self) -> pd.DataFrame:
        """One row per evaluation and layer, with training.diagnostics; see `frame.layers`."""
        return layers(self.files(), self.trials)

    def curve(self, metric: str) -> pd.DataFrame:
        """A metric at each evaluation: a row per trial, a column per step, means over the trial's
        seeds, NaN where there was none. Empty where the history has it not."""
        if metric not in self.history or self.history.empty:
            return pd.DataFrame()
        values = pd.to_numeric(self.history[metric], errors="coerce").astype("float64")
        grouped = values.groupby([self.history["number"], self.history["step"]]).mean()
        return grouped.unstack("step").sort_index(axis=1)

    @cached_property
    def score_curves(self) -> pd.DataFrame:
        """`curve` of the first objective where more is better."""
        curves = self.curve(self.objective)
        return -curves if self.minimized else curves

    def _with_several_values(self, columns: Sequence[str]) -> list[str]:
        return [column for column in columns if self.finished[column].nunique() > 1]


def joined(views: Sequence[StudyView]) -> pd.DataFrame:
    """The frames of several studies below each other, a column `study` first; keys that one study
    lacks are missing there. `attrs` are kept where the studies agree in their objectives.

    Raises:
        InputError: no study, or one of them twice.
    """
    names = [view.name for view in views]
    if not names or len(set(names)) < len(names):
        raise InputError(f"studies must be named once each, got {', '.join(names) or 'none'}")
    table = pd.concat([view.frame.assign(study=view.name) for view in views], ignore_index=True)
    table.insert(0, "study", table.pop("study"))
    goals = [view.objectives for view in views]
    keys = {name: key for view in views for name, key in view.frame.attrs["keys"].items()}
    same = {"objectives": goals[0]} if all(goal == goals[0] for goal in goals) else {}
    table.attrs = {"study": ", ".join(names), "keys": keys, **same}
    return table


def best_of(tried: int) -> int:
    """How many of so many configurations that were tried are the best."""
    return min(MAX_BEST, max(MIN_BEST, math.ceil(tried / 10)))


def is_numeric(values: pd.Series) -> bool:
    """Whether a column is of numbers; truth values are none."""
    return bool(
        pd.api.types.is_numeric_dtype(values.dtype) and not pd.api.types.is_bool_dtype(values.dtype)
    )


def open_study(name: str, where: str = storage.DEFAULT) -> StudyView:
    """Open a study for reading.

    Args:
        name: its name.
        where: as for `storage.look`.

    Raises:
        InputError: there is no such study; the nearest name is said.
        EnvironmentFault: the storage cannot be read.
    """
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    url, opened = storage.look(where)
    with storage.named(url):
        names = optuna.get_all_study_names(opened)
        if name not in names:
            raise InputError(_unknown(name, names, url))
        return StudyView(optuna.load_study(study_name=name, storage=opened), url, opened)


def _unknown(name: str, names: list[str], url: str) -> str:
    line = f"there is no study '{name}' in {masked(url) if '://' in url else url}"
    if not names:
        return f"{line}: it has no studies"
    closest = nearest(name, names)
    if closest:
        return f"{line}{closest}"
    more = f" and {len(names) - MAX_NAMED} more" if len(names) > MAX_NAMED else ""
    return f"{line}; it has {', '.join(names[:MAX_NAMED])}{more}"


def _written(path: Path) -> float:
    try:
        return path.stat().st_mtime
    except OSError:
        return 0.0


def outputs(where: str) -> Path:
    """The folder of reports and reruns: outputs, or that of the folder above in which the studies
    were found (`storage.above`)."""
    found = place(where).absolute()
    is_above = found.name == "outputs" and Path.cwd().is_relative_to(found.parent)
    return found if is_above and found.parent != Path.cwd() else Path("outputs")


def place(where: str) -> Path:
    """The folder of a SQLite file or a journal; outputs for a server's database."""
    if (path := storage_url.path_of(where) if "://" in where else Path(where)) is not None:
        return path.parent
    try:
        parsed = make_url(where)
    except (ArgumentError, ValueError):
        return Path("outputs")
    if parsed.get_backend_name() == "sqlite" and parsed.database:
        return Path(parsed.database).parent
    return Path("outputs")
