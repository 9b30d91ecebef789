"""The plots of a study, as plotly figures.

    style        what all share: colours, axes, labels, the layout
    progress     the objective and the best so far; learning curves; evaluations and pruning
    parameters   the objective by key: importance, slices, contour, parallel coordinates
    layers       what each layer does, with training.diagnostics
    tables       means and bests by value: heatmap, isolation, learning rate
    trials       several objectives against each other; which worker trained what when

Figures have no fixed width, transparent backgrounds and no colours but those of data: the page sets
fonts, grids and light or dark by a template. What is different on a narrow page stands in
`layout.meta` (`style.narrow`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import plotly.graph_objects as go

    from sweepstack.study.view import StudyView


@dataclass(frozen=True)
class Plot:
    """A figure and how to read it.

    Attributes:
        key: its name in links, for example "learning-curves".
        title: its heading.
        says: one or two sentences: how to read it, what n is, what was left out. Like the title
            plain text, without anything that HTML would read.
        figure: plotly's.
    """

    key: str
    title: str
    says: str
    figure: go.Figure


def plots(view: StudyView) -> list[Plot]:
    """Draw what applies to a study of any program and in any state, in reading order.

    Plots without data are left out. Plots of more than `style.MAX_POINTS` trials draw some of them
    and say so.
    """
    from sweepstack.analysis.plots import layers, parameters, progress, tables, trials

    importance, keys = parameters.importance(view)
    ranked = importance is not None
    drawn = [
        tables.heatmap(view, keys, ranked=ranked),
        layers.layers(view),
        trials.pareto(view),
        progress.optimization(view),
        progress.cells(view, keys),
        progress.curves(view),
        progress.intermediate(view),
        tables.learning_rate(view),
        importance,
        tables.isolation(view, keys),
        parameters.slices(view, keys, ranked=ranked),
        parameters.contour(view, keys),
        parameters.parallel(view, keys, ranked=ranked),
        trials.timeline(view),
    ]
    return [plot for plot in drawn if plot is not None]
