"""The programs that throughput.py compares, (a) to (f); its head says what each one is.

Each variant runs in a process of its own, on the same device and number of CPU threads.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from collections.abc import Callable
from pathlib import Path

from measured import Measure, answer, cores, sweep

HERE = Path(__file__).resolve().parent
PATHS = ("nothing", "recording", "fused update", "parts", "all three")
"""What `--ablate` does without; ablation.py takes it away."""
RATES = "tag(log,interval(1e-4,1e-1))"


class Benchmark:
    """The variants (a) to (f) of the workload, each a method that runs once."""

    def __init__(self, given: argparse.Namespace):
        self.given = given
        self.threads = given.threads or cores()
        self.on = "cpu"
        self.test = ["--test"] if given.test else []
        self.root = str(Path(given.root).resolve())
        self.jax: dict[int, list[dict[str, float]]] = {}
        self.versions: dict[str, str] = {}

    def sweepstack(self, words: list[str], trials: int) -> Measure:
        """One sweep of sweepstack."""
        device = f"training.device={self.given.device}"
        command = [sys.executable, "-m", "sweepstack", "-m", *words, device, *self.given.overrides]
        return sweep(command, trials, variables={"OMP_NUM_THREADS": str(self.threads)})

    def stack(self, width: str) -> Measure:
        """(e) and (f)."""
        n = self.given.trials
        words = [
            *("data=mnist", f"data.root={self.root}", "model=mlp", "model.hidden=[100]"),
            *("model.activation=relu", "init=he", "optimizer=adam", "batch.size=64"),
            *("training.max_steps=200", "training.eval_every=200", f"training.width={width}"),
            *(f"optimizer.lr={RATES}", f"hydra.sweeper.n_trials={n}"),
            *("hydra/sweeper/sampler=random", "hydra.sweeper.sampler.seed=0"),
        ]
        return self.sweepstack(words, n)

    def without(self, path: str) -> dict[str, float]:
        """Training without a fast path: seconds per trial, and the width."""
        program = [sys.executable, str(HERE / "ablation.py"), "--without", path]
        words = [f"--root={self.root}", f"--trials={self.given.trials}"]
        variables = {"OMP_NUM_THREADS": str(self.threads)}
        found: dict[str, float] = answer([*program, *words, "--", *self.given.overrides], variables)
        return found

    def eager(self, *flags: str) -> Measure:
        """(a) and (b)."""
        found = answer(
            [
                *(sys.executable, str(HERE / "rival_eager.py"), "--root", self.root),
                *("--device", self.given.device, "--threads", str(self.threads)),
                *(*flags, *self.test),
            ]
        )
        self.versions["eager"] = f"{found['versions']} on {found['device']}"
        self.on = "cpu" if found["device"] == "cpu" else "cuda"
        return Measure(training=statistics.median(found["seconds"]), best=found["best"])

    def hydra(self, jobs: int) -> Measure:
        """(c)."""
        n = self.given.trials
        words = [
            *("-m", f"+root={self.root}", f"+device={self.on}", f"+lr={RATES}"),
            f"+test={str(self.given.test).lower()}",
            *("hydra/sweeper=optuna", "hydra/sweeper/sampler=random", "hydra.sweeper.study_name=a"),
            *("hydra.sweeper.sampler.seed=0", f"hydra.sweeper.n_trials={n}"),
            *(f"hydra.sweeper.n_jobs={jobs}", "hydra.sweeper.direction=maximize"),
            "hydra.sweeper.storage=sqlite:///studies.db",
        ]
        if jobs > 1:
            words += ["hydra/launcher=joblib", f"hydra.launcher.n_jobs={jobs}"]
        command = [self.given.hos, str(HERE / "rival_hydra.py"), *words]
        threads = str(max(1, self.threads // jobs))
        return sweep(command, n, "studies.db", {"OMP_NUM_THREADS": threads})

    @property
    def jax_widths(self) -> list[int]:
        """Wider stacks on a GPU, where more trials are trained at once than asked for."""
        wide = [256, 1024] if self.on == "cuda" else []
        return self.given.widths or [1, 8, 16, 32, 64, *wide]

    def scan(self) -> Measure:
        """(d): every width; the best one of this round."""
        found = answer(
            [
                *(self.given.jax, str(HERE / "rival_jax.py"), "--root", self.root),
                *("--trials", str(self.given.trials), "--widths", *map(str, self.jax_widths)),
                *self.test,
            ],
            {"NPROC": str(self.threads)},
        )
        self.versions["jax"] = found["versions"]
        for width, timing in found["widths"].items():
            self.jax.setdefault(int(width), []).append(timing)
        return Measure()  # which width counts is known after the last round

    def variants(self) -> dict[str, Callable[[], Measure]]:
        """What is run, by the names that are printed."""
        rivals: dict[str, Callable[[], Measure]] = {
            "(a) eager, DataLoader": self.eager,
            "(b) eager, resident data": lambda: self.eager("--resident"),
        }
        if self.given.hos:
            rivals["(c) hydra-optuna-sweeper"] = lambda: self.hydra(1)
            rivals["(c) the same, joblib n_jobs=2"] = lambda: self.hydra(2)
        if self.given.jax:
            rivals["(d) JAX vmap+scan"] = self.scan
        rivals["(e) sweepstack, width=1"] = lambda: self.stack("1")
        rivals["(f) sweepstack, width=auto"] = lambda: self.stack("auto")
        return rivals
