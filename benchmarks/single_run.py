"""One run: the engine against a plain hand-written PyTorch loop with a DataLoader.

    uv run python benchmarks/single_run.py [--root FOLDER_WITH_MNIST] [--runs 11] [--device cpu]

Both sides train the same model with the same optimizer, batch size and number of steps, evaluate
on the same validation samples at the same steps, keep the best state, and measure it on the test
samples. Loading the data is outside of the clock on both sides. The two alternate in one process;
the figures are medians over `--runs` pairs and the ratio is the median of the pairs' ratios.

Workloads: the 784-100-10 MLP on MNIST (made-up numbers of that shape when MNIST is not there) and
the convnet on made-up 3x32x32 pictures. Adam, lr 0.001, batch 64.
"""

from __future__ import annotations

import argparse
import copy
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from sweepstack import data
from sweepstack.config import composition
from sweepstack.config import reading as config
from sweepstack.data.dataset import Dataset, TensorSplit
from sweepstack.engine.program import Program
from sweepstack.engine.train import train
from sweepstack.training.device import describe
from sweepstack.training.spec import TrialSpec


def made_up(shape: tuple[int, ...], train_samples: int) -> Dataset:
    """A ten-class dataset of random numbers."""
    generator = torch.Generator().manual_seed(0)

    def split(samples: int) -> TensorSplit:
        x = torch.randn(samples, *shape, generator=generator)
        return TensorSplit(x, torch.randint(0, 10, (samples,), generator=generator))

    return Dataset(
        name="made up",
        train=split(train_samples),
        val=split(1000),
        test=split(1000),
        task="multiclass",
        classes=tuple(map(str, range(10))),
    )


def mlp() -> nn.Module:
    """The MLP as a person would write it."""
    return nn.Sequential(nn.Flatten(), nn.Linear(784, 100), nn.ReLU(), nn.Linear(100, 10))


def convnet() -> nn.Module:
    """The convnet as a person would write it."""
    return nn.Sequential(
        nn.Conv2d(3, 16, 5, padding=2),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(16, 32, 5, padding=2),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(32 * 8 * 8, 128),
        nn.ReLU(),
        nn.Linear(128, 10),
    )


def plain(
    build: Callable[[], nn.Module], dataset: Dataset, steps: int, every: int, device: torch.device
) -> float:
    """A plain loop; returns the test accuracy."""

    def loader(split: object, size: int, shuffle: bool) -> DataLoader[tuple[Tensor, ...]]:
        assert isinstance(split, TensorSplit)
        pinned = device.type == "cuda"
        pairs = TensorDataset(split.x, split.y)
        return DataLoader(pairs, size, shuffle=shuffle, drop_last=shuffle, pin_memory=pinned)

    def accuracy(samples: DataLoader[tuple[Tensor, ...]]) -> float:
        model.eval()
        hits = loss = 0.0
        seen = 0
        with torch.no_grad():
            for x, y in samples:
                x, y = x.to(device), y.to(device)
                outputs = model(x)
                loss += nn.functional.cross_entropy(outputs, y, reduction="sum").item()
                hits += (outputs.argmax(1) == y).sum().item()
                seen += len(y)
        model.train()
        return hits / seen

    torch.manual_seed(0)
    model = build().to(device)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.001)
    train_loader = loader(dataset.train, 64, True)
    val_loader, test_loader = loader(dataset.val, 512, False), loader(dataset.test, 512, False)
    best, state, step, running = -1.0, model.state_dict(), 0, 0.0
    while step < steps:
        for x, y in train_loader:
            optimizer.zero_grad()
            loss = nn.functional.cross_entropy(model(x.to(device)), y.to(device))
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            running += loss.item()
            step += 1
            if step % every == 0:
                reached = accuracy(val_loader)
                if reached > best:
                    best, state = reached, copy.deepcopy(model.state_dict())
            if step == steps:
                break
    model.load_state_dict(state)
    return accuracy(test_loader)


def compare(
    name: str, build: Callable[[], nn.Module], spec: TrialSpec, steps: int, every: int, runs: int
) -> None:
    """Alternate both sides and print medians."""
    program = Program.of(spec)
    pairs: list[tuple[float, float]] = []
    for run in range(runs + 1):
        began = time.perf_counter()
        plain(build, program.data, steps, every, program.device)
        middle = time.perf_counter()
        (result,) = train([spec])
        ended = time.perf_counter()
        assert result.state == "complete", result.error
        if run:  # the first pair warms up
            pairs.append((middle - began, ended - middle))
    theirs, ours = (statistics.median(side) for side in zip(*pairs, strict=True))
    ratio = statistics.median(a / b for a, b in pairs)
    print(
        f"{name:34s} plain loop {theirs * 1e3:8.1f} ms   engine {ours * 1e3:8.1f} ms   "
        f"plain / engine {ratio:5.2f}   n={runs}"
    )


def main() -> None:
    """Parse arguments and run both workloads."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--root", default="data", help="folder that holds MNIST/")
    parser.add_argument("--runs", type=int, default=11)
    parser.add_argument("--device", default="auto")
    arguments = parser.parse_args()

    def spec(*words: str) -> TrialSpec:
        return TrialSpec(
            config.read(composition.compose([*words, f"training.device={arguments.device}"]))
        )

    device = Program.of(spec()).device
    print(f"{describe(device)}, torch {torch.__version__}, Python {platform.python_version()}")
    words = ["data=mnist", f"data.root={arguments.root}", "training.max_steps=200"]
    workload = "MLP, MNIST, 200 steps"
    if not (Path(arguments.root) / "MNIST").is_dir():
        workload = "MLP, made-up 1x28x28, 200 steps"
        data.load = lambda config, trust=(): made_up((1, 28, 28), 55_000)
    compare(workload, mlp, spec(*words, "training.eval_every=100"), 200, 100, arguments.runs)
    data.load = lambda config, trust=(): made_up((3, 32, 32), 10_000)
    words = ["data=cifar10", "model=convnet", "training.max_steps=50", "training.eval_every=50"]
    compare("convnet, made-up 3x32x32, 50 steps", convnet, spec(*words), 50, 50, arguments.runs)


if __name__ == "__main__":
    main()
