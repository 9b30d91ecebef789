"""Which keys matter: PED-ANOVA, how much a key's values differ between the best trials and all.

Computed by Optuna on the keys of the frame, so that a key that has several parameters in Optuna is
one; a key that does not exist in all trials is treated as conditional
(https://arxiv.org/abs/2601.20800). Seeds stand beside the keys as a measure of chance.
"""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import optuna
import pandas as pd
import plotly.graph_objects as go
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState

from sweepstack.reporting.plots import Plot
from sweepstack.reporting.plots.common import GREY, PALETTE, floats, styled
from sweepstack.reporting.plots.material import Material
from sweepstack.reporting.plots.words import key_title
from sweepstack.study.frame import ranks

FEWEST = 10
"""Complete trials from which importance is computed."""
ENOUGH_GOOD = 5
"""Trials among the best that Optuna's documentation asks for."""


def plot(material: Material) -> Plot | None:
    """The shares, if there are enough trials, several keys and values that differ."""
    known = material.importance
    if not known:
        return None
    names = list(known)[::-1]
    fig = go.Figure()
    fig.add_bar(
        x=floats([known[name] for name in names]),
        y=[key_title(name)["text"] for name in names],
        orientation="h",
        marker={"color": [GREY if name in material.seeds else PALETTE[0] for name in names]},
        texttemplate="%{x:.2f}",
        textposition="outside",
        cliponaxis=False,
        hovertemplate="%{y}: %{x:.3f}<extra></extra>",
    )
    styled(fig, 100 + 36 * len(names))
    fig.update_xaxes(title={"text": "share of importance"}, nticks=6)
    # Room for the numbers beside the bars.
    fig.update_xaxes(range=[0, 1.2 * max(known.values())])
    fig.update_yaxes(type="category")
    share = quantile(len(material.good))
    says = f"PED-ANOVA: how much each key decides whether a trial is among the best {share:.0%}"
    says += f" of {len(material.good):,} complete ones; shares sum to 1, interactions do not show."
    if material.seeds:
        says += " A key below the seed (grey) did no more than chance."
    return Plot("importance", "Importance of keys", says + material.of_several, fig)


def quantile(count: int) -> float:
    """The share of trials that are the best ones: a tenth, of a small study so many as needed."""
    return max(0.1, min(0.5, ENOUGH_GOOD / count))


def shares(material: Material) -> dict[str, float]:
    """The importance of each key, descending, as a share of 1; empty where it says nothing."""
    good, keys = material.good, [*material.keys, *material.seeds]
    keys = [key for key in keys if good[key].notna().any()]
    if len(good) < FEWEST or len(keys) < 2 or good[material.value].nunique() < 2:
        return {}
    # It brings scikit-learn, which takes a second: not where one key is all there is.
    from optuna.importance import PedAnovaImportanceEvaluator, get_param_importances

    columns = {key: _column(material, key) for key in keys}
    study = _fixed(material, columns)
    evaluator = PedAnovaImportanceEvaluator(target_quantile=quantile(len(good)))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of rare cases of a conditional key
        found = get_param_importances(study, evaluator=evaluator, params=keys, normalize=True)
    if not np.isfinite(list(found.values())).all() or not sum(found.values()) > 0:
        return {}
    return dict(sorted(found.items(), key=lambda pair: -pair[1]))


def _column(material: Material, key: str) -> tuple[BaseDistribution, list[Any]]:
    """How Optuna would have drawn a key, and its value in each good trial, None without one."""
    good = material.good
    if material.is_number(key):
        values = good[key].astype("float64")
        described = material.df.attrs["keys"][key]
        low, high = float(values.min()), float(values.max())
        low, high = min(low, described["low"] or low), max(high, described["high"] or high)
        log = described["log"] and low > 0
        return FloatDistribution(low, high, log=log), _or_none(values.tolist(), values.isna())
    codes, labels = ranks(good, [key])
    count = len(labels[0]) - int(good[key].isna().any())
    places = CategoricalDistribution([*range(max(count, 1))])
    return places, _or_none(codes[0].tolist(), good[key].isna())


def _or_none(values: list[Any], missing: pd.Series) -> list[Any]:
    return [None if gone else value for value, gone in zip(values, missing, strict=True)]


class _Fixed(optuna.Study):
    """A study of given trials: in a real one 10,000 of them would take seconds to add."""

    def __init__(self, direction: StudyDirection, trials: list[FrozenTrial]):
        self._given = trials
        self._one = [direction]

    @property
    def directions(self) -> list[StudyDirection]:
        """That of the first objective."""
        return self._one

    def get_trials(self, deepcopy: bool = True, states: Any = None) -> list[FrozenTrial]:
        """The given trials, all of which are complete."""
        return self._given if states is None or TrialState.COMPLETE in states else []


def _fixed(material: Material, columns: dict[str, tuple[BaseDistribution, list[Any]]]) -> _Fixed:
    """The good trials with the columns' values as parameters."""
    trials = []
    for index, value in enumerate(material.good[material.value].tolist()):
        present = {name: v[index] for name, (_, v) in columns.items() if v[index] is not None}
        trials.append(
            FrozenTrial(
                number=index,
                trial_id=index,
                state=TrialState.COMPLETE,
                value=value,
                datetime_start=None,
                datetime_complete=None,
                params=present,
                distributions={name: columns[name][0] for name in present},
                user_attrs={},
                system_attrs={},
                intermediate_values={},
            )
        )
    minimized = material.minimized
    return _Fixed(StudyDirection.MINIMIZE if minimized else StudyDirection.MAXIMIZE, trials)
