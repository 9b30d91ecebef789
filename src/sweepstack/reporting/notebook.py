"""A study in a notebook: `sweepstack.study("NAME")`, an object with frames, tables and plots."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import pandas as pd

from sweepstack import STORAGE
from sweepstack.analysis.plots import Plot, parameters, progress, tables, trials
from sweepstack.config.errors import InputError, nearest
from sweepstack.storage import above
from sweepstack.study import tables as pivots
from sweepstack.study import view as views
from sweepstack.study.view import StudyView

if TYPE_CHECKING:
    import plotly.graph_objects as go


def open_study(name: str, storage: str = STORAGE) -> Study:
    """See `sweepstack.study`."""
    return Study(views.open_study(name, above(storage)))


class Study:
    """A study that is read when something is asked of it, and once.

    Attributes:
        name: the study's.
        plot: its plots, as methods that give plotly figures.
    """

    def __init__(self, view: StudyView):
        self._view, self.name = view, view.name
        self.plot = Plots(view)

    @property
    def trials(self) -> pd.DataFrame:
        """One row per trial; see `sweepstack.results`."""
        return self._view.frame

    @property
    def history(self) -> pd.DataFrame:
        """One row per trial, seed and step; see `sweepstack.history`."""
        return self._view.history

    @property
    def best(self) -> pd.DataFrame:
        """The best configurations: the swept keys, mean, std and n of the objective, and the
        numbers of their trials; the best first."""
        found = self._view.best
        means = -found[".score"] if self._view.minimized else found[".score"]
        keys = {name: found[name] for name in self._view.settings}
        return pd.DataFrame(
            {
                **keys,
                self._view.objective: means,
                "std": found[".std"],
                "n": found[".runs"],
                "trials": found[".numbers"],
            }
        )

    def pivot(
        self, rows: str, columns: str | None = None, value: str | None = None
    ) -> pd.DataFrame:
        """Mean, std and n of the objective for each value of a key, or of two; see
        `sweepstack.pivot`."""
        return pivots.pivot(self.trials, rows, columns, value)

    def refresh(self) -> Study:
        """The same study, read again: for a sweep that is running."""
        return Study(self._view.anew())

    def __repr__(self) -> str:
        """Name, trials by state, and the best value."""
        counts = ", ".join(f"{n} {state}" for state, n in self._view.counts.items() if n)
        text = f"Study({self.name!r}: {counts or 'no trial yet'}"
        best = self._view.best_rows().head(1)
        if self._view.has_one_objective and len(best):
            value = float(best[self._view.objective].iloc[0])
            text += f"; best {self._view.objective} {value:.4g} (trial {best['number'].iloc[0]})"
        return text + ")"

    def _repr_html_(self) -> str:
        """The summary and the best configurations, as a notebook shows them."""
        import html

        return f"<p>{html.escape(repr(self))}</p>{self.best.to_html(float_format='%.4g')}"


class Plots:
    """The plots of the report, each as a plotly figure that a notebook shows.

    Each raises InputError where the study has nothing to draw.
    """

    def __init__(self, view: StudyView):
        self._view = view

    def heatmap(self, by: Sequence[str] = ()) -> go.Figure:
        """Mean, std and n of the objective for the values of two keys."""
        return self._figure(tables.heatmap(self._view, self._keys(by)))

    def curves(self, by: Sequence[str] = (), metric: str | None = None) -> go.Figure:
        """Learning curves of the best trials; with `by`, mean curves for the values of one or two
        keys, with a band of ± standard deviation."""
        if not by and metric is None:
            return self._figure(progress.curves(self._view))
        known = [name for name in self._view.history if name.startswith(("train_", "val_"))]
        if metric is not None and known and metric not in known:
            raise InputError(
                f"metric must be among {', '.join(known)}, got {metric!r}{nearest(metric, known)}"
            )
        return self._figure(progress.cells(self._view, self._keys(by), metric))

    def importance(self) -> go.Figure:
        """How much each key matters for the objective."""
        return self._figure(parameters.importance(self._view)[0])

    def slices(self, by: Sequence[str] = ()) -> go.Figure:
        """The objective against each key."""
        return self._figure(parameters.slices(self._view, self._keys(by)))

    def contour(self, by: Sequence[str] = ()) -> go.Figure:
        """The objective over pairs of numeric keys."""
        return self._figure(parameters.contour(self._view, self._keys(by)))

    def parallel(self, by: Sequence[str] = ()) -> go.Figure:
        """A line per trial through all keys."""
        return self._figure(parameters.parallel(self._view, self._keys(by)))

    def optimization(self) -> go.Figure:
        """All trials and the best so far."""
        return self._figure(progress.optimization(self._view))

    def learning_rate(self) -> go.Figure:
        """The objective against the learning rate, for each optimizer."""
        return self._figure(tables.learning_rate(self._view))

    def pareto(self) -> go.Figure:
        """Several objectives against each other."""
        return self._figure(trials.pareto(self._view))

    def timeline(self) -> go.Figure:
        """Which worker trained what when."""
        return self._figure(trials.timeline(self._view))

    def _keys(self, by: Sequence[str]) -> list[str]:
        """The keys that were named, or all that were swept, the most important first."""
        by = [by] if isinstance(by, str) else list(by)
        known = self._view.varied
        unknown = [name for name in by if name not in known]
        if unknown:
            raise InputError(
                [f"no key {name!r} was swept{nearest(name, known)}" for name in unknown]
            )
        return by or parameters.importance(self._view)[1]

    def _figure(self, plot: Plot | None) -> go.Figure:
        if plot is None:
            raise InputError(f"study {self._view.name} has too little for this plot")
        return plot.figure.update_layout(template="plotly", title={"text": plot.title})
