"""Hyperparameter sweeps for PyTorch: Hydra composes a run, one function trains it.

    import sweepstack
    result = sweepstack.run("model=convnet", "optimizer.lr=0.01")
    result.metrics["val_accuracy"], result.history, result.best_state

`sweepstack.engine.train.train(specs, monitor)` is the function underneath, for a stream of trials.
What studies found:

    df = sweepstack.results("init_activation_grid")
    sweepstack.best(df), sweepstack.pivot(df, "init", "model.activation")
    sweepstack.history("init_activation_grid")
    sweepstack.study("init_activation_grid").plot.curves(by=["init"])
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    import pandas as pd

    from sweepstack.reporting.notebook import Study
    from sweepstack.runs import RunResult
    from sweepstack.runs.prediction import Predictor
    from sweepstack.training.spec import TrialSpec


STORAGE = "sqlite:///outputs/studies.db"


def best(df: pd.DataFrame, n: int = 10) -> pd.DataFrame:
    """The `n` best complete trials of a frame of `results`, the best first.

    Raises:
        InputError: the study has several objectives.
    """
    from sweepstack.study import tables

    return tables.best(df, n)


def compose(*overrides: str, config_dir: str | None = None) -> TrialSpec:
    """The trial that `sweepstack OVERRIDES` would train, checked.

    Args:
        overrides: as on the command line, for example "optimizer.lr=0.01".
        config_dir: a folder with groups of your own.

    Raises:
        InputError: every mistake in the overrides, one line each.
    """
    from sweepstack.config import composition
    from sweepstack.config import reading as config
    from sweepstack.training.spec import TrialSpec

    return TrialSpec(config.read(composition.compose(overrides, config_dir)))


def history(study: str, storage: str = STORAGE, *, layers: bool = False) -> pd.DataFrame:
    """A study's evaluations, one row per trial, seed and step: the learning rate and metrics; or,
    with `layers`, what each layer does then, if trials had training.diagnostics=true.

    See `study.frame.history` and `engine.diagnostics` for the columns, `results` for arguments and
    errors.
    """
    from sweepstack.storage import above
    from sweepstack.study import view

    opened = view.open_study(study, above(storage))
    return opened.layers if layers else opened.history


def load(folder: str | Path, trust: Sequence[str] = ()) -> Predictor:
    """The trained model of a run's folder, in eval mode, with its normalization in front.

    `load("outputs/runs/DATE_TIME")(x)` maps raw samples (B, ...) to outputs: pictures are floats in
    [0, 1], whole numbers 0..255, or a PIL image; `.classes` are the names. See
    `runs.prediction.load` for arguments and errors.
    """
    from sweepstack.runs import prediction

    return prediction.load(folder, trust)


def pivot(
    df: pd.DataFrame, rows: str, columns: str | None = None, value: str | None = None
) -> pd.DataFrame:
    """Mean, std and n of the objective (or of the column `value`) for each value of a key, or of
    two: `pivot(df, "init", "model.activation")["mean"]` is a matrix, ready for a heatmap.

    See `study.tables.pivot` for the statistics and errors.
    """
    from sweepstack.study import tables

    return tables.pivot(df, rows, columns, value)


def report(value: float, step: int) -> None:
    """Report an intermediate value of a trial of a sweep, in any `@hydra.main` application.

        @hydra.main(config_path="conf", config_name="config")
        def app(cfg):
            for epoch in range(cfg.epochs):
                loss = train_one_epoch(cfg)
                sweepstack.report(loss, epoch)
            return loss

    With `hydra/sweeper=sweepstack` the value is kept in the study, and the trial ends here, as
    PRUNED, if `hydra/sweeper/pruner` prunes it. Outside of a sweep, and with several objectives,
    it does nothing.

    Args:
        value: the objective so far.
        step: how much has been spent: epochs, batches, folds. A step that was reported before
            keeps its first value.

    Raises:
        optuna.TrialPruned: the trial is pruned; let it pass, the sweeper catches it.
        InputError: value or step is no number.
    """
    application = sys.modules.get("sweepstack.sweep.worker.application")
    if application is not None:
        application.report(value, step)


def results(study: str | Sequence[str], storage: str = STORAGE) -> pd.DataFrame:
    """A study as a frame: one row per trial, a column per swept key, metric and attribute.

    See `study.frame.frame` for the columns. Units are in their names: duration_s, seconds (of
    training), gpu_seconds, samples_per_s.

    Args:
        study: its name; of several names the rows stand below each other, with a column `study`.
        storage: a database's URL, or the path of a SQLite file or of an Optuna journal. The default
            is also found in a folder above the working one, with a line on stderr.

    Raises:
        InputError: there is no such study.
        EnvironmentFault: the storage cannot be read.
    """
    from sweepstack.storage import above
    from sweepstack.study import view

    storage = above(storage)
    if isinstance(study, str):
        return view.open_study(study, storage).frame
    return view.joined([view.open_study(name, storage) for name in study])


def run(*overrides: str, config_dir: str | None = None) -> RunResult:
    """Train one run in this process and return its result; nothing is written.

    `.metrics` are those of the best state, `.history` is a frame with a row for each evaluation.

    Args:
        overrides, config_dir: as for `compose`.

    Raises:
        InputError: the config is wrong or does not fit its data.
        EnvironmentFault: the dataset or the device is missing.
        TrainingFailed: the loss became NaN, or the model raised.
    """
    from sweepstack.config.errors import InputError, TrainingFailed
    from sweepstack.engine.program import Program
    from sweepstack.engine.train import train
    from sweepstack.runs import framed

    spec = compose(*overrides, config_dir=config_dir)
    if spec.config.training.seeds > 1:
        raise InputError(
            "sweepstack.run trains one seed, training.seeds must be 1, got "
            f"{spec.config.training.seeds}: call it with training.seed=0, 1, ..."
        )
    if names := spec.config.logger.names:
        raise InputError(
            f"sweepstack.run writes nothing, logger must be none, got {','.join(names)}: the "
            "command sweepstack logs"
        )
    Program.of(spec)
    (result,) = train([spec])
    if result.state == "failed":
        raise TrainingFailed(f"the run failed: {result.error}")
    return framed(result)


def study(name: str, storage: str = STORAGE) -> Study:
    """A study for a notebook: `.trials`, `.history`, `.best`, `.pivot(...)`, and plotly figures by
    `.plot.heatmap()`, `.plot.curves(by=["init"])`, `.plot.importance()` and others.

    Arguments and errors are those of `results`.
    """
    from sweepstack.reporting import notebook

    return notebook.open_study(name, storage)


open_study = study
"""`study`, also once the package of that name is imported."""
