"""What pruning saves: a TPE sweep with asha against the same sweep without pruning.

    uv run python benchmarks/pruning.py [--root FOLDER_WITH_MNIST] [--seeds 3] [--trials 60]

Runs sweeps/regularization_tpe on MNIST for each sweep seed, with `pruner=asha` as the file says and
with `pruner=none`, each in a study of its own in a temporary folder. Counts training steps, which
do not depend on how busy the machine is, and prints the best validation accuracy of each sweep and
how it grew with the steps. Pruned trials' steps are counted too.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import tempfile
from itertools import pairwise
from pathlib import Path

import optuna
import torch
from optuna.trial import TrialState

PRUNERS = ("none", "asha")
SHARES = (0.1, 0.25, 0.5, 1.0)
"""Shares of the unpruned sweep's steps at which the best so far is printed."""


def sweep(pruner: str, seed: int, trials: int, root: str, folder: Path) -> optuna.Study:
    """Run one sweep in a process of its own and return its study."""
    name = f"{pruner}_{seed}"
    words = [
        "+sweeps=regularization_tpe",
        *("data=mnist", f"data.root={root}"),
        f"hydra/sweeper/pruner={pruner}",
        f"hydra.sweeper.sampler.seed={seed}",
        f"hydra.sweeper.n_trials={trials}",
        f"hydra.sweeper.study_name={name}",
    ]
    subprocess.run(
        [sys.executable, "-m", "sweepstack", "-m", *words],
        cwd=folder,
        check=True,
        stdout=subprocess.DEVNULL,
    )
    return optuna.load_study(study_name=name, storage=f"sqlite:///{folder}/outputs/studies.db")


def curve(study: optuna.Study) -> list[tuple[int, float]]:
    """(steps spent, best value so far) after each trial, in the order in which they ended."""
    ended = [t for t in study.trials if t.state in (TrialState.COMPLETE, TrialState.PRUNED)]
    ended.sort(key=lambda trial: trial.datetime_complete)  # type: ignore[arg-type, return-value]
    steps, best, found = 0, float("-inf"), []
    for trial in ended:
        steps += trial.user_attrs["steps"]
        if trial.state == TrialState.COMPLETE and trial.value is not None:
            best = max(best, trial.value)
        found.append((steps, best))
    return found


def best_at(points: list[tuple[int, float]], steps: float) -> float:
    """The best value that had been found when `steps` were spent."""
    return max((best for spent, best in points if spent <= steps), default=float("nan"))


def main() -> None:
    """Run the sweeps in turn and print what each reached for how many steps."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--root", default="data")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--trials", type=int, default=60)
    given = parser.parse_args()
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    root = str(Path(given.root).resolve())
    print(f"torch {torch.__version__}, optuna {optuna.__version__}, {given.trials} trials a sweep")
    shares = "  ".join(f"at {share:>4.0%}" for share in SHARES)
    print(f"seed  pruner  complete  pruned  steps    best    best so far, {shares} of none's steps")
    ratios, differences = [], []
    with tempfile.TemporaryDirectory() as folder:
        for seed in range(given.seeds):
            studies = {p: sweep(p, seed, given.trials, root, Path(folder)) for p in PRUNERS}
            points = {pruner: curve(study) for pruner, study in studies.items()}
            whole = points["none"][-1][0]
            for pruner in PRUNERS:
                states = [trial.state for trial in studies[pruner].trials]
                steps, best = points[pruner][-1]
                way = "  ".join(f"{best_at(points[pruner], s * whole):>7.4f}" for s in SHARES)
                print(
                    f"{seed:<4}  {pruner:<6}  {states.count(TrialState.COMPLETE):>8}"
                    f"  {states.count(TrialState.PRUNED):>6}  {steps:>7}  {best:.4f}  {way}",
                    flush=True,
                )
            (none, best), (asha, pruned_best) = points["none"][-1], points["asha"][-1]
            ratios.append(asha / none)
            differences.append(100 * (pruned_best - best))
            assert all(a <= b for (a, _), (b, _) in pairwise(points["asha"]))
    print(
        f"asha took {statistics.median(ratios):.0%} of the steps (median; "
        f"{', '.join(f'{ratio:.0%}' for ratio in ratios)}); its best differs by "
        f"{', '.join(f'{difference:+.2f}' for difference in differences)} points"
    )


if __name__ == "__main__":
    main()
