"""One interpretation of a study: keys, seeds, configurations, good and best trials, curves."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import optuna
import pytest
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.storages import RDBStorage
from optuna.trial import TrialState, create_trial

from sweepstack import storage
from sweepstack.study.keys import is_seed
from sweepstack.study.view import StudyView, open_study, place

SPACE = {
    "init": CategoricalDistribution(["he", "ones"]),
    "optimizer.lr": FloatDistribution(1e-4, 1.0, log=True),
    "training.seed": IntDistribution(0, 9),
    "data.split_seed": IntDistribution(0, 9),
    "optimizer": CategoricalDistribution(["sgd", "adam"]),
    **{name: IntDistribution(0, 9) for name in ("numbers", "score", "std", "seeds", "equals")},
}


def viewed(*trials: dict[str, Any], direction: str = "maximize") -> StudyView:
    """A study of trials, each with "params" and the settings of `create_trial`."""
    study = optuna.create_study(direction=direction, study_name="viewed")
    study.set_user_attr("sweepstack.identity", {"objectives": ["score_of_it"]})
    for trial in trials:
        params = trial.get("params", {})
        known = {name: SPACE[name] for name in params}
        study.add_trial(create_trial(**{"params": {}, **trial}, distributions=known))
    return StudyView(study, "memory")


def point(value: float | None = None, **settings: Any) -> dict[str, Any]:
    """A trial of a dict of parameters, whose dots are written as "__"."""
    attrs = settings.pop("attrs", {})
    state = settings.pop("state", TrialState.COMPLETE)
    reports = settings.pop("reports", {})
    params = {name.replace("__", "."): value for name, value in settings.items()}
    known = {"intermediate_values": reports, "user_attrs": attrs}
    return {"value": value, "state": state, "params": params, **known}


@pytest.mark.parametrize(
    ("key", "expected"),
    [
        *(("training.seed", True), ("seed", True), ("app.seed", True)),
        *(("data.split_seed", False), ("seeds", False), ("training.seeds", False)),
    ],
)
def test_a_key_is_a_seed_by_its_last_part(key: str, expected: bool) -> None:
    assert is_seed(key) is expected


def test_trials_that_differ_in_the_seed_alone_are_one_configuration() -> None:
    view = viewed(
        point(0.5, init="he", training__seed=0, data__split_seed=0),
        point(0.7, init="he", training__seed=1, data__split_seed=0),
        point(0.9, init="he", training__seed=0, data__split_seed=1),
        point(0.1, init="ones", training__seed=0, data__split_seed=0),
    )
    assert view.seeds == view.varied_seeds == ["training.seed"]
    assert view.settings == view.varied == ["init", "data.split_seed"]
    found = view.configurations
    assert found[".numbers"].tolist() == [[2], [0, 1], [3]]
    assert found[".runs"].tolist() == [1, 2, 1]
    assert found[".score"].tolist() == pytest.approx([0.9, 0.6, 0.1])
    assert found[".std"].tolist()[1] == pytest.approx(0.02**0.5)
    assert found["init"].tolist() == ["he", "he", "ones"]
    assert view.best_trials == {0, 1, 2, 3}


def test_without_settings_all_trials_are_one_configuration() -> None:
    view = viewed(point(0.5, training__seed=0), point(0.7, training__seed=1))
    assert view.configurations[".numbers"].tolist() == [[0, 1]]
    assert viewed().configurations.empty
    assert list(viewed().configurations) == [".score", ".runs", ".std", ".numbers"]
    assert viewed().best_trials == set()


def test_missing_values_of_a_key_are_a_configuration_of_their_own() -> None:
    view = viewed(
        point(0.5, optimizer="sgd", optimizer__lr=0.1),
        point(0.6, optimizer="adam"),
        point(0.8, optimizer="adam"),
    )
    assert view.configurations[".numbers"].tolist() == [[1, 2], [0]]
    assert math.isnan(view.configurations["optimizer.lr"].tolist()[0])
    assert view.varied == ["optimizer"]


def test_trials_that_are_means_over_seeds_count_their_seeds() -> None:
    seeds = {"seeds": 3, "std": 0.1}
    view = viewed(point(0.5, init="he", attrs=seeds), point(0.6, init="ones", attrs=seeds))
    assert view.configurations[".runs"].tolist() == [3, 3]
    assert view.configurations[".std"].tolist() == pytest.approx([0.1, 0.1])


def test_good_trials_are_complete_finite_and_feasible() -> None:
    view = viewed(
        point(0.5, init="he"),
        point(math.inf, init="he"),
        point(1e38, init="he"),
        point(None, init="he", state=TrialState.FAIL),
        point(0.9, init="he", state=TrialState.PRUNED),
        point(0.5, init="ones", attrs={"equals": 0}),
    )
    assert view.good["number"].tolist() == [0, 5]
    assert view.duplicates.tolist() == [False] * 5 + [True]
    assert view.configurations[".numbers"].tolist() == [[0]]
    assert view.pruned[".score"].tolist() == [-math.inf]
    assert view.counts == {"complete": 4, "pruned": 1, "failed": 1}


def test_constraints_make_trials_infeasible() -> None:
    study = optuna.create_study(direction="maximize")
    for broken in (True, False):
        trial = study.ask()
        trial.set_constraint("small", 1.0 if broken else -1.0)
        study.tell(trial, 0.9 if broken else 0.5)
    view = StudyView(study, "memory")
    assert view.good["number"].tolist() == [1]
    assert view.best_rows()["number"].tolist() == [1]
    assert view.outcomes.tolist() == ["infeasible", "complete"]
    assert view.counts == {"complete": 1, "infeasible": 1}


def test_where_less_is_better_scores_are_negative() -> None:
    view = viewed(
        point(2.0, init="he", reports={1: 3.0, 2: 2.0}),
        point(1.0, init="ones", reports={1: 1.5}),
        direction="minimize",
    )
    assert view.minimized
    assert view.configurations[".score"].tolist() == [-1.0, -2.0]
    assert view.best_first(view.good)["number"].tolist() == [1, 0]
    curves = view.score_curves
    assert curves.index.tolist() == [0, 1]
    assert curves.columns.tolist() == [1, 2]
    assert curves.loc[0].tolist() == [-3.0, -2.0]
    assert math.isnan(curves.loc[1, 2])
    assert view.curve("val_loss").empty


def test_the_best_are_a_tenth_of_what_was_tried() -> None:
    lrs = [10 ** (-index / 50) for index in range(100)]
    done = [point(-index, optimizer__lr=lr) for index, lr in enumerate(lrs)]
    pruned = [point(0.0, optimizer__lr=lr, state=TrialState.PRUNED) for lr in lrs]
    assert len(viewed(*done).best) == 10
    assert len(viewed(*done, *pruned).best) == 20
    assert len(viewed(*done[:8]).best) == 5


def test_keys_know_their_values() -> None:
    view = viewed(point(0.5, init="he", optimizer__lr=0.1, training__seed=1))
    lr = view.keys["optimizer.lr"]
    assert (lr.bounds, lr.is_log, lr.is_finite, lr.choices) == ((1e-4, 1.0), True, False, None)
    assert view.keys["init"].choices == ["he", "ones"]
    assert view.is_number("optimizer.lr")
    assert not view.is_number("init")
    [parameter] = view.keys["training.seed"].parameters
    assert (parameter.span, parameter.is_integer, parameter.declared) == ((0, 9), True, False)
    assert [p.name for p in view.parameters] == ["init", "optimizer.lr"]


def test_cases_of_a_key_are_its_parameters() -> None:
    study = optuna.create_study()
    when = {"optimizer": ["sgd"]}
    space = {
        "optimizer": {"key": "optimizer", "kind": "choice", "choices": ["sgd", "adam"]},
        "m[optimizer=sgd]": {"key": "m", "kind": "choice", "choices": [0.1, 0.9, 1], "when": when},
        "m[optimizer=adam]": {"key": "m", "kind": "float", "low": 1, "high": 2, "log": False},
    }
    study.set_user_attr("sweepstack.identity", {"space": space})
    known = {"optimizer": SPACE["optimizer"], "m[optimizer=sgd]": FloatDistribution(0, 1)}
    for optimizer in ("sgd", "adam"):
        params = {"optimizer": optimizer} | (
            {"m[optimizer=sgd]": 0.9} if optimizer == "sgd" else {}
        )
        shown = {name: known[name] for name in params}
        study.add_trial(create_trial(value=1.0, params=params, distributions=shown))
    view = StudyView(study, "memory")
    first, second = view.keys["m"].parameters
    assert (first.numbers, first.span, first.when) == ([0.1, 0.9, 1], None, when)
    assert (second.numbers, second.span, second.when) == (None, (1, 2), {})
    assert view.keys["m"].bounds == (0.1, 2)
    assert first.within(view.frame)["number"].tolist() == [0]


def test_the_frequent_error_is_one_line() -> None:
    failed = [
        point(state=TrialState.FAIL, init="he", attrs={"error": error})
        for error in ("\x1b[31mloss is nan\nat step 3", "\x1b[31mloss is nan\nat step 3", "other")
    ]
    error = viewed(*failed).frequent_error
    assert error is not None
    assert error.startswith("loss is nan")
    assert error.isprintable()
    assert viewed(point(0.5, init="he")).frequent_error is None


def test_a_study_is_opened_by_name_and_read_anew(tmp_path) -> None:
    url = f"sqlite:///{tmp_path}/studies.db"
    made = optuna.create_study(study_name="s", storage=storage.connect(url))
    made.add_trial(create_trial(value=1.0))
    view = open_study("s", url)
    assert view.storage is not None
    assert view.objectives == {"value": "minimize"}
    assert view.has_one_objective
    assert len(view.frame) == 1
    made.add_trial(create_trial(value=2.0))
    assert len(view.frame) == 1
    assert len(view.anew().frame) == 2


def test_keys_may_be_called_like_what_is_computed() -> None:
    view = viewed(
        point(0.5, numbers=1, score=2, std=3, seeds=4, equals=5),
        point(0.6, numbers=1, score=2, std=3, seeds=4, equals=6),
    )
    found = view.configurations
    keys = ["numbers", "score", "std", "seeds", "equals"]
    assert found[keys].to_numpy().tolist() == [[1, 2, 3, 4, 6], [1, 2, 3, 4, 5]]
    assert found[".runs"].tolist() == [1, 1]


def test_a_space_that_is_no_space_has_no_choices() -> None:
    view = viewed(point(0.5, init="he"))
    entry = {"key": "init", "kind": "choice", "choices": 3}
    view.study.set_user_attr("sweepstack.identity", {"space": {"init": entry}})
    assert view.keys["init"].choices == []
    assert view.frame["init"].tolist() == ["he"]


def test_numbers_and_texts_that_pandas_cannot_hold_are_read() -> None:
    view = viewed(point(0.5, attrs={"steps": 10**400, "error": "\ud800"}))
    assert view.frame["steps"].tolist() == [math.inf]
    assert view.frame["error"].tolist() == ["\ud800"]
    space = {"init": {"key": "init", "kind": "int", "low": -(10**400), "high": 3}}
    view = StudyView(view.study, "memory")
    view.study.set_user_attr("sweepstack.identity", {"space": space})
    assert view.keys["init"].bounds == (3, 3)


@pytest.mark.parametrize(
    ("where", "folder"),
    [
        *(("a/b.db", "a"), ("sqlite:///a/b.db", "a"), ("sqlite:////a/b.db", "/a")),
        *(("journal:///a/b", "a"), ("journal:////a/b", "/a"), ("journal://a/b", "a")),
        *(("grpc://host:1", "outputs"), ("postgresql://u:p@h/d", "outputs"), ("x://", "outputs")),
    ],
)
def test_trials_lie_beside_the_file_of_a_storage(where: str, folder: str) -> None:
    assert place(where) == Path(folder)


def test_a_view_is_read_again_only_where_trials_have_come_or_ended(tmp_path: Path) -> None:
    opened = RDBStorage(f"sqlite:///{tmp_path / 'studies.db'}")
    study = optuna.create_study(storage=opened)
    study.tell(study.ask(), 1.0)
    view = StudyView(study, "", opened)
    assert view.latest() is view
    running = study.ask()
    later = view.latest()
    assert len(later.trials) == 2
    study.tell(running, 2.0)
    assert later.latest().trials[1].value == 2.0
    assert StudyView(study, "").latest().counts == {"complete": 2}  # without its storage
