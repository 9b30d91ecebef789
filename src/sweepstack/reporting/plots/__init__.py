"""The plots of a study, as plotly figures made from its frames.

    material        what is drawn of a study
    common, words   what all share: colours, axes, layout; texts of a study
    heatmap         mean ± std and n for the values of two keys
    curves          learning curves of the best trials and of pruned ones
    optimization    the objective and the best so far, by trials, steps and seconds
    pareto          several objectives against each other
    parallel        all keys and the objective side by side
    slices          the objective against each key
    contour         the objective over two keys of numbers
    importance      which keys matter (PED-ANOVA)
    intermediate    all evaluations, and what the pruner cut when
    timeline        which worker trained what when
    learning_rate   loss and objective against the learning rate
    isolation       the best and the median of each value of a key

Figures have no fixed width, transparent backgrounds and no colours but those of data, so that a
report sets fonts, grids and light or dark by a template.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import plotly.graph_objects as go

    from sweepstack.study.library import OpenStudy


@dataclass(frozen=True)
class Plot:
    """A figure and how it is read.

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


def plots(opened: OpenStudy) -> list[Plot]:
    """Draw what applies to a study of any program and in any state, in reading order.

    What cannot be drawn is left out: of an empty study all. Studies of more than
    `material.MOST_POINTS` trials are thinned, and the plots say so.
    """
    from sweepstack.reporting.plots import (
        contour,
        curves,
        heatmap,
        importance,
        intermediate,
        isolation,
        learning_rate,
        optimization,
        parallel,
        pareto,
        slices,
        timeline,
    )
    from sweepstack.reporting.plots.material import Material

    material = Material(opened)
    drawn = [
        heatmap.plot(material),
        pareto.plot(material),
        optimization.plot(material),
        curves.plot(material),
        intermediate.plot(material),
        learning_rate.plot(material),
        importance.plot(material),
        isolation.plot(material),
        slices.plot(material),
        contour.plot(material),
        parallel.plot(material),
        timeline.plot(material),
    ]
    return [plot for plot in drawn if plot is not None]
