"""What a sweep is going to do, as `hydra.sweeper` and the command line say it."""

from __future__ import annotations

import math
import re

import pytest

from sweepstack.config.errors import InputError
from sweepstack.sweep import plan
from sweepstack.sweep.plan import Constraint

LISTS = ["init=he,xavier", "optimizer.lr=0.1,0.2,0.3"]
INTERVAL = ["optimizer.lr=interval(0.1,1)"]


def read(arguments=LISTS, **node):
    return plan.read(node, arguments, "sweepstack")


def refused(arguments=LISTS, **node):
    with pytest.raises(InputError) as caught:
        read(arguments, **node)
    return caught.value.mistakes


def test_the_defaults():
    found = read()

    assert (found.total, found.grid, found.n_jobs) == (6, True, 1)
    assert (found.sampler.name, found.pruner.name, found.seed) == ("tpe", "none", None)
    assert (found.max_failure_rate, found.max_restarts) == (0.5, 3)
    assert (found.objectives, found.directions, found.constraints) == ((), (), ())
    assert not found.dry_run


def test_what_is_null_is_the_default():
    nothing = dict.fromkeys(
        [
            *("study_name", "direction", "directions", "objectives", "n_trials", "params"),
            *("conditions", "enqueue", "timeout_s", "max_steps_total", "constraints"),
            *("custom_search_space", "sampler", "pruner"),
        ]
    )

    assert read(**nothing) == read()


# --- names ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "name"),
    [
        ([], "sweepstack"),
        (["init=he,xavier"], "init-#"),
        (["init=he,xavier", "data=mnist"], "init_data-#"),
        (["+sweeps=init_activation_grid"], "init_activation_grid"),
        (["+sweeps=grid", "data=mnist"], "grid_data-#"),
        (["+sweeps=grid", "data.root=/mnt/data", "training.device=cuda:1", "trust=[a]"], "grid"),
        (["optimizer.lr=interval(0.1,1)", "+model.width=3"], "lr_width-#"),
        (["hydra/launcher=a", "model.hidden=[10],[20,20]"], "launcher_hidden-#"),
    ],
)
def test_a_study_without_a_name_is_called_after_the_keys_of_its_command(arguments, name):
    assert re.sub("[0-9a-f]{8}$", "#", read(arguments, n_trials=3).study) == name


def test_commands_that_differ_have_names_that_do_and_all_are_short():
    one, other = read(["init=he,xavier"]).study, read(["init=he,ones"]).study
    assert one != other
    assert read(["init=he,xavier"]).study == one
    keys = ["regularization.weight_decay", "regularization.label_smoothing", "optimizer.momentum"]
    name = read([f"{key}=0,0.1" for key in keys]).study
    assert re.fullmatch("weight_decay_label_smoothing-[0-9a-f]{8}", name)
    assert len(name) <= 40


def test_a_name_that_was_given_is_kept():
    assert read(study_name="my study, the 2nd").study == "my study, the 2nd"


@pytest.mark.parametrize("name", ["", ".", "..", "a/b", "a\0b", "x" * 201])
def test_a_name_that_no_folder_can_have_is_refused(name):
    [line] = refused(study_name=name)
    assert line.startswith("hydra.sweeper.study_name must be a name that a folder can have")


# --- how many trials -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "node", "expected"),
    [
        (LISTS, {}, (6, True)),
        ([], {}, (1, True)),
        (["optimizer.lr=0.1"], {}, (1, True)),
        (["training.seed=range(0,5)", *LISTS], {}, (30, True)),
        (LISTS, {"n_trials": 4}, (4, False)),
        (LISTS, {"n_trials": 100}, (100, False)),
        (LISTS, {"sampler": "random", "n_trials": 100}, (100, False)),
        (LISTS, {"sampler": "grid"}, (6, True)),
        (LISTS, {"sampler": "grid", "n_trials": 4}, (4, True)),
        (LISTS, {"sampler": "grid", "n_trials": 100}, (6, True)),
        (LISTS, {"sampler": "brute_force", "n_trials": 100}, (6, False)),
        (LISTS, {"sampler": "brute_force", "n_trials": 4}, (4, False)),
        (LISTS, {"timeout_s": 5}, (6, True)),
        (INTERVAL, {"n_trials": 4}, (4, False)),
        (INTERVAL, {"timeout_s": 5}, (None, False)),
        (INTERVAL, {"max_steps_total": 500}, (None, False)),
        (INTERVAL, {"max_steps_total": 500, "n_trials": 4}, (4, False)),
        (LISTS, {"custom_search_space": "math.sin", "n_trials": 4}, (4, False)),
        (LISTS, {"custom_search_space": "math.sin", "timeout_s": 4}, (None, False)),
    ],
)
def test_totals(arguments, node, expected):
    found = read(arguments, **node)
    assert (found.total, found.grid) == expected


def test_conditions_make_a_grid_smaller():
    found = read(
        ["optimizer=sgd,adam", "optimizer.momentum=0,0.9"],
        conditions={"optimizer.momentum": {"optimizer": "sgd"}},
    )
    assert (found.total, found.grid) == (3, True)


@pytest.mark.parametrize("n_trials", [0, -1, 1.5, "many", True])
def test_a_total_is_a_whole_number_above_zero(n_trials):
    [line] = refused(n_trials=n_trials)
    assert line.startswith("hydra.sweeper.n_trials must be ")


# --- samplers and pruners ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("target", "name", "given"),
    [
        ("optuna.samplers.TPESampler", "tpe", {"n_startup_trials": 3}),
        ("optuna.samplers.RandomSampler", "random", {}),
        ("hydra_plugins.hydra_optuna_sweeper.create_nsgaii_sampler", "nsgaii", {}),
    ],
)
def test_a_sampler_may_be_named_by_its_class(target, name, given):
    found = read(sampler={"_target_": target, "seed": 7, **given}, n_trials=3)

    assert (found.sampler.name, dict(found.sampler.given), found.seed) == (name, given, 7)


def test_a_class_that_is_no_sampler_is_refused_and_never_imported():
    [line] = refused(sampler={"_target_": "os.system", "command": "touch here"})
    assert line.startswith("hydra.sweeper.sampler must be one of tpe, random")
    assert line.endswith("got the class 'os.system'")


def test_the_seed_is_the_sampler_s():
    assert read(sampler={"name": "tpe", "seed": 3}).seed == 3
    assert read(sampler={"name": "tpe", "seed": None}).seed is None
    assert refused(sampler={"name": "tpe", "seed": -1}) == [
        "hydra.sweeper.sampler.seed must be >= 0, got -1"
    ]


def test_settings_that_are_null_are_left_to_the_class():
    found = read(sampler={"name": "tpe", "n_startup_trials": None, "multivariate": True})
    assert dict(found.sampler.given) == {"multivariate": True}


@pytest.mark.parametrize("node", [{"sampler": ""}, {"pruner": ""}, {"sampler": {}}])
def test_an_empty_choice_is_not_the_default(node):
    [line] = refused(**node)
    assert "must be one of" in line


def test_a_pruner_with_its_settings():
    found = read(pruner={"name": "asha", "min_resource": 10, "reduction_factor": None})
    assert (found.pruner.name, dict(found.pruner.given)) == ("asha", {"min_resource": 10})


# --- the rest ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("node", "directions"),
    [
        ({"direction": "minimize"}, ("minimize",)),
        ({"directions": ["maximize", "minimize"]}, ("maximize", "minimize")),
        ({"directions": "maximize"}, ("maximize",)),
    ],
)
def test_directions(node, directions):
    assert read(**node).directions == directions


def test_direction_and_directions_do_not_go_together():
    [line] = refused(direction="minimize", directions=["minimize"])
    assert line == "hydra.sweeper must have direction or directions, not both"


@pytest.mark.parametrize(
    ("item", "point"),
    [
        ({"init": "he", "optimizer.lr": 0.2}, {"init": "he", "optimizer.lr": 0.2}),
        (["init=xavier", "optimizer.lr=0.1"], {"init": "xavier", "optimizer.lr": 0.1}),
        ("init=xavier", {"init": "xavier"}),
    ],
)
def test_known_points_are_written_in_three_ways(item, point):
    assert read(n_trials=5, enqueue=[item]).enqueue == (point,)


def test_a_known_point_of_a_grid_is_whole():
    whole = {"init": "he", "optimizer.lr": 0.2}
    assert read(enqueue=[whole]).enqueue == (whole,)
    assert refused(enqueue=[whole, "init=he"]) == [
        "hydra.sweeper.enqueue[1] must be a whole point of the grid, got init=he"
    ]


@pytest.mark.parametrize("url", ["sqlite://", "sqlite:///", "sqlite:///:memory:", None])
def test_a_study_in_memory_is_one_that_is_not_kept(url):
    assert read(storage=url).storage is None


def test_a_file_is_named_by_its_whole_path(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    assert read().storage == f"sqlite:///{tmp_path}/outputs/studies.db"
    assert read(storage="sqlite:///a.db").storage == f"sqlite:///{tmp_path}/a.db"
    assert read(storage="sqlite:////b/a.db").storage == "sqlite:////b/a.db"
    assert read(storage="postgresql://ann@db/x").storage == "postgresql://ann@db/x"


def test_all_mistakes_are_said_together():
    lines = refused(
        [*LISTS, "batch.size=interval(2,1)"],
        n_trials=0,
        sampler="tpee",
        pruner="medain",
        direction="up",
        constraints={"steps": "few", "seconds": "<= 1", "val_loss": "low"},
        study_name="a/b",
    )

    assert [line.split()[0] for line in lines] == [
        "hydra.sweeper.n_trials",
        "batch.size",
        "hydra.sweeper.sampler",
        "hydra.sweeper.direction",
        "hydra.sweeper.pruner",
        "hydra.sweeper.constraints.steps",
        "hydra.sweeper.constraints.val_loss",
        "hydra.sweeper.study_name",
    ]


def test_the_values_of_the_space_are_checked_beside_other_mistakes():
    def check(space):
        raise InputError(f"{space.parameters[0].path} is bad")

    with pytest.raises(InputError) as caught:
        plan.read({"n_trials": 0}, LISTS, "sweepstack", check)

    assert caught.value.mistakes == [
        "hydra.sweeper.n_trials must be >= 1, got 0",
        "init is bad",
    ]


# --- constraints ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "relation", "bound"),
    [
        ("<= 100000", "<=", 100000.0),
        (">=0.9", ">=", 0.9),
        ("  <=  -1e-3 ", "<=", -1e-3),
        (">= +2E2", ">=", 200.0),
    ],
)
def test_a_bound_is_read(text, relation, bound):
    assert read(constraints={"steps": text}).constraints == (Constraint("steps", relation, bound),)


def test_no_constraints_are_none():
    assert read(constraints={}).constraints == ()


@pytest.mark.parametrize("text", ["< 5", "<=", "<= ten", "5", 5, None, "<= nan", "<= 1e", "== 3"])
def test_anything_else_is_refused_with_an_example(text):
    [line] = refused(constraints={"steps": text, "seconds": "<= 1"})
    assert line.startswith('hydra.sweeper.constraints.steps must look like "<= 100000" or ">= 0.9"')
    assert line.endswith(f"got {text!r}")


@pytest.mark.parametrize("given", [5, "<= 5", ["<= 5"]])
def test_what_is_no_mapping_is_refused(given):
    [line] = refused(constraints=given)
    assert line.startswith("hydra.sweeper.constraints must look like {num_parameters:")


@pytest.mark.parametrize(
    ("relation", "value", "violation"),
    [("<=", 3.0, -2.0), ("<=", 5.0, 0.0), ("<=", 6.5, 1.5), (">=", 3.0, 2.0), (">=", 6.5, -1.5)],
)
def test_the_violation_is_above_zero_on_the_wrong_side(relation, value, violation):
    assert Constraint("x", relation, 5.0).violation({"x": value, "y": 0.0}) == violation


@pytest.mark.parametrize("numbers", [{}, {"x": math.nan}])
def test_a_number_that_a_trial_has_not_has_no_violation(numbers):
    assert Constraint("x", "<=", 5.0).violation(numbers) is None
