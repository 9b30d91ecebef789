"""What `sweepstack -m` says to a mistake: one line each, its exit code, nothing left behind."""

from __future__ import annotations

import sys

import pytest

from sweepstack.cli import study
from sweepstack.config.errors import EnvironmentFault

SWEPT = "optimizer.lr=0.1,0.2"
TWO = "hydra.sweeper.n_trials=2"
INTERVAL = "optimizer.lr=interval(0.1,1)"
SAMPLERS = "tpe, random, qmc, grid, gp, nsgaii, nsgaiii, cmaes, brute_force"
PRUNERS = "none, median, percentile, asha, hyperband, patient, threshold, wilcoxon"
MULTI = (
    "hydra.sweeper.objectives=[val_accuracy,num_parameters]",
    "hydra.sweeper.directions=[maximize,minimize]",
)
HOOK = "hydra.sweeper.custom_search_space must name a function (config, trial)"
MANY = ("hydra.sweeper.n_trials=0", "optimizer.lr=0.1,-1", "batch.size=0", "init=he,hee")


def refused(main, *arguments, code=2):
    """The lines that are said, without "sweepstack: "; there is nothing but them."""
    ended = main("-m", *arguments)
    assert (ended.code, ended.out) == (code, ""), ended
    assert all(line.startswith("sweepstack: ") for line in ended.lines), ended.err
    return [line.removeprefix("sweepstack: ") for line in ended.lines]


# arguments, and parts of the one line
SPACE = [
    (["init=choice()"], ["init must offer at least one value, got choice()"]),
    (["init=chioce(he,xavier)"], ["'chioce'", "did you mean 'choice'?"]),
    (["hydra/sweeper/sampler=grid", INTERVAL], ["sampler grid needs lists", "optimizer.lr"]),
    (["hydra/sweeper/sampler=brute_force", INTERVAL, TWO], ["brute_force needs lists or ranges"]),
    (["optimizer.lr=interval(1,0.1)", TWO], ["optimizer.lr must have low <= high, got"]),
    (["optimizer.lr=tag(log,interval(0,1))", TWO], ["optimizer.lr must be > 0 to be drawn"]),
    (["optimizer.lrr=0.1,0.2"], ["unknown key 'optimizer.lrr'; did you mean 'optimizer.lr'?"]),
    (["hydra.sweeper.params={optimizer.lrr: '1,2'}"], ["did you mean 'optimizer.lr'?"]),
    (["optimizer.lr=0.1,-1"], ["optimizer.lr must be > 0, got -1"]),
    (["optimizer.lr=0.1,a"], ["optimizer.lr must be a number, got 'a'"]),
    (["regularization.dropout=interval(0,2)", TWO], ["dropout must be < 1, got 2.0"]),
    (["init=he,xavierr"], ["init must be one of he,", "did you mean 'xavier'?"]),
    (["init=null,he"], ["init must be one of he,", "got 'null'"]),
    (["optimizer.lr=0.1,0.1"], ["optimizer.lr offers 0.1 twice"]),
    ([SWEPT, SWEPT], ["optimizer.lr is given 2 times, a swept key only once"]),
    (["optimizer.lr=0.1,"], ["'optimizer.lr=0.1,' cannot be read: it must look like KEY=VALUE"]),
    (["batch.size=64,100000"], ["batch.size must be <= the", "of digits, got 100000"]),
    (["model=mlp,convnet", "data=quadratic"], ["model=convnet needs pictures"]),
    (["training.seeds=1,2"], ["training.seeds must be the same in the whole sweep"]),
    (["objective=val_loss,val_accuracy"], ["objective must be the same in the whole sweep"]),
    (["data=quadratic,digits"], ["the same objective, got val_mse and val_accuracy"]),
    (["hydra.sweeper.params=5"], ["hydra.sweeper.params must look like {init: 'he,xavier'"]),
    (["hydra.sweeper.conditions=5"], ["hydra.sweeper.conditions must look like {"]),
    ([INTERVAL], ["optimizer.lr is continuous", "set hydra.sweeper.n_trials"]),
    (
        [
            *("hydra/sweeper/sampler=grid", "optimizer=sgd,adam", "optimizer.momentum=0,0.9"),
            "hydra.sweeper.conditions={optimizer.momentum: {optimizer: sgd}}",
        ],
        ["hydra.sweeper.sampler grid cannot have conditions: leave n_trials out"],
    ),
]
SWEEPER = [
    (["hydra/sweeper/sampler=tpee"], ["hydra/sweeper/sampler must be one of", "gp", "'tpe'?"]),
    (["hydra.sweeper.sampler.name=tpee"], [SAMPLERS, "did you mean 'tpe'?"]),
    (["hydra/sweeper/pruner=medain"], ["hydra/sweeper/pruner must be one of", "'median'?"]),
    (["hydra.sweeper.pruner.name=medain"], [PRUNERS, "did you mean 'median'?"]),
    (
        ["hydra/sweeper=sweepstacks"],
        ["must be one of basic, sweepstack, got", "mean 'sweepstack'?"],
    ),
    (["hydra.sweeper.n_trails=5"], ["n_trails'; did you mean 'hydra.sweeper.n_trials'?"]),
    (
        ["+hydra.sweeper.n_trails=5"],
        ["unknown key 'hydra.sweeper.n_trails', it has n_jobs,", "did you mean 'n_trials'?"],
    ),
    (["hydra.sweeper.n_trials=0"], ["hydra.sweeper.n_trials must be >= 1, got 0"]),
    (["hydra.sweeper.n_trials=1,2"], ["hydra.sweeper.n_trials must have one value"]),
    (["hydra.sweeper.n_trials=${nothing}"], ["hydra.sweeper.n_trials: ", "'nothing' not found"]),
    (["hydra.sweeper=5"], ["hydra.sweeper must be a group of settings, got 5"]),
    (["hydra.sweeper.max_failure_rate=2"], ["hydra.sweeper.max_failure_rate must be <= 1, got 2"]),
    (["hydra.sweeper.study_name=a/b"], ["study_name must be a name that a folder can", "'a/b'"]),
    (["hydra.sweeper.study_name=''"], ["study_name must be a name that a folder can have"]),
    (["hydra.sweeper.study_name=.."], ["study_name must be a name that a folder can have"]),
    ([f"hydra.sweeper.study_name={'ü' * 101}"], ["no '/', at most 200 bytes"]),
    (["hydra.sweeper.max_restarts=???"], ["hydra.sweeper.max_restarts must be given, got ???"]),
    (["hydra.sweeper.sampler.seed=???"], ["hydra.sweeper.sampler.seed must be given, got ???"]),
    (["hydra.sweeper._target_=os.system"], ["no sweeper 'os.system' is installed"]),
    (
        ["hydra.sweeper._target_=hydra._internal.core_plugins.basic_sweeper.BasicSweeper"],
        ["hydra.sweeper._target_ must be left to the group hydra/sweeper: "],
    ),
    (["hydra.launcher._target_=os.system"], ["hydra.launcher cannot be used: "]),
    (["hydra.sweep.dir=mine"], ["must be left out, got 'mine'", "hydra.sweeper.study_name"]),
    (["a" * 5000 + "=1"], ["aaa…: File name too long"]),
    (["optimizer=adam," + "a" * 5000], ["aaa…: File name too long"]),
    (["=1"], ["'=1' must have the form KEY=VALUE"]),
    (["hydra.sweeper.on_mismatch=old"], ["on_mismatch must be one of refuse, new, got 'old'"]),
    (["hydra/sweeper/sampler=cmaes", TWO], ["unpickles", "hydra.sweeper.trusted_storage=true"]),
    (["+sweeps=init_activation_gird"], ["sweeps must be one of", "'init_activation_grid'?"]),
    (["sweeps=init_activation_grid"], ["must be written '+sweeps=init_activation_grid'"]),
]
QUESTION = [
    (["hydra/sweeper/pruner=median", *MULTI], ["pruner must be none with 2 objectives"]),
    (
        ["hydra/sweeper/pruner=median", "hydra.sweeper.objectives=[val_accuracy,val_loss]"],
        ["pruner must be none with 2 objectives"],
    ),
    ([MULTI[0]], ["hydra.sweeper.directions must be given: num_parameters can be"]),
    ([MULTI[1]], ["objectives and directions must be equally many, got none and maximize,"]),
    (["hydra.sweeper.objectives=[num_parameters]"], ["hydra.sweeper.direction must be given"]),
    (["hydra.sweeper.direction=minimize"], ["must be maximize for the objective val_accuracy"]),
    (["hydra.sweeper.direction=up"], ["direction must be one of minimize, maximize, got 'up'"]),
    (["hydra.sweeper.objectives=[val_acuracy]"], ["did you mean 'val_accuracy'?"]),
    (["hydra.sweeper.objectives=[test_accuracy]"], ["must be among", "got 'test_accuracy'"]),
    (
        ["hydra.sweeper.objectives=[val_loss]", "hydra/sweeper/pruner=median"],
        ["pruner must be none: it compares by val_accuracy,", "set objective=val_loss instead"],
    ),
    (["hydra.sweeper.enqueue=[{optimizer.lr: 0.5}]"], ["enqueue[0]: optimizer.lr must be one of"]),
    (["hydra.sweeper.enqueue=[{init: he}]"], ["enqueue[0]: init is not in the search space"]),
    (["hydra.sweeper.enqueue=5"], ["hydra.sweeper.enqueue must look like [{", ", got 5"]),
    (["hydra.sweeper.enqueue=[5]"], ["enqueue[0] must look like {optimizer.lr: 0.1, init: he}"]),
    (["hydra.sweeper.constraints={num_parameters: few}"], ['must look like "<= 100000"', "'few'"]),
    (["hydra.sweeper.constraints={num_paramters: '<= 5'}"], ["did you mean 'num_parameters'?"]),
    (["hydra.sweeper.constraints=5"], ['constraints must look like {num_parameters: "<= 1']),
    (["hydra.sweeper.custom_search_space=nowhere.f", TWO], [HOOK, "No module named 'nowhere'"]),
    (["hydra.sweeper.custom_search_space=math.nof", TWO], [HOOK, "no attribute 'nof'"]),
    (["hydra.sweeper.custom_search_space=math.pi", TWO], [HOOK, "which is no function"]),
    (["hydra.sweeper.custom_search_space=math.sin"], ["n_trials must be given beside custom"]),
]


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        *SPACE,
        *(([*more, SWEPT], parts) for more, parts in (*SWEEPER, *QUESTION)),
    ],
    ids=lambda item: item[0][:60] if isinstance(item[0], str) else None,
)
def test_a_mistake_is_one_line_and_leaves_nothing(main, tmp_path, arguments, parts):
    [line] = refused(main, *arguments)

    assert [part for part in parts if part not in line] == [], line
    assert list(tmp_path.iterdir()) == []


def test_several_mistakes_are_a_line_each(main, tmp_path):
    lines = refused(main, *MANY)

    for key in ("hydra.sweeper.n_trials", "optimizer.lr", "batch.size", "init"):
        assert len([line for line in lines if line.startswith(f"{key} must")]) == 1, lines
    assert len(lines) == 4
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("scheme", ["postgresql", "postgresql+psycopg2", "mysql"])
def test_a_storage_without_its_driver_is_named_without_the_password(
    main, tmp_path, monkeypatch, scheme
):
    for driver in ("psycopg", "psycopg2", "pymysql", "MySQLdb"):
        monkeypatch.setitem(sys.modules, driver, None)
    url = f"{scheme}://user:secret@127.0.0.1:1/x"

    [line] = refused(main, SWEPT, f"hydra.sweeper.storage={url}", code=3)
    with pytest.raises(EnvironmentFault) as listed:
        study.run(["list", "--storage", url])

    extra = {"postgresql": "sweepstack[postgresql]", "mysql": "sweepstack[mysql]"}
    assert "user:***@127.0.0.1:1/x needs the package" in line
    assert line.endswith(f"pip install '{extra.get(scheme, 'psycopg2')}'")
    assert str(listed.value) == line
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("data", ["data=mnist", "data=digits,mnist"])
def test_missing_data_are_said_before_any_trial_of_theirs(main, tmp_path, data):
    [line] = refused(main, SWEPT, data, code=3)

    assert line.startswith("mnist is not at data/MNIST/raw: ")
    assert list(tmp_path.iterdir()) == []


def test_a_user_sees_the_line_and_the_code(sweepstack, tmp_path):
    ended = sweepstack("-m", "optimizer.lr=0.1,-1", "data=quadratic")

    assert (ended.returncode, ended.stdout) == (2, "")
    assert ended.stderr == "sweepstack: optimizer.lr must be > 0, got -1\n"
    assert list(tmp_path.iterdir()) == []
