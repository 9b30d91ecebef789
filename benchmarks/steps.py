"""Steps alone: microseconds per trial and step, beside a plain loop and the floor of this machine.

    python steps.py --root FOLDER_WITH_MNIST [--widths 1 16 64] [--device cpu] [--seconds 1]
    python steps.py --root FOLDER_WITH_MNIST --models convnet resnet --widths 256 --ways

Prints one line of JSON. 64 MNIST samples, Adam, each model at each precision of the device. The
floor of a step is (a) its products, counted by torch.utils.flop_counter, at the rate of one large
matrix product in that precision, and (b) parameters, gradients and both moments once in and once
out at the bandwidth of one large copy. throughput.py prints the table.

With --ways it prints how each convolution of a stack may run, a line per layer and pass:
microseconds of every way and of the kernel's blocks ("implicit", then pixels, channels, depth,
warps, stages, span), the chosen one marked.
"""

from __future__ import annotations

import argparse
import copy
import json
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

import sweepstack
from sweepstack.engine import executors, width
from sweepstack.engine.program import Program
from sweepstack.models import autotune
from sweepstack.training import device

MODELS = {
    "mlp": ("model=mlp", "model.hidden=[100]"),
    "convnet": ("model=convnet",),
    "resnet": ("model=resnet",),
}
MANY_STEPS = 1e9  # of a sweep that is worth measuring everything
PRECISIONS = {"cpu": ("fp32",), "cuda": ("fp32", "tf32", "bf16")}


def timed(run: Callable[[], Any], place: torch.device, seconds: float) -> float:
    """The least time of a run, tried for some seconds after a first one."""
    taken: list[float] = []
    began = time.perf_counter()
    while len(taken) < 4 or time.perf_counter() - began < seconds:
        start = time.perf_counter()
        run()
        if place.type == "cuda":
            torch.cuda.synchronize(place)
        taken.append(time.perf_counter() - start)
    return min(taken[1:])


def machine(precision: str, place: torch.device) -> tuple[float, float]:
    """Numbers per second of a large matrix product, and bytes per second of a large copy."""
    side = 8192 if place.type == "cuda" else 1024
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    a = torch.rand(side, side, dtype=dtype, device=place)
    source = torch.rand(2**28 if place.type == "cuda" else 2**25, device=place)
    target = torch.empty_like(source)
    product = timed(lambda: a @ a, place, 0.5)
    moved = timed(lambda: target.copy_(source), place, 0.5)
    return 2 * side**3 / product, 2 * source.nbytes / moved


def plain(program: Program, precision: str, seconds: float) -> tuple[float, int]:
    """A hand-written step of one trial: its seconds, and the operations of its products."""
    module, place = copy.deepcopy(program.module).train(), program.device
    x = torch.rand(program.batch_size, *program.data.input_shape, device=place)
    y = program.data.train.y[: program.batch_size].to(place)
    optimizer = torch.optim.Adam(module.parameters(), lr=1e-4)

    def step() -> None:
        optimizer.zero_grad()
        with device.autocast(precision, place):
            outputs = module(x)
        F.cross_entropy(outputs.float(), y).backward()  # type: ignore[no-untyped-call]
        optimizer.step()

    step()
    with FlopCounterMode(display=False) as counter:
        step()
    return timed(step, place, seconds), counter.get_total_flops()


def ways(program: Program, precision: str, slots: int, steps: float) -> None:
    """Print how the convolutions of a stack run, measured as before so many steps of a sweep."""
    stepper = width._Stepper(program, slots)
    chooser = autotune.Chooser(stepper.tried, program.device, autotune.TOLERANCE[precision])
    chosen = chooser.chosen()
    first = copy.deepcopy(chooser.times)
    plan, measured = chooser.tuned(chosen, steps)
    each = ("forward", "input gradient", "weight gradient")
    for key, number in first:
        used = autotune.GROUPED if plan is None else plan.ways.get(key, autotune.GROUPED)
        times = first[key, number] | chooser.times[key, number]
        listed = [
            f"{1e6 * seconds:.0f} {way}{' (chosen)' * (way == used[number])}"
            for way, seconds in sorted(times.items(), key=lambda pair: pair[1])
        ]
        print(f"{key}, {each[number]}: {', '.join(listed)}")
    print(f"width {slots}, {precision}: {plan}, blocks measured: {measured}")


def row(given: argparse.Namespace, model: str, precision: str) -> dict[str, Any]:
    """One model at one precision: microseconds per trial and step."""
    spec = sweepstack.compose(
        *("data=mnist", f"data.root={given.root}", *MODELS[model], "batch.size=64"),
        *("optimizer=adam", "training.max_steps=200", f"training.device={given.device}"),
        f"training.precision={precision}",
    )
    program = Program.of(spec)
    if given.ways:
        with device.settings(spec.config.training):
            for slots in given.widths:
                ways(program, precision, slots, MANY_STEPS)
        return {}
    with device.settings(spec.config.training):
        alone, operations = plain(program, precision, given.seconds)
        rate, bandwidth = machine(precision, program.device)
        floor = operations / rate + 4 * 2 * 4 * program.num_parameters / bandwidth
        found: dict[int, float | None] = {}
        for slots in given.widths:
            try:
                width.plan(program, slots, steps=MANY_STEPS)
                stepper = width._Stepper(program, slots)
                stepper.seconds(executors.WARM_UP)
                least = timed(partial(stepper.seconds, 4), program.device, given.seconds) / 4
                found[slots] = 1e6 * least / slots
            except RuntimeError as error:
                if not device.out_of_memory(error):
                    raise
                found[slots] = None
    return {
        **{"model": model, "precision": precision, "widths": found},
        **{"plain": 1e6 * alone, "floor": 1e6 * floor},
        "hardware": device.describe(program.device),
    }


def main() -> None:
    """Every model and precision."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--root", required=True)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--widths", type=int, nargs="+")
    parser.add_argument("--models", nargs="+", default=[*MODELS], choices=MODELS)
    parser.add_argument("--seconds", type=float, default=1.0, help="of a timing")
    parser.add_argument("--ways", action="store_true", help="print how convolutions run")
    given = parser.parse_args()
    cuda = given.device.startswith("cuda") or (given.device == "auto" and torch.cuda.is_available())
    kind = "cuda" if cuda else "cpu"
    given.widths = given.widths or [*width.TRIED[kind]]
    pairs = [(model, precision) for model in given.models for precision in PRECISIONS[kind]]
    rows = [row(given, *pair) for pair in pairs]
    if not given.ways:
        print(json.dumps(rows))


if __name__ == "__main__":
    main()
