"""`sweepstack-study compare`: which of several studies is better.

Trials are paired where all keys that any of the studies swept have equal values, seeds among them:
the difference is then not that of configurations. The interval of the mean difference is Student's,
and so is the probability that the mean is above 0 (the posterior with a flat prior).

Expected best of n trials (Dodge et al., "Show Your Work", EMNLP 2019): with the values sorted
v_1 <= ... <= v_N it is Σ v_i · ((i/N)^n - ((i-1)/N)^n). It says what n trials drawn at random from
those of a study would give, and is an honest budget for random search alone.
"""

from __future__ import annotations

import math
from collections.abc import Container, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from sweepstack.analysis.plots import Plot, style
from sweepstack.analysis.terminal import number, setting
from sweepstack.config import errors
from sweepstack.config.errors import InputError, one_line
from sweepstack.reporting.report.content import Cell, Table
from sweepstack.runs import progress
from sweepstack.study.view import StudyView

BUDGETS = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000)
MAX_DIFFERENCES = 20
"""Settings that are listed as different."""


@dataclass(frozen=True)
class Pairs:
    """Differences of paired trials, the second study's objective minus the first's.

    Attributes:
        n: how many pairs.
        mean, low, high: the mean difference and its 95 % interval; NaN where n < 2.
        wins: share of pairs in which the second is better; equal ones count half.
        probability: that the mean favours the second; NaN where n < 2.
    """

    n: int
    mean: float
    low: float
    high: float
    wins: float
    probability: float


def compare(views: Sequence[StudyView], output: Path | None = None) -> int:
    """Print a comparison of studies; write it as HTML too where `output` says so.

    Raises:
        InputError: fewer than two studies, other objectives, or no complete trial in one of them.
    """
    check(views)
    console = progress.console()
    for line in lines(views):
        progress.say(line, console)
    if output is not None:
        errors.write_bytes(output, page(views).encode("utf-8", "backslashreplace"))
        progress.say(f"report: {progress.shown(output)}", console)
    return 0


def check(views: Sequence[StudyView]) -> None:
    """See `compare`."""
    names = [view.name for view in views]
    if len(set(names)) < 2 or len(set(names)) < len(names):
        raise InputError(f"compare needs two or more different studies, got {', '.join(names)}")
    goals = {view.name: view.objectives for view in views}
    if any(goal != goals[names[0]] for goal in goals.values()) or len(goals[names[0]]) != 1:
        listed = "; ".join(f"{name}: {', '.join(goal)}" for name, goal in goals.items())
        raise InputError(f"compare needs studies with one and the same objective, got {listed}")
    for view in views:
        if view.good.empty:
            raise InputError(f"compare needs complete trials, study {view.name} has none")


def lines(views: Sequence[StudyView]) -> Iterator[str]:
    """The comparison as text."""
    first = views[0]
    yield f"{first.objective} ({first.direction}) of {', '.join(view.name for view in views)}"
    differences = differing(views)
    if differences:
        yield "what differs:"
    for key, values in list(differences.items())[:MAX_DIFFERENCES]:
        yield f"  {key}: {' | '.join(values)}"
    if len(differences) > MAX_DIFFERENCES:
        yield f"  and {len(differences) - MAX_DIFFERENCES} more keys"
    for view in views:
        yield summary(view)
    for other in views[1:]:
        yield _verdict(first, other)
    budgets = [n for n in BUDGETS if n <= max(len(view.good) for view in views)]
    yield f"expected best of {', '.join(map(str, budgets))} trials drawn at random:"
    for view in views:
        known = [n for n in budgets if n <= len(view.good)]
        yield f"  {view.name}: {', '.join(number(x) for x in expected_best(view, known))}"


def summary(view: StudyView) -> str:
    """A study's best configuration, its median, and how many trials it has, as a line."""
    best = view.configurations.iloc[0]
    mean = -best[".score"] if view.minimized else best[".score"]
    spread = f" ± {number(best['.std'], mean)}" if best[".runs"] > 1 else ""
    values = view.good[view.objective]
    counts = ", ".join(f"{n} {state}" for state, n in view.counts.items() if n)
    return (
        f"{view.name}: best {number(mean)}{spread} (n={best['.runs']}, trial "
        f"{view.winner}), median {number(float(values.median()))}; {counts}"
    )


def _verdict(first: StudyView, other: StudyView) -> str:
    found = paired(first, other)
    if not found.n:
        share = superiority(first, other)
        return (
            f"{other.name} against {first.name}: no equal configurations; a random trial of it is "
            f"better with probability {share:.2f}"
        )
    text = f"{other.name} - {first.name}: {number(found.mean)}"
    if found.n > 1:
        text += f", 95 % interval {number(found.low)} to {number(found.high)}"
    text += f", n={found.n} pairs of equal configurations; better in {100 * found.wins:.0f} %"
    if not math.isnan(found.probability):
        text += f"; probability that it is better on average {found.probability:.3f}"
    return text


# --- what is asked --------------------------------------------------------------------------------


def differing(views: Sequence[StudyView]) -> dict[str, list[str]]:
    """Keys that are not the same in all studies: what each swept, or the value that it had."""
    swept = {key for view in views for key in view.settings}
    asked = [_asked(view, swept) for view in views]
    keys = dict.fromkeys(key for node in asked for key in node)
    rows = {key: [node.get(key, "-") for node in asked] for key in keys}
    return {key: values for key, values in rows.items() if len(set(values)) > 1}


def _asked(view: StudyView, swept: Container[str]) -> dict[str, str]:
    """What a study asked, by key; of a group that any of the studies `swept` the option, and only
    what the command set besides: the other settings are those of one option."""
    config = view.identity.get("config")
    config = config if isinstance(config, Mapping) else {}
    groups = [key for key, node in config.items() if key in swept and isinstance(node, Mapping)]
    given = {word.lstrip("+").partition("=")[0] for word in view.asked.get("arguments") or ()}
    found = {group: _fixed(view, group) for group in groups}
    for key, text in _flat(config, ""):
        if key.partition(".")[0] not in groups or key in given:
            found[key] = text
    for parameter in view.settings + view.seeds:
        values = view.frame[parameter].dropna()
        shown = [_text(value) for value in pd.unique(values)]
        many = len(shown) > 6
        found[parameter] = f"{len(shown)} values" if many else "{" + ", ".join(shown) + "}"
    return found


def _flat(node: Mapping[str, Any], prefix: str) -> Iterator[tuple[str, str]]:
    for key, value in node.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", _text(value)


def _text(value: object) -> str:
    """As it is typed. A column with gaps holds floats: 16.0 is what another study has as 16."""
    if value is None or isinstance(value, bool):
        return "null" if value is None else str(value).lower()
    return one_line(int(value) if isinstance(value, float) and value.is_integer() else value)


# --- who is better --------------------------------------------------------------------------------


def paired(first: StudyView, other: StudyView) -> Pairs:
    """Compare the complete trials whose swept keys are all equal, seeds among them."""
    keys = list(dict.fromkeys([*first.settings, *first.seeds, *other.settings, *other.seeds]))
    tables = [_keyed(view, keys) for view in (first, other)]
    if keys:
        merged = tables[0].merge(tables[1], on=keys, suffixes=("_first", "_other"))
    else:
        merged = tables[0].merge(tables[1], how="cross", suffixes=("_first", "_other")).head(1)
    difference = (merged["value_other"] - merged["value_first"]).to_numpy(dtype="float64")
    return statistics(difference, -1 if first.minimized else 1)


def _keyed(view: StudyView, keys: Sequence[str]) -> pd.DataFrame:
    """A row per configuration of these keys: their values as text, and the mean objective."""
    good = view.good
    columns = {key: good[key].map(_same) if key in good else _fixed(view, key) for key in keys}
    table = pd.DataFrame({**columns, "value": good[view.objective]}, index=good.index)
    return table.groupby(list(keys), as_index=False)["value"].mean() if keys else table


def _fixed(view: StudyView, key: str) -> str:
    """The value of a key that a study did not sweep; of a group the option's name."""
    value = view.config(key)
    if isinstance(value, Mapping):
        value = value.get("name", value.get("scheme"))
    return _same(value)


def _same(value: Any) -> str:
    """The value of a key as text: 16 and 16.0 are one value, as is what is not set."""
    return setting(value, digits=17)


def statistics(difference: np.ndarray[Any, np.dtype[np.float64]], sign: int) -> Pairs:
    """Of differences (n,); those that times `sign`, 1 or -1, are above 0 favour the second."""
    n = len(difference)
    if not n:
        return Pairs(0, math.nan, math.nan, math.nan, math.nan, math.nan)
    wins = float(((sign * difference > 0) + 0.5 * (difference == 0)).mean())
    mean = float(difference.mean())
    if n < 2:
        return Pairs(n, mean, math.nan, math.nan, wins, math.nan)
    from scipy.stats import t

    error = float(difference.std(ddof=1)) / math.sqrt(n)
    if error == 0:
        return Pairs(n, mean, mean, mean, wins, 0.5 if mean == 0 else float(sign * mean > 0))
    half = float(t.ppf(0.975, n - 1)) * error
    above = float(t.cdf(sign * mean / error, n - 1))
    return Pairs(n, mean, mean - half, mean + half, wins, above)


def superiority(first: StudyView, other: StudyView) -> float:
    """The probability that a random complete trial of `other` is better than one of `first`; equal
    ones count half (Vargha and Delaney's A)."""
    sign = -1 if first.minimized else 1
    one, two = (sign * view.good[view.objective].to_numpy("float64") for view in (first, other))
    ranked = np.sort(one)
    below, upto = np.searchsorted(ranked, two, "left"), np.searchsorted(ranked, two, "right")
    return float(((below + upto) / 2).sum() / (len(one) * len(two)))


def expected_best(view: StudyView, budgets: Sequence[int]) -> list[float]:
    """The expected best objective of so many trials; see the head of the module."""
    sign = -1 if view.minimized else 1
    values = np.sort(sign * view.good[view.objective].to_numpy("float64"))
    places = np.arange(len(values) + 1) / len(values)
    return [sign * float((values * np.diff(places**n)).sum()) for n in budgets]


# --- as a page ------------------------------------------------------------------------------------


def page(views: Sequence[StudyView]) -> str:
    """The comparison as one HTML file, as a report: verdicts, tables, the best so far, the
    distributions."""
    from sweepstack.reporting.report import page as report

    first = views[0]
    names, best = [one_line(view.name) for view in views], _progress(views)
    drawn = [
        Plot("progress", "Best so far", "The menu has other axes, and what to expect.", best),
        Plot("values", "Complete trials", "A dot per trial; boxes are quartiles.", _values(views)),
    ]
    verdicts = [_verdict(first, other) for other in views[1:]]
    lead = f"{first.objective} ({first.direction})"
    return report.compared(" and ".join(names), lead, verdicts, _tables(views, names), drawn)


def _tables(views: Sequence[StudyView], names: Sequence[str]) -> list[Table]:
    """What each study found, what would be expected of n trials, what differs between them."""
    summaries = [
        [Cell(name), Cell(summary(view).removeprefix(f"{view.name}: "))]
        for name, view in zip(names, views, strict=True)
    ]
    budgets = [n for n in BUDGETS if n <= max(len(view.good) for view in views)]
    expected = []
    for name, view in zip(names, views, strict=True):
        values = expected_best(view, [n for n in budgets if n <= len(view.good)])
        texts = [*map(number, values), *[""] * (len(budgets) - len(values))]
        expected.append([Cell(name), *(Cell(text, "number") for text in texts)])
    differences = [[Cell(key), *map(Cell, values)] for key, values in differing(views).items()]
    heads = [[Cell("study"), Cell("found")], [Cell("study")], [Cell("key"), *map(Cell, names)]]
    heads[1] += [Cell(f"n={n}", "number") for n in budgets]
    objective = one_line(views[0].objective)
    parts = [
        ("studies", "Studies", f"{objective}, mean ± std of the best configuration", summaries),
        ("expected", "Expected best", f"{objective} of the best of n random trials", expected),
        ("differences", "What differs", "Values that were swept are in braces", differences),
    ]
    return [
        Table(key, title, caption, "best-of", head, rows)
        for (key, title, caption, rows), head in zip(parts, heads, strict=True)
        if rows
    ]


def _progress(views: Sequence[StudyView]) -> go.Figure:
    """The best so far by trials, steps and seconds of training."""
    options: list[style.Option] = []
    for label, column in (("trials", None), ("steps", "steps"), ("seconds of training", "seconds")):
        traces = []
        for place, view in enumerate(views):
            rows = view.finished.sort_values("number")
            spent = pd.Series(1.0, index=rows.index)
            if column is not None:
                nothing = pd.Series(0.0, index=rows.index)
                spent = pd.to_numeric(rows.get(column, nothing), errors="coerce").fillna(0.0)
            values = rows[view.objective].where(rows.index.isin(view.good.index))
            best = values.cummin() if view.minimized else values.cummax()
            traces.append(
                go.Scatter(
                    x=style.floats(spent.cumsum()),
                    y=style.floats(best.ffill()),
                    name=style.label(view.name, 40),
                    mode="lines",
                    line={"shape": "hv", "color": style.PALETTE[place % len(style.PALETTE)]},
                )
            )
        options.append(
            (f"by {label}", traces, {"xaxis": {"title": {"text": label}, "type": "linear"}})
        )
    curves = []
    for place, view in enumerate(views):
        budgets = np.unique(np.geomspace(1, len(view.good), 60).round().astype(int)).tolist()
        curves.append(
            go.Scatter(
                x=style.floats(budgets),
                y=style.floats(expected_best(view, budgets)),
                name=style.label(view.name, 40),
                mode="lines+markers",
                marker={"size": 3},
                line={"color": style.PALETTE[place % len(style.PALETTE)]},
            )
        )
    axis = {"title": {"text": "trials drawn at random"}, "type": "log"}
    options.append(("expected, by trials drawn", curves, {"xaxis": axis}))
    figure = style.with_menu(options, 420)
    title = f"best {style.label(views[0].objective, 40)} so far"
    return figure.update_layout(yaxis={"title": {"text": title}})


def _values(views: Sequence[StudyView]) -> go.Figure:
    """The objective of every complete trial."""
    figure = go.Figure(
        [
            go.Box(
                y=style.floats(view.good[view.objective]),
                name=style.label(view.name, 40),
                boxpoints="all",
                jitter=0.4,
                marker={"color": style.PALETTE[place % len(style.PALETTE)], "size": 4},
            )
            for place, view in enumerate(views)
        ]
    )
    style.styled(figure, 420)
    title = style.label(views[0].objective, 40)
    figure.update_xaxes(showticklabels=False)  # names of any length are in the legend
    return figure.update_layout(yaxis={"title": {"text": title}})
