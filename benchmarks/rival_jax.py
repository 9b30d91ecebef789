"""The workload of throughput.py in JAX: a stack of trials by vmap, its 200 steps by one lax.scan.

    python rival_jax.py --root FOLDER [--trials 200] [--widths 1 8 16] [--shared-order] [--test]

Prints one line of JSON: for each width the median seconds of a trial in the stacks that make up
`--trials` trials (weights, batch order, 200 steps, validation) and, apart, the seconds of compiling
the stack's one program. Every trial has an order of batches of its own, as trials of sweepstack
have; `--shared-order` gives all trials of a stack the same batches, as sweepstack's data.order_seed
does. `--test` measures the test samples too.

Notation: S trials of a stack, B samples of a batch, T steps.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from typing import Any

import jax
import jax.numpy as jnp
import mnist
import numpy as np

STEPS, BATCH = 200, 64
SIZES = (784, 100), (100, 10)


def initial(key: Any) -> list[tuple[Any, Any]]:
    """He initialization of one trial's weights; biases are 0."""
    keys = jax.random.split(key, len(SIZES))
    return [
        (jax.random.normal(k, size) * (2 / size[0]) ** 0.5, jnp.zeros(size[1]))
        for k, size in zip(keys, SIZES, strict=True)
    ]


def forward(weights: Any, x: Any) -> Any:
    """From x (B, 784) to (B, 10)."""
    (w1, b1), (w2, b2) = weights
    return jax.nn.relu(x @ w1 + b1) @ w2 + b2


def loss(weights: Any, x: Any, y: Any) -> Any:
    """Mean cross entropy."""
    logs = jax.nn.log_softmax(forward(weights, x))
    return -jnp.take_along_axis(logs, y[:, None], axis=1).mean()


def trial(seed: Any, lr: Any, rows: Any, train: Any, val: Any) -> Any:
    """One whole trial: rows (T, B) of the samples; returns accuracies, the first on validation."""
    weights = initial(jax.random.key(seed))
    zeros = jax.tree.map(jnp.zeros_like, weights)
    x, y = train

    def step(carry: Any, batch: Any) -> Any:
        weights, mean, square = carry
        number, picked = batch
        slope = jax.grad(loss)(weights, x[picked], y[picked])
        mean = jax.tree.map(lambda m, g: 0.9 * m + 0.1 * g, mean, slope)
        square = jax.tree.map(lambda v, g: 0.999 * v + 0.001 * g * g, square, slope)
        rate, share = lr / (1 - 0.9**number), (1 - 0.999**number) ** 0.5
        weights = jax.tree.map(
            lambda w, m, v: w - rate * m / (jnp.sqrt(v) / share + 1e-8), weights, mean, square
        )
        return (weights, mean, square), None

    numbers = jnp.arange(1, STEPS + 1, dtype=jnp.float32)
    (weights, _, _), _ = jax.lax.scan(step, (weights, zeros, zeros), (numbers, rows))
    hits = forward(weights, val[0]).argmax(1) == val[1]
    return hits[: mnist.VALIDATION].mean(), hits.mean()  # both are needed, so both are computed


def order(width: int, samples: int, shared: bool, source: np.random.Generator) -> Any:
    """Rows of the batches: (S, T, B), or (T, B) when shared."""
    draws = [source.permutation(samples)[: STEPS * BATCH] for _ in range(1 if shared else width)]
    rows = np.stack(draws).astype(np.int32).reshape(-1, STEPS, BATCH)
    return rows[0] if shared else rows


def timed(width: int, trials: int, shared: bool, train: Any, val: Any) -> dict[str, float]:
    """Train enough stacks for `trials` trials."""
    stack = jax.jit(jax.vmap(trial, in_axes=(0, 0, None if shared else 0, None, None)))
    source = np.random.default_rng(0)
    samples = len(train[1])
    stacks = -(-trials // width)
    rates = np.logspace(-4, -1, stacks * width, dtype=np.float32).reshape(width, stacks).T.copy()
    seeds = np.arange(width)
    began = time.perf_counter()
    run = stack.lower(seeds, rates[0], order(width, samples, shared, source), train, val).compile()
    compiling = time.perf_counter() - began
    seconds, best = [], 0.0
    for number in range(stacks + 1):
        began = time.perf_counter()
        rows = order(width, samples, shared, source)
        accuracies = np.asarray(
            run(seeds + number * width, rates[number % stacks], rows, train, val)[0]
        )
        seconds.append((time.perf_counter() - began) / width)
        best = max(best, float(accuracies.max()))
    timing = statistics.median(seconds[1:])  # the first stack warms up
    return {"seconds": timing, "compiling": compiling, "best": best}


def main() -> None:
    """Time every width."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--root", required=True)
    parser.add_argument("--trials", type=int, default=200)
    parser.add_argument("--widths", type=int, nargs="+", default=[1, 8, 16, 32, 64])
    parser.add_argument("--shared-order", action="store_true")
    parser.add_argument("--test", action="store_true")
    given = parser.parse_args()
    if jax.default_backend() != "cpu":  # or it multiplies in tf32, as the others do not
        jax.config.update("jax_default_matmul_precision", "highest")
    splits = mnist.load(given.root, given.test)
    train, val = ((jnp.asarray(x), jnp.asarray(y.astype(np.int32))) for x, y in splits)
    widths = {w: timed(w, given.trials, given.shared_order, train, val) for w in given.widths}
    versions = f"jax {jax.__version__} on {jax.devices()[0].device_kind}"
    print(json.dumps({"widths": widths, "versions": versions}))


if __name__ == "__main__":
    main()
