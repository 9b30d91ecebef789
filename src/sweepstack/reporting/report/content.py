"""What a report says of a study, as plain text and data: facts, tables, the rows of all trials.

Everything comes from a study and is untrusted text; the template escapes it.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from sweepstack.analysis.terminal import number, setting
from sweepstack.config import commands
from sweepstack.config.errors import printable
from sweepstack.runs import register
from sweepstack.study.attributes import PREFIX
from sweepstack.study.tables import METRICS, applies, pivot, published
from sweepstack.study.view import StudyView, is_numeric

CODE = ("Winner", "As YAML", "Command", "Swept")
"""Facts that are words of a command."""
MAX_LETTERS = 400
"""Of a text that is shown."""
MAX_NAMED = 5
"""Devices and environments that are listed."""
MAX_BEST = 10
"""Trials that are shown as the best, or of the Pareto front."""
FAVOURITES = ("init", "model.activation")
"""The pair of keys that is shown where it was swept among others."""
MAX_ROWS, MAX_COLUMNS = 60, 24
"""Values of a key that a pivot has room for."""
BEST_METRICS = ("test_accuracy", "val_loss", "steps", "seconds")
LEFT_OUT = ("config_hash", "feasible", "retried")
FIRST = (
    *("std", "test_accuracy", "val_accuracy", "train_accuracy", "val_loss", "train_loss"),
    *("seconds", "error"),
)
"""Attributes of all trials that are shown at once, in this order; others on request."""


@dataclass(frozen=True)
class Cell:
    """One cell of a table.

    Attributes:
        text: what it shows.
        kind: its class: "number", "best", "none" or "".
        deviation, n: of a mean: its standard deviation, and of how many runs.
        shade: from 0 (worst) to 1 (best), where it is coloured.
        is_strong: whether it is an objective.
    """

    text: str
    kind: str = ""
    deviation: str = ""
    n: int | None = None
    shade: float | None = None
    is_strong: bool = False


@dataclass(frozen=True)
class Table:
    """A table under a heading; the first cell of a row names it.

    Attributes:
        key, title: of its section.
        caption: what the numbers are.
        kind: "pivot" or "best-of".
        head, rows: its cells.
        command: how the best trial is run again, empty for other programs'.
    """

    key: str
    title: str
    caption: str
    kind: str
    head: list[Cell]
    rows: list[list[Cell]]
    command: str = ""


def clean(value: object) -> str:
    """One line of printable text, cut after `MAX_LETTERS` letters."""
    line = printable(" ".join(str(value).split()))
    return line if len(line) <= MAX_LETTERS else f"{line[:MAX_LETTERS]}…"


def label(value: Any) -> str:
    """The value of a key in one line, "–" where there is none."""
    return clean(setting(value, 4, "–"))


def counts(view: StudyView) -> str:
    """For example "3 complete, 2 failed"."""
    return ", ".join(f"{count:,} {state}" for state, count in view.counts.items())


def lead(view: StudyView) -> str:
    """One line: the objective and its direction, trials by state, when."""
    what = ", ".join(f"{clean(name)} ({goal})" for name, goal in view.objectives.items())
    many = len(view.frame)
    trials = f"{many:,} trial{'' if many == 1 else 's'}: {counts(view)}" if many else ""
    begin, end = _bounds(view.frame)
    first, last = (f"{at:%Y-%m-%d %H:%M}" if at is not None else "" for at in (begin, end))
    if last and first != last:
        first += f" to {last[11:] if first[:10] == last[:10] else last}"
    return " · ".join(filter(None, [what, trials or "no trials yet", first]))


def trouble(view: StudyView) -> str:
    """A sentence where no trial has completed, else empty."""
    if view.frame.empty:
        return "This study has no trials yet."
    if "complete" in view.counts:
        return ""
    line = f"No trial has completed: {counts(view)}."
    error = view.frequent_error
    return line if error is None else f"{line} Failed most often with: {clean(error)}"


def _tested(view: StudyView) -> list[str]:
    """The test metrics of the objectives."""
    return [f"test_{name[4:]}" for name in view.objectives if name.startswith("val_")]


def tiles(view: StudyView) -> list[tuple[str, str]]:
    """The numbers people look for first, each with what it is."""
    df, found = view.frame, []
    if view.has_one_objective and len(rows := view.best_rows().head(1)):
        says, text = f"best {clean(view.objective)}, trial {rows['number'].iloc[0]}", ""
        if len(view.configurations) and (best := view.configurations.iloc[0])[".runs"] > 1:
            rows = df[df["number"].isin(best[".numbers"])]
            mean = -best[".score"] if view.minimized else best[".score"]
            says, text = (
                f"{clean(view.objective)} of the winner, n={best['.runs']}",
                _estimate(mean, best[".std"]),
            )
        found.append((text or _estimate(rows[view.objective].mean()), says))
        for name in [*_tested(view), "test_accuracy"]:
            if name in rows and is_numeric(rows[name]) and rows[name].notna().all():
                found.append((_estimate(rows[name].mean(), rows[name].std()), f"its {clean(name)}"))
                break
    if len(df):
        of = f"finished of {len(df):,} trial{'s' * (len(df) > 1)}"
        found.append((f"{len(view.finished):,}", of))
    for column, says in (("gpu_seconds", "of GPUs"), ("seconds", "of training")):
        total = pd.to_numeric(df[column], errors="coerce").sum() if column in df else 0
        if 0 < total < math.inf:
            found.append((_span(total), f"{says}, all trials"))
            break
    begin, end = _bounds(df)
    if begin is not None and end is not None and end > begin:
        found.append((_span((end - begin).total_seconds()), "from first start to last end"))
    return found


def facts(view: StudyView) -> list[tuple[str, list[str]]]:
    """Further facts: a name and its lines, those of `CODE` as code."""
    df = view.frame
    command = command_of(view.asked)
    found = [
        *_winner(view),
        ("Command", [printable(command.replace("\n", " "))] if command else []),
    ]
    found += [(name, [text]) for name, text in chosen(view)]
    found.append(("Swept", [clean(key) for key in view.keys if df[key].nunique() > 1]))
    if "device" in df:
        devices = df["device"].dropna().astype(str).unique().tolist()
        found.append(("Device", ["; ".join(map(clean, devices[:MAX_NAMED]))] if devices else []))
    found.append(("Workers", _workers(view)))
    environments = [
        _environment(value)
        for key, value in view.user_attrs.items()
        if key.startswith(f"{PREFIX}environment.")
    ]
    known = list(dict.fromkeys(filter(None, environments)))
    found.append(("Versions", known[:MAX_NAMED]))
    return [(name, lines) for name, lines in found if lines]


def _winner(view: StudyView) -> list[tuple[str, list[str]]]:
    """What the best configuration is made of, and the command that writes it as a config."""
    if not view.has_one_objective or view.configurations.empty or view.best_rows().empty:
        return []
    best = view.configurations.iloc[0]
    made_of = [
        clean(f"{key}={setting(best[key])}") for key in view.varied if best[key] == best[key]
    ]
    command = commands.study("best", view.name, "-o", "winner", where=view.where)
    return [("Winner", made_of), ("As YAML", [printable(command)] if view.identity else [])]


def chosen(view: StudyView) -> list[tuple[str, str]]:
    """The sampler and the pruner with what was set of them, as far as they are known."""
    found = []
    for name in ("sampler", "pruner"):
        entry = view.asked.get(name)
        if name == "sampler" and view.asked.get("grid") is True:
            found.append((name.capitalize(), "every point of the grid once"))
        elif isinstance(entry, Mapping) and entry.get("name"):
            given = (f"{clean(k)} {label(v)}" for k, v in entry.items() if v is not None)
            found.append((name.capitalize(), ", ".join(given).removeprefix("name ")))
    return found


def _workers(view: StudyView) -> list[str]:
    """Who worked on the study, where, when and how fast."""
    members = register.workers(view.study)
    lines = []
    for entry in members[:MAX_NAMED]:
        began, seen = (time.strftime("%H:%M", time.localtime(t)) for t in (entry.began, entry.seen))
        day = time.strftime("%Y-%m-%d", time.localtime(entry.began))
        gpu = f", {clean(entry.gpu)}" if entry.gpu else ""
        lines.append(
            f"{clean(entry.job or entry.pid)} on {clean(entry.host)}{gpu}: {entry.trials:,} "
            f"trial{'s' * (entry.trials != 1)}, {day} {began} to {seen}, "
            f"{entry.per_minute:.1f} per minute"
        )
    more = [f"and {len(members) - MAX_NAMED:,} more"] if len(members) > MAX_NAMED else []
    return [*lines, *more]


def command_of(asked: Mapping[str, Any]) -> str:
    """The command that started a sweep, for a shell; empty where it is unknown."""
    arguments, application = asked.get("arguments"), asked.get("application")
    if not isinstance(arguments, list) or not isinstance(application, Mapping):
        return ""
    name = str(application.get("name") or "sweepstack")
    program = [name] if name == "sweepstack" else ["python", f"{name}.py"]
    hydra = asked.get("hydra")
    return commands.shell(*program, "-m", *arguments, *(hydra if isinstance(hydra, list) else []))


def _environment(found: Any) -> str:
    """Versions, commit and platform of one environment."""
    if not isinstance(found, Mapping):
        return ""
    versions, git = found.get("versions"), found.get("git")
    parts = []
    if isinstance(versions, Mapping):
        parts += [f"{clean(name)} {clean(version)}" for name, version in versions.items()]
    if isinstance(git, Mapping) and git.get("commit"):
        changed = " with changes" if git.get("dirty") is True else ""
        parts.append(f"commit {clean(str(git['commit'])[:12])}{changed}")
    if found.get("platform"):
        parts.append(clean(found["platform"]))
    return ", ".join(parts)


def _bounds(df: pd.DataFrame) -> tuple[pd.Timestamp | None, pd.Timestamp | None]:
    """When the first trial began and the last one ended."""
    starts = df["started"].dropna()
    ends = (df["started"] + pd.to_timedelta(df["duration_s"], unit="s")).dropna()
    return None if starts.empty else starts.min(), None if ends.empty else ends.max()


def _span(seconds: float) -> str:
    """Seconds for people: "0.9 s", "3 min 12 s", "5 h 7 min", "2 d 3 h"."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    units = ((86400, "d"), (3600, "h"), (60, "min"), (1, "s"))
    place = next(index for index, (size, _) in enumerate(units) if seconds >= size)
    (size, big), (small, little) = units[place : place + 2]
    return f"{int(seconds // size)} {big} {int(seconds % size // small)} {little}"


def pivot_table(view: StudyView) -> Table | None:
    """Means by one or two keys, in a study of one objective whose keys have finitely many values:
    all keys, else the favourites, else those whose means differ most."""
    df, keys = _judged(view), view.varied
    if not view.has_one_objective or not keys or "complete" not in view.counts:
        return None
    if not all(view.keys[key].is_finite for key in keys):
        return None
    shown = keys
    if len(keys) > 2:
        ranges = {key: np.ptp(_finite(pivot(df, key)["mean"]) or [0.0]) for key in keys}
        shown = sorted(keys, key=lambda key: -ranges[key])[:2]
        shown = list(FAVOURITES) if set(FAVOURITES) <= set(keys) else shown
    # The longer side goes down, as in the terminal.
    shown = sorted(shown, key=lambda key: -df[key].nunique())
    sizes = [df[key].nunique() for key in shown]
    if sizes[0] > MAX_ROWS or sizes[-1] > MAX_COLUMNS:
        return None
    average = "over all other keys" if len(keys) > len(shown) else "of each"
    means = pivot(df, *shown)
    has_std = bool(means["std"].notna().to_numpy().any())
    caption = f"{clean(view.objective)} ({view.direction}), mean{' ± std' * has_std} {average}"
    caption += ", n runs; – none complete" if (means["n"] == 0).to_numpy().any() else ", n runs"
    names = [clean(key) for key in shown]
    if len(shown) == 2:
        head = [f"{names[0]}\u00a0↓ {names[1]}\u00a0→", *map(label, means["mean"].columns)]
    else:
        head = [names[0], clean(view.objective)]
    mean, std, n = (means[name].to_numpy().reshape(len(means), -1) for name in ("mean", "std", "n"))
    cells = _means(mean, std, n, view.minimized)
    rows = [[Cell(label(name)), *line] for name, line in zip(means.index, cells, strict=True)]
    title = f"Means by {' and '.join(names)}"
    return Table("pivot", title, caption, "pivot", [Cell(name) for name in head], rows)


def _means(mean: Any, std: Any, n: Any, minimized: bool) -> Iterable[list[Cell]]:
    """The cells of each row of a pivot."""
    known = _finite(mean)
    low, high = (min(known), max(known)) if known else (0.0, 0.0)
    best = (low if minimized else high) if known else math.nan
    for line in zip(mean.astype(float), std.astype(float), n, strict=True):
        cells = []
        for value, deviation, count in zip(*line, strict=True):
            share = 0.0
            if math.isfinite(value):
                share = (value - low) / (high - low) if high > low else 0.0
                share = 1 - share if minimized else share
            more = "" if math.isnan(deviation) else number(deviation, value)
            kind = "best" if value == best else ""
            cell = Cell(number(value), kind, more, int(count), share)
            cells.append(cell if count else Cell("–", "none"))
        yield cells


def best_table(view: StudyView) -> Table | None:
    """The best trials, or those of the Pareto front."""
    rows = view.best_rows()
    shown = rows.head(MAX_BEST)
    if shown.empty:
        return None
    if view.has_one_objective:
        key, title = "best", "Best trials" if len(shown) > 1 else "Best trial"
        many = view.counts["complete"]
        caption = f"The {len(shown)} best of {many:,} complete trials"
        if many == len(shown):
            caption = (
                f"All {many} complete trials, best first" if many > 1 else "One complete trial"
            )
    else:
        key, title = "front", "Trials of the Pareto front"
        caption = f"{len(shown)} of {len(rows):,} trials that no other beats in every objective"
    names = [*view.objectives, *view.varied, *view.seeds]
    metrics = ("std", *_tested(view), *BEST_METRICS)
    names = list(dict.fromkeys([*names, *(name for name in metrics if name in view.frame)]))
    names = [name for name in names if shown[name].notna().any()]
    constant = [
        name
        for name in (*view.varied, *view.seeds, "steps")
        if name in names and len(shown) > 1 and shown[name].nunique(dropna=False) == 1
    ]
    names = [name for name in names if name not in constant]
    pairs = ", ".join(f"{clean(key)} {label(shown[key].iloc[0])}" for key in constant)
    caption += f"; the same in all: {pairs}" if pairs else ""
    head = [Cell(clean(name), "number" if is_numeric(shown[name]) else "") for name in names]
    body = [
        [Cell(str(row["number"])), *(_value(view, name, row[name]) for name in names)]
        for row in shown.to_dict("records")
    ]
    chaotic = [n for n in shown["number"] if n in view.probed and view.probed[n][1] is not None]
    caption += f"; chaotic: trial {', '.join(map(str, chaotic))}" if chaotic else ""
    trial = shown["number"].iloc[0]
    command = commands.study("rerun", view.name, trial, where=view.where) if view.identity else ""
    return Table(key, title, caption, "best-of", [Cell("trial"), *head], body, printable(command))


def class_tables(view: StudyView) -> list[Table]:
    """Precision, recall and F1 of each class in the best trial, and who is taken for whom, on
    validation samples; nothing where its folder, a stranger's perhaps, does not say."""
    best = view.best_rows()["number"].head(1).tolist() if view.has_one_objective else []
    found = _classes_of(view, best[0]) if best else None
    if found is None:
        return []
    names, counts, confusion = found
    right, said, true = counts
    parts = (right / np.maximum(said, 1), right / np.maximum(true, 1))
    columns = [*parts, 2 * right / np.maximum(said + true, 1)]
    head = [Cell(text, "number") for text in ("precision", "recall", "F1", "samples", "predicted")]
    rows = [
        [Cell(name), *(Cell(number(float(column[place])), "number") for column in columns)]
        + [Cell(f"{int(count[place]):,}", "number") for count in (true, said)]
        for place, name in enumerate(names)
    ]
    caption = f"Validation samples, best state of trial {best[0]}"
    title = "Classes of the best trial"
    tables = [Table("classes", title, caption, "best-of", [Cell("class"), *head], rows)]
    if confusion is not None and len(names) <= MAX_COLUMNS:
        shares = confusion / np.maximum(confusion.sum(1, keepdims=True), 1)
        body = [
            [Cell(name), *(Cell(f"{int(n):,}", shade=float(s)) for n, s in zip(*row, strict=True))]
            for name, *row in zip(names, confusion, shares, strict=True)
        ]
        head = [Cell("class\u00a0↓ predicted\u00a0→"), *map(Cell, names)]
        title = "Confusion matrix of the best trial"
        tables.append(Table("confusion", title, caption, "pivot", head, body))
    return tables


def _classes_of(view: StudyView, trial: int) -> tuple[list[str], Any, Any] | None:
    """Names, counts (3, K) and the confusion matrix (K, K) or None, of a trial's classes.json."""
    try:
        folder = view.files({trial})
        assert folder is not None
        text = (folder / str(trial) / "classes.json").read_text("utf-8")
        given = json.loads(text)
        names = [clean(name) for name in given["classes"]]
        matrix = np.array(given.get("confusion", given.get("labels")), dtype=np.float64)
        is_square = "confusion" in given
    except (AssertionError, OSError, ValueError, TypeError, KeyError, AttributeError):
        return None
    rows = len(names) if is_square else 3
    known = matrix.shape == (rows, len(names)) and bool((matrix >= 0).all())
    if not known or not 0 < len(names) <= MAX_ROWS:
        return None
    if not is_square:
        return names, matrix, None
    return names, np.stack([np.diag(matrix), matrix.sum(0), matrix.sum(1)]), matrix


def _value(view: StudyView, name: str, value: Any) -> Cell:
    is_metric = name in view.objectives or name == "std"
    is_metric = is_metric or name.startswith(("train_", "val_", "test_"))
    is_known = is_metric and isinstance(value, float) and not math.isnan(value)
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return Cell(
        number(value) if is_known else label(value),
        "number" if is_number else "",
        is_strong=is_known and name in view.objectives,
    )


def _estimate(mean: float, std: float = math.nan) -> str:
    """For example "0.9778 ± 0.0039"."""
    return number(mean) if math.isnan(std) else f"{number(mean)} ± {number(std, mean)}"


def _finite(values: Any) -> list[float]:
    return [x for x in np.asarray(values, dtype=float).ravel().tolist() if math.isfinite(x)]


def _judged(view: StudyView) -> pd.DataFrame:
    """The frame with "infeasible" as the state of trials that break a constraint."""
    return view.frame.assign(state=view.outcomes)


def trials(view: StudyView) -> tuple[list[dict[str, Any]], list[tuple[str, str]]]:
    """The table of all trials as data that report.js draws a page of at a time, and as pairs of
    text what is the same in every trial and therefore not in it.

    A column is {"t": title, "v": values}; "x": 1 hides it at first. Of text, "l" holds the
    different texts and "v" an index into them, -1 where there is none; of numbers, "v" holds them
    with six digits, null where there is none, "Infinity" as text.
    """
    columns, same = [], []
    for title, (values, is_extra) in _arranged(view).items():
        if values.isna().all():
            continue
        column = _column(title, values)
        first, *rest = column["v"]
        is_constant = first not in (None, -1) and all(value == first for value in rest)
        if rest and title not in ("number", "state") and is_constant:
            same.append((clean(title), label(column["l"][0] if "l" in column else values.iloc[0])))
        else:
            columns.append({**column, "x": 1} if is_extra else column)
    return columns, same


def _arranged(view: StudyView) -> dict[str, tuple[pd.Series, bool]]:
    """The columns in their order, each with whether it is hidden at first."""
    df = _judged(view)
    shown = {"number": (df["number"], False)}
    used = {"number", *LEFT_OUT}
    if applies(df):
        known = published(df)
        shown |= {name: (known[name], False) for name in known}
        used |= {"model.hidden", *METRICS}
        for key in ("model.activation", "batch.size", *view.keys):
            if key == "optimizer" or key.rpartition(".")[2] in (*known, "size"):
                used.add(key)
    first = ["state", *view.objectives, *view.keys, *_tested(view), *FIRST]
    for name in (*first, *df):
        if name in df and name not in used:
            shown[str(name)] = (df[name], name not in first)
            used.add(name)
    return shown


def _column(title: str, values: pd.Series) -> dict[str, Any]:
    if is_numeric(values):
        return {"t": clean(title), "v": [_number(value) for value in values.tolist()]}
    if pd.api.types.is_datetime64_any_dtype(values):
        values = values.dt.strftime("%Y-%m-%d %H:%M:%S")
    texts = [_text(value) for value in values.tolist()]
    labels: Sequence[str] = [text for text in dict.fromkeys(texts) if text is not None]
    index = {text: place for place, text in enumerate(labels)}
    places = [-1 if text is None else index[text] for text in texts]
    return {"t": clean(title), "l": labels, "v": places}


def _number(value: float) -> float | int | str | None:
    if value is None or math.isnan(value):
        return None
    if math.isinf(value):
        return "Infinity" if value > 0 else "-Infinity"
    if isinstance(value, int) or value.is_integer():
        return int(value) if abs(value) < 2**53 else float(value)
    return float(f"{value:.6g}")


def _text(value: Any) -> str | None:
    if value is None or (isinstance(value, float) and math.isnan(value)) or value is pd.NaT:
        return None
    if isinstance(value, float):
        return f"{value:.6g}"
    if isinstance(value, list):
        return ", ".join(str(_text(entry)) for entry in value)
    return clean(str(value).lower() if isinstance(value, bool) else value)
