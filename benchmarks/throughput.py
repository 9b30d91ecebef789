"""Trials per second: plain PyTorch, hydra-optuna-sweeper, JAX, and sweepstack.

    uv run python benchmarks/throughput.py --root FOLDER_WITH_MNIST [--hos PYTHON] [--jax PYTHON]
    uv run python benchmarks/throughput.py --grid --root FOLDER [-- data.subset=2000]
    uv run python benchmarks/throughput.py --memory
    uv run python benchmarks/throughput.py --models
    uv run python benchmarks/throughput.py --ablate --root FOLDER --trials 64
    uv run python benchmarks/throughput.py --steps --root FOLDER [--widths 1 16 64]

Without a flag: the 784-100-10 ReLU MLP (He init), Adam, 200 steps of 64 MNIST samples in [0, 1],
5,000 validation samples measured once at the end, 200 learning rates between 1e-4 and 0.1. Each
round runs, in a process of its own, on the same device and number of threads:
(a) a plain loop with a DataLoader and (b) one with index tensors on device-resident samples
    (rival_eager.py, median of 20 trials; loading the data is outside of the clock);
(c) hydra-optuna-sweeper, n_jobs=1, and with the joblib launcher, n_jobs=2 with half of the threads
    each, training as (a) does (rival_hydra.py; PYTHON also needs torch and hydra-joblib-launcher);
(d) JAX, vmap over a stack and lax.scan over steps (rival_jax.py), compiled outside of the clock;
    the ratios take the width that was best over all rounds;
(e) `sweepstack -m` at training.width=1 and (f) at training.width=auto, random sampler, an empty
    folder each time, so that (f) measures the width anew. sweepstack measures the 10,000 test
    samples of each trial as well; the others do so only with `--test`.

`training` is the engine's own time (the attribute `seconds` in e and f), `after start-up` runs from
the first trial's start to the last one's end as the study's database tells, `whole` is the
command's wall time; each divided by the trials. Ratios are medians of the rounds' ratios; above 1
means that (f) is faster. (a), (b) and (d) have only training time, which (f)'s three are held
against.

`--grid`: sweeps/mlp_mnist_200_steps, all 10,368 runs, once. `--memory`: grids, and random samplers,
of 100, 1,000 and 10,000 trials of 5 steps on data=quadratic; growth is that of the cost after a
tenth of the trials, which start-up does not hide. `--models`: (e) and (f) in turn for
every model of sweepstack on data=digits, 50 steps. `--ablate`: (f)'s training on the CPU without
each fast path, widths measured anew each time; one that gains under 10% goes. `--steps`: steps
alone of every model, precision and width, beside the plain loop and the floor (steps.py). Overrides
after `--` are added to sweepstack's own.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from pathlib import Path

from measured import Measure, answer, cores, hardware
from variants import HERE, PATHS, RATES, Benchmark

MODELS = {
    "mlp": ("model=mlp", "model.hidden=[100]"),
    "convnet": ("model=convnet",),
    "resnet": ("model=resnet",),
}
GRID = 10_368
KINDS = ("training", "after_start", "whole")
HEADS = ("training", "after start-up", "whole")


def number(value: float | None, scale: float = 1.0, width: int = 14, digits: int = 2) -> str:
    """A number for a table, or a dash."""
    return f"{'-':>{width}}" if value is None else f"{value * scale:>{width}.{digits}f}"


def typical(measures: list[Measure], kind: str) -> float | None:
    """Median over rounds."""
    values = [value for m in measures if (value := getattr(m, kind)) is not None]
    return statistics.median(values) if values else None


def ratios(rivals: list[Measure], ours: list[Measure]) -> list[float | None]:
    """How many times faster ours is, for each of KINDS; training time stands in for others."""
    found: list[float | None] = []
    for kind in KINDS:
        pairs = []
        for rival, mine in zip(rivals, ours, strict=True):
            theirs = rival.training if rival.whole is None else getattr(rival, kind)
            own = getattr(mine, kind)
            if theirs is not None and own is not None:
                pairs.append(theirs / own)
        found.append(statistics.median(pairs) if pairs else None)
    return found


def workload(given: argparse.Namespace) -> None:
    """(a) to (f), alternating."""
    benchmark = Benchmark(given)
    variants = benchmark.variants()
    found: dict[str, list[Measure]] = {name: [] for name in variants}
    for turn in range(given.rounds):
        for name, variant in variants.items():
            found[name].append(variant())
        print(f"round {turn + 1} of {given.rounds}: {hardware()}", flush=True)
    print(
        "\n".join(f"{k}: {v}, {benchmark.threads} threads" for k, v in benchmark.versions.items())
    )
    for name, python in (("(c) hydra-optuna-sweeper", given.hos), ("(d) JAX", given.jax)):
        if not python:
            print(f"{name}: not run")
    if benchmark.jax:
        jax_rows(benchmark, found["(d) JAX vmap+scan"])
    print(f"\nms per trial, {given.trials} trials, medians of {given.rounds} rounds")
    if given.test:
        print("every program measures the test samples as well")
    print(f"{'':30s}" + "".join(f"{head:>15}" for head in HEADS) + "  trials/s  peak MiB   best")
    for name, measures in found.items():
        cells = "".join(number(typical(measures, kind), 1e3, 15) for kind in KINDS)
        pace = typical(measures, "after_start") or typical(measures, "training")
        rest = (
            number(1 / pace if pace else None, 1, 10),
            number(typical(measures, "peak_mib"), 1, 10, 0),
        )
        print(f"{name:30s}{cells}{''.join(rest)}{number(typical(measures, 'best'), 1, 7, 3)}")
    *rivals, (last, ours) = found.items()
    print(f"\ntimes that {last} is faster than")
    for name, measures in rivals:
        print(f"{name:30s}" + "".join(number(r, 1, 15) for r in ratios(measures, ours)))


def jax_rows(benchmark: Benchmark, measures: list[Measure]) -> None:
    """Print JAX's widths, and fill in what the best one took in each round."""

    def seconds(width: int) -> float:
        return statistics.median(t["seconds"] for t in benchmark.jax[width])

    best = min(benchmark.jax, key=seconds)
    print("\n(d) width   ms per trial   compiling, s")
    for width, timings in sorted(benchmark.jax.items()):
        compiling = statistics.median(t["compiling"] for t in timings)
        print(f"{width:9d}{seconds(width) * 1e3:15.2f}{compiling:15.1f}{' *' * (width == best)}")
    for measure, timing in zip(measures, benchmark.jax[best], strict=True):
        measure.training, measure.best = timing["seconds"], timing["best"]


def grid(given: argparse.Namespace) -> None:
    """The published grid, every run."""
    words = ["+sweeps=mlp_mnist_200_steps", f"data.root={Path(given.root).resolve()}"]
    found = Benchmark(given).sweepstack(words, GRID)
    whole, after = (GRID * (value or 0.0) for value in (found.whole, found.after_start))
    print(
        f"{GRID} runs with validation and test: {after:.1f} s after start-up, {whole:.1f} s in all"
        f", {GRID / after:.1f} trials/s, peak {found.peak_mib:.0f} MiB, best {found.best:.4f}"
    )


def memory(given: argparse.Namespace) -> None:
    """How cost and memory grow with the number of trials."""
    benchmark = Benchmark(given)
    fixed = ["data=quadratic", "optimizer=sgd", "training.max_steps=5", "training.eval_every=5"]
    rates = ",".join(f"{step / 1000}" for step in range(1, 11))
    for sampler in ("grid", "random"):
        print(
            f"{sampler:7s} trials   s per 1,000: after start-up   after a tenth   in all   peak MiB"
        )
        rows: list[Measure] = []
        for trials in given.sizes:
            points = f"training.seed=range(0,{trials // 10})", f"optimizer.lr={rates}"
            drawn = "optimizer.lr=interval(0.001,0.01)", f"hydra.sweeper.n_trials={trials}"
            words = [*fixed, *(points if sampler == "grid" else drawn)]
            row = benchmark.sweepstack([*words, f"hydra/sweeper/sampler={sampler}"], trials)
            cells = number(row.after_start, 1e3, 28), number(row.steady, 1e3, 16)
            rest = number(row.whole, 1e3, 9), number(row.peak_mib, 1, 11, 0)
            print(f"{trials:14d}{''.join((*cells, *rest))}", flush=True)
            rows.append(row)
        some, many = rows[-2:]
        cost, peak = growth(some.steady, many.steady), growth(some.peak_mib, many.peak_mib)
        sizes = f"{given.sizes[-2]:,} to {given.sizes[-1]:,} trials"
        print(f"from {sizes}: cost per trial after a tenth x {cost}, peak memory x {peak}")


def growth(before: float | None, after: float | None) -> str:
    """How many times as much."""
    return f"{after / before:.2f}" if before and after else "-"


def models(given: argparse.Namespace) -> None:
    """Width 1 against auto for every model."""
    benchmark = Benchmark(given)
    n = min(given.trials, 64)
    print(f"times that width=auto is faster than width=1, {n} trials, {given.rounds} rounds")
    print(f"{'':10s}" + "".join(f"{head:>15}" for head in HEADS))
    for name, model in MODELS.items():
        found: dict[str, list[Measure]] = {"1": [], "auto": []}
        for _ in range(given.rounds):
            for width, measures in found.items():
                words = [
                    *("data=digits", *model, "training.max_steps=50", "training.eval_every=50"),
                    *(f"training.width={width}", f"optimizer.lr={RATES}"),
                    *(f"hydra.sweeper.n_trials={n}", "hydra/sweeper/sampler=random"),
                    "hydra.sweeper.sampler.seed=0",
                ]
                measures.append(benchmark.sweepstack(words, n))
        cells = "".join(number(ratio, 1, 15) for ratio in ratios(found["1"], found["auto"]))
        print(f"{name:10s}{cells}", flush=True)


def ablate(given: argparse.Namespace) -> None:
    """What each fast path of the CPU gains, rounds alternating."""
    benchmark = Benchmark(given)
    found: dict[str, list[dict[str, float]]] = {path: [] for path in PATHS}
    for turn in range(given.rounds):
        for path, measures in found.items():
            measures.append(benchmark.without(path))
        print(f"round {turn + 1} of {given.rounds}: {hardware()}", flush=True)
    print(
        f"\ntraining, ms a trial, {given.trials} trials, least and median of {given.rounds} rounds"
    )
    print(f"{'without':14s}{'least':>10}{'median':>10}{'gain':>8}  widths")
    whole = min(measure["seconds"] for measure in found["nothing"])
    for path, measures in found.items():
        seconds = [measure["seconds"] for measure in measures]
        least, middle = min(seconds), statistics.median(seconds)
        widths = ", ".join(str(measure["width"]) for measure in measures)
        print(f"{path:14s}{least * 1e3:10.1f}{middle * 1e3:10.1f}{least / whole:8.2f}  {widths}")


def steps(given: argparse.Namespace) -> None:
    """Microseconds per trial and step, the plain loop, the floor and its share of the best."""
    root = str(Path(given.root).resolve())
    command = [sys.executable, str(HERE / "steps.py"), "--root", root, "--device", given.device]
    command += ["--widths", *map(str, given.widths)] if given.widths else []
    threads = {"OMP_NUM_THREADS": str(given.threads or cores())}
    rows = answer(command, threads)
    print(f"microseconds per trial and step, least times of one run, {rows[0]['hardware']}")
    widths = list(rows[0]["widths"])
    heads = ["plain loop", *(f"width {width}" for width in widths), "floor", "share"]
    print(f"{'':14s}" + "".join(f"{head:>12}" for head in heads))
    for row in rows:
        times = [row["plain"], *row["widths"].values(), row["floor"]]
        best = min(time for time in row["widths"].values() if time is not None)
        cells = "".join(number(time, 1, 12, 1) for time in times)
        print(f"{row['model']:8s}{row['precision']:6s}{cells}{row['floor'] / best:>12.0%}")


def main() -> None:
    """Parse arguments and run one part."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    part = parser.add_mutually_exclusive_group()
    for flag in ("--grid", "--memory", "--models", "--ablate", "--steps"):
        part.add_argument(flag, action="store_true")
    parser.add_argument("--root", default="data", help="folder that holds MNIST/")
    parser.add_argument("--hos", help="python of an environment with hydra-optuna-sweeper")
    parser.add_argument("--jax", help="python of an environment with jax")
    parser.add_argument("--trials", type=int, default=200)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--device", default="auto", choices=("auto", "cpu", "cuda"))
    parser.add_argument("--threads", type=int, help="CPU threads; default: the cores")
    parser.add_argument("--widths", type=int, nargs="+", help="of JAX, or of --steps")
    parser.add_argument("--test", action="store_true", help="the others measure test data too")
    parser.add_argument("--sizes", type=int, nargs="+", default=[100, 1_000, 10_000])
    parser.add_argument(
        "overrides", nargs="*", help="after --: overrides of every sweepstack sweep"
    )
    given = parser.parse_args()
    print(hardware(), flush=True)
    chosen = {
        **{grid: given.grid, memory: given.memory, models: given.models},
        **{ablate: given.ablate, steps: given.steps},
    }
    next((run for run, wanted in chosen.items() if wanted), workload)(given)


if __name__ == "__main__":
    main()
