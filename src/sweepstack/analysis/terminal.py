"""What a sweep prints at its end: a pivot or the best configurations; then what the doctor says in
short, the winner, and the next commands."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, TypeAlias

import numpy as np
import pandas as pd
from rich.cells import cell_len
from rich.console import Console
from rich.table import Table
from rich.text import Text

from sweepstack.config import commands
from sweepstack.config.errors import one_line, printable
from sweepstack.study.frame import ranks
from sweepstack.study.read import best_rows, order
from sweepstack.study.tables import METRICS, compared, statistics, tried_ones
from sweepstack.study.view import StudyView

BEST = 10
"""How many configurations, or points of a Pareto front, are printed."""
MAX_SIDE = 12
"""The longest side of a printed pivot."""
MAX_ROWS = 30
"""The most values of a single key that are printed one per row."""
GAP = 2
"""Characters between two printed columns."""
MAX_FINDINGS = 3
"""Lines of the doctor at the end of a sweep."""

_Column: TypeAlias = tuple[str, list[Text]]


def show(view: StudyView, console: Console | None = None) -> None:
    """Print what a sweep found: means over seeds, the best bold and with a star.

    One or two keys of finitely many values: a row per value of the one with more of them and a
    column per value of the other. More, or continuous ones: the `BEST` best configurations.
    Several objectives: the Pareto front. Nothing is cut off: columns that do not fit the width
    continue below.

    Args:
        view: of a study of sweepstack or of any other program, in any state.
        console: where to; stdout by default.
    """
    console = console or Console()
    # What breaks a constraint is not what was looked for.
    df = view.frame.assign(state=view.outcomes)
    df.attrs = view.frame.attrs
    complete = df["state"] == "complete"
    if not complete.any():
        line(console, f"{view.name}: no trial has completed: {_counts(view)}")
        return
    title = ", ".join(f"{name} ({direction})" for name, direction in view.objectives.items())
    title = f"{view.name}: {title}"
    keys = list(view.varied)
    if not view.has_one_objective:
        varied = {*view.varied, *view.varied_seeds}
        _show_front(console, df, [key for key in view.keys if key in varied], title)
    else:
        if len(keys) == 2 and all(view.keys[key].is_finite for key in keys):
            # The longer side goes down: terminals are narrow.
            keys.sort(key=lambda key: -view.finished[key].nunique())
        _show_means(console, df, keys, title)
    if not complete.all():
        line(console, _counts(view))
    _show_published(console, compared(df))


def show_ending(
    view: StudyView, console: Console, again: str, config: str, report: bool = False
) -> list[str]:
    """Print what the doctor says in at most `MAX_FINDINGS` lines, and the winner with what it is
    made of; return the commands to go on with. Without a complete trial there is nothing of this,
    and no command where nothing of the study is kept.

    Args:
        view: of a sweep that has ended; `where` is empty where nothing of it is kept.
        console: where to.
        again: the command that trains the winner again; "" for `sweepstack-study rerun`.
        config: where the winner's config is, or the command that writes it; "" where nothing is.
        report: whether the report is written anyway.
    """
    from sweepstack.analysis import doctor

    rows = view.best_rows()
    if rows.empty:
        return []
    findings = doctor.examine(view)
    told = findings if len(findings) <= MAX_FINDINGS else findings[: MAX_FINDINGS - 1]
    for finding in told:
        _wrapped(console, f"{finding.level}: {finding.text}")
    if len(told) < len(findings):
        where = f": {commands.study('show', view.name, where=view.where)}" if view.where else ""
        line(console, f"{len(findings) - len(told)} more findings{where}")
    row, trial = rows.iloc[0], int(rows["number"].iloc[0])
    values = ", ".join(f"{name} {number(row[name])}" for name in view.objectives)
    kind, estimate = "first of the Pareto front", values
    if view.has_one_objective:
        best = view.configurations.iloc[0]
        mean = -best[".score"] if view.minimized else best[".score"]
        stats = pd.Series({"mean": mean, "std": best[".std"]})
        kind, estimate = "winner", f"{view.objective} {_estimate(stats)}, n={best['.runs']}"
        trial = view.winner
        row = rows[rows["number"] == trial].iloc[0]
    line(console, f"{kind}: trial {trial}, {estimate}")
    made_of = [
        f"{key}={one_line(setting(row[key]))}" for key in view.varied if row[key] == row[key]
    ]
    for words in packed(made_of, console.width - GAP):
        line(console, f"{' ' * GAP}{words}")
    if config:
        line(console, f"{' ' * GAP}as YAML: {config}")
    if not view.where:
        return []
    return [
        *([] if report else [commands.study("report", view.name, where=view.where)]),
        commands.study("dashboard", where=view.where),
        again or commands.study("rerun", view.name, trial, where=view.where),
    ]


def packed(words: Sequence[str], width: int) -> list[str]:
    """Words in lines of at most `width` characters, none of them broken."""
    lines: list[str] = []
    for word in words:
        if lines and cell_len(lines[-1]) + GAP + cell_len(word) <= width:
            lines[-1] += f"{' ' * GAP}{word}"
        else:
            lines.append(word)
    return lines


def _show_published(console: Console, table: pd.DataFrame) -> None:
    """Print the course's rows beside the study's, where it has any."""
    if table.empty:
        return
    line(console, "")
    line(console, "published: ours ± std of n seeds; in std: difference / pooled std of a seed")
    first = [("name", [Text(name) for name in table["name"]])]
    first.append(("n", [Text(str(n)) for n in table["n"]]))
    rest: list[_Column] = []
    for metric in METRICS:
        ours = table[[metric, f"{metric}_std"]].set_axis(["mean", "std"], axis=1)
        rest.append((metric, [Text(_estimate(row)) for _, row in ours.iterrows()]))
        rest.append(("theirs", [Text(number(x)) for x in table[f"{metric}_published"]]))
        rest.append(("in std", [Text(f"{x:+.1f}") for x in table[f"{metric}_in_std"]]))
    _show_columns(console, first, rest)


def _show_means(console: Console, df: pd.DataFrame, keys: list[str], title: str) -> None:
    """Print the means of a study with one objective, over all keys but `keys`."""
    [(value, direction)] = df.attrs["objectives"].items()
    tried = tried_ones(df, keys)
    codes, labels = ranks(tried, keys)
    codes = codes or [pd.Series(0, index=tried.index)]
    stats = statistics(tried, codes, value)
    numbers = tried["number"].where(tried["state"] == "complete").groupby(codes)
    stats["trial"], stats["trials"] = numbers.first(), numbers.count()
    done = stats[stats["n"] > 0]
    done = done.iloc[order(done["mean"], done["trial"], [direction])]
    limit = {1: MAX_ROWS, 2: MAX_SIDE}.get(len(keys), 0)
    finite = all(df.attrs["keys"][key]["finite"] for key in keys)
    is_grid = finite and all(len(side) <= limit for side in labels)
    shown = done if is_grid else done.head(BEST)
    with_n = shown["n"].nunique() > 1
    title += ", mean ± std" if shown["std"].notna().any() else ""
    title += "" if with_n else f", n={shown['n'].iloc[0]}"
    if not keys:
        line(console, f"{title}: {_estimate(shown.iloc[0])}")
    elif is_grid:
        stats["states"] = tried["state"].groupby(codes).agg(lambda s: ", ".join(sorted(set(s))))
        stats["best"] = stats["mean"] == shown["mean"].iloc[0]
        cells = {_tuple(code): _cell(row, with_n) for code, row in stats.iterrows()}
        line(console, title)
        if len(keys) > 1:
            line(console, f"down: {keys[0]}, across: {keys[1]}")
        _show_grid(console, keys[0], labels, cells, value)
    else:
        line(console, f"{title}; the best {len(shown)} of {len(done)}")
        first = [(value, [Text(_estimate(row)) for _, row in shown.iterrows()])]
        if with_n:
            first.append(("n", [Text(str(n)) for n in shown["n"]]))
        if shown["trials"].max() == 1:
            first.insert(0, ("trial", [Text(f"{trial:.0f}") for trial in shown["trial"]]))
        points = [_tuple(code) for code in shown.index]
        rest = [
            (key, [_label(labels[level][point[level]]) for point in points])
            for level, key in enumerate(keys)
        ]
        _show_list(console, first, rest)


def _tuple(code: Any) -> tuple[int, ...]:
    return code if isinstance(code, tuple) else (code,)


def _cell(row: pd.Series, with_n: bool) -> Text:
    """One cell of a grid: an estimate, or how its trials ended where none is complete."""
    if not row["n"]:
        return Text(row["states"], style="dim")
    text = _estimate(row) + (f" (n={row['n']})" if with_n else "")
    return Text(f"{text}*", style="bold") if row["best"] else Text(text)


def _show_grid(
    console: Console,
    key: str,
    labels: list[list[Any]],
    cells: dict[tuple[int, ...], Text],
    value: str,
) -> None:
    rows = range(len(labels[0]))
    first = [(key, [_label(label) for label in labels[0]])]
    if len(labels) == 1:
        rest = [(value, [cells[(row,)] for row in rows])]
    else:
        rest = [
            (_label(label).plain, [cells.get((row, column), Text()) for row in rows])
            for column, label in enumerate(labels[1])
        ]
    _show_columns(console, first, rest)


def _show_front(console: Console, df: pd.DataFrame, keys: list[str], title: str) -> None:
    """Print the Pareto front."""
    goals, points = df.attrs["objectives"], best_rows(df)
    shown = points.head(BEST)
    line(console, f"{title}; {len(shown)} of {len(points)} on the Pareto front")
    first = [("trial", [Text(str(trial)) for trial in shown["number"]])]
    first += [(name, [Text(number(x)) for x in shown[name]]) for name in goals]
    _show_list(console, first, [(key, [_label(x) for x in shown[key]]) for key in keys])


def _show_list(console: Console, first: list[_Column], rest: list[_Column]) -> None:
    """Print a row per configuration; keys that have one value in all go into a line below."""
    same: list[_Column] = []
    if len(first[0][1]) > 1:
        same = [column for column in rest if len({text.plain for text in column[1]}) == 1]
        rest = [column for column in rest if column not in same]
    if _width([*first, *rest]) > console.width:
        rest = [(key.replace(".", ".\n"), texts) for key, texts in rest]
    _show_columns(console, first, rest)
    if same:
        pairs = (f"{key}={texts[0].plain}" for key, texts in same if texts[0].plain != "-")
        line(console, f"the same in all: {', '.join(pairs)}")


def _show_columns(console: Console, first: list[_Column], rest: list[_Column]) -> None:
    """Print a table; where `rest` is too wide, one table below the other, each with `first`."""
    count = len(rest)
    while count > 1 and _width([*first, *rest[:count]]) > console.width:
        count -= 1
    columns = [*first, *rest[:count]]
    table = Table(box=None, pad_edge=False, padding=(0, GAP, 0, 0))
    for header, _ in columns:
        table.add_column(Text(header), vertical="bottom", overflow="fold")
    for row in zip(*(texts for _, texts in columns), strict=True):
        table.add_row(*row)
    console.print(table)
    if rest[count:]:
        console.print()
        _show_columns(console, first, rest[count:])


def _width(columns: list[_Column]) -> int:
    """Characters of the widest line of a table of `columns`."""
    lines = ([*header.split("\n"), *(text.plain for text in texts)] for header, texts in columns)
    return sum(max(map(cell_len, column)) for column in lines) + GAP * (len(columns) - 1)


def _estimate(row: pd.Series) -> str:
    """For example "0.9286 ± 0.0041"; "0.9286" where n is 1."""
    mean, std = row["mean"], row["std"]
    return number(mean) if math.isnan(std) else f"{number(mean)} ± {number(std, mean)}"


def number(value: float, like: float | None = None) -> str:
    """A metric for people: four digits, of a share up to 1 four decimals or more; as many decimals
    as `like` has, where it is given."""
    size = abs(value if like is None else like)
    if not 1e-3 <= size < 1e5:
        return "0.0000" if value == size == 0 else f"{value:.4g}"
    decimals = 4 if 0.1 <= size <= 1 else max(3 - math.floor(math.log10(size)), 0)
    return f"{value:.{decimals}f}"


def setting(value: Any, digits: int = 6, missing: str = "-") -> str:
    """The value of a key for people: truth values as in overrides, numbers of at most `digits`
    digits, whole ones without a point; other values as text, which is not cleaned."""
    if isinstance(value, bool | np.bool_):
        return str(bool(value)).lower()
    if value is None or value != value:
        return missing
    if not isinstance(value, int | float | np.number):
        return str(value)
    size = float(value)
    return str(int(size)) if size.is_integer() and abs(size) < 1e7 else f"{size:.{digits}g}"


def _label(value: Any) -> Text:
    return Text(printable(setting(value)))


def _counts(view: StudyView) -> str:
    """For example "3 complete, 2 failed, failed most often with: loss is nan"."""
    if view.frame.empty:
        return "there are no trials"
    parts = [f"{n} {state}" for state, n in view.counts.items()]
    if view.frequent_error is not None:
        parts.append(f"failed most often with: {view.frequent_error}")
    return ", ".join(parts)


def _wrapped(console: Console, text: str) -> None:
    """Print a sentence; a terminal breaks it between words, any other reader gets one line."""
    console.print(Text(printable(text)), soft_wrap=not console.is_terminal)


def line(console: Console, text: str, style: str = "") -> None:
    """Print one line of text from a study, however long."""
    console.print(Text(printable(text), style=style), soft_wrap=True)
