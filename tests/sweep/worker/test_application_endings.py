"""How trials of other applications end: badly, pruned by what they report, or as they should."""

from __future__ import annotations

import yaml
from app_support import App, states

ENDINGS = """
    import math
    import sys
    import hydra

    class Odd:
        def __float__(self):
            raise RuntimeError("no data")
        __str__ = __repr__ = __float__

    class Sly(Exception):
        def __str__(self):
            raise RuntimeError("no text")

    class Items(list):
        def __iter__(self):
            raise RuntimeError("no items")

    ENDS = {"odd": Odd(), "items": Items(), "complex": 1j, "mapping": {},
            "text": "much", "nothing": None, "undefined": math.nan, "endless": -math.inf}

    @hydra.main(version_base=None, config_path="conf", config_name="config")
    def app(cfg):
        if cfg.ends == "raises":
            raise KeyError("no such layer")
        if cfg.ends == "sly":
            raise Sly
        if cfg.ends == "exits":
            sys.exit(7)
        return ENDS.get(cfg.ends, "1.5")

    if __name__ == "__main__":
        app()
"""
ENDINGS_CONFIG = """
    defaults: [override hydra/sweeper: sweepstack]
    hydra:
      sweeper: {study_name: endings, storage: "sqlite:///studies.db", max_failure_rate: 1}
    ends: fine
"""


def test_a_trial_that_ends_badly_fails_alone_and_says_why(tmp_path):
    app = App(tmp_path, ENDINGS, ENDINGS_CONFIG)
    done = app.sweep(
        "ends=raises,exits,text,nothing,undefined,endless,odd,items,complex,mapping,sly,fine",
        *("hydra.sweep.dir=sweep", "hydra.sweep.subdir=j${hydra.job.num}"),
    )

    trials = app.trials("endings")
    assert states(trials) == [*["FAIL"] * 11, "COMPLETE"]
    why = {trial.params["ends"]: trial.user_attrs.get("error") for trial in trials}
    assert why == {
        "raises": "KeyError: 'no such layer'",
        "exits": "SystemExit: 7",
        "text": "the task must return a number, got much",
        "nothing": "the task must return a number, got None",
        "undefined": "the objective became nan",
        "endless": "the objective became -inf",
        "odd": "the task must return a number, got a Odd",
        "items": "the task must return a number, got []",
        "complex": "the task must return a number, got 1j",
        "mapping": "the task must return a number, got {}",
        "sly": "Sly: a Sly",
        "fine": None,
    }
    assert trials[-1].value == 1.5
    results = yaml.safe_load((tmp_path / "sweep" / "optimization_results.yaml").read_text())
    assert results["best_params"] == {"ends": "fine"}
    assert "Traceback" not in done.stdout
    job_log = (tmp_path / "sweep" / "j0" / "app.log").read_text()
    assert 'raise KeyError("no such layer")' in job_log


PRUNED = """
    import hydra
    import sweepstack

    @hydra.main(version_base=None, config_path="conf", config_name="config")
    def app(cfg):
        for step in range(1, 6):
            sweepstack.report(cfg.x / step, step)
        print(f"x={cfg.x} went to the end")
        return cfg.x / step

    if __name__ == "__main__":
        app()
"""
PRUNED_CONFIG = """
    defaults: [override hydra/sweeper: sweepstack, override hydra/sweeper/pruner: median]
    hydra:
      sweeper:
        study_name: pruned
        storage: sqlite:///studies.db
        pruner: {n_startup_trials: 2, n_min_trials: 2}
    x: 1
"""


def test_report_ends_what_the_pruner_condemns(tmp_path):
    app = App(tmp_path, PRUNED, PRUNED_CONFIG)
    alone = app("x=2")
    done = app.sweep("x=1,2,9,0.5", "hydra.sweeper.pruner.n_warmup_steps=2")
    trials = app.trials("pruned")

    assert alone.stdout == "x=2 went to the end\n"  # without a sweep a report does nothing
    assert states(trials) == ["COMPLETE", "COMPLETE", "PRUNED", "COMPLETE"]
    assert trials[0].intermediate_values == {step: 1 / step for step in range(1, 6)}
    assert max(trials[2].intermediate_values) < 5
    assert "x=9" not in done.stdout

    app.sweep(
        *("x=1,2,9,0.5", "hydra/sweeper/pruner=threshold", "hydra.sweeper.study_name=threshold"),
        *("~hydra.sweeper.pruner.n_startup_trials", "~hydra.sweeper.pruner.n_min_trials"),
        "hydra.sweeper.pruner.upper=1.5",
    )
    trials = app.trials("threshold")
    assert states(trials) == ["COMPLETE", "PRUNED", "PRUNED", "COMPLETE"]
    assert [list(trial.intermediate_values) for trial in trials[1:3]] == [[1], [1]]
