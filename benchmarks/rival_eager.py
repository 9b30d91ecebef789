"""The workload of throughput.py as a PyTorch user writes it by hand, one trial after the other.

    python rival_eager.py --root FOLDER [--resident] [--test] [--trials 20] [--device cpu]

Prints one line of JSON: seconds of each trial (building the model, 200 steps, validation), the best
validation accuracy, and what it ran on. `--resident` keeps the samples on the device and draws
batches with index tensors; without it a DataLoader gives them. `--test` measures the test samples
too. rival_hydra.py trains with the same function.
"""

from __future__ import annotations

import argparse
import functools
import json
import platform
import time
from collections.abc import Iterator

import mnist
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

STEPS, BATCH, EVALUATION = 200, 64, 500
Split = tuple[Tensor, Tensor]


@functools.cache
def load(root: str, device: str, test: bool) -> tuple[Split, Split]:
    """Training and validation (and test) samples as tensors on `device`."""
    train, val = mnist.load(root, test)
    x, y, val_x, val_y = (torch.from_numpy(array).to(device) for array in (*train, *val))
    return (x, y), (val_x, val_y)


def loaded(split: Split, size: int, shuffle: bool, device: str) -> Iterator[Split]:
    """One epoch of a DataLoader."""
    pairs = DataLoader(TensorDataset(*split), size, shuffle=shuffle, pin_memory=device != "cpu")
    for x, y in pairs:
        yield x.to(device), y.to(device)


def indexed(split: Split, size: int, shuffle: bool, device: str) -> Iterator[Split]:
    """One epoch of samples that lie on the device."""
    x, y = split
    rows = torch.randperm(len(x), device=device) if shuffle else None
    for start in range(0, len(x), size):
        part = slice(start, start + size)
        picked = part if rows is None else rows[part]
        yield x[picked], y[picked]


def train(lr: float, root: str, device: str, test: bool, resident: bool = False) -> float:
    """Train the 784-100-10 MLP for 200 steps; returns the validation accuracy."""
    samples, validation = load(root, device if resident else "cpu", test)
    batches = indexed if resident else loaded
    layers = nn.Linear(784, 100), nn.Linear(100, 10)
    model = nn.Sequential(layers[0], nn.ReLU(), layers[1])
    for layer in layers:
        nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
        nn.init.zeros_(layer.bias)
    model.to(device)
    optimizer = torch.optim.Adam(model.parameters(), lr=lr)
    for _, (x, y) in zip(range(STEPS), batches(samples, BATCH, True, device), strict=False):
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(model(x), y)
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    model.eval()
    hits = 0.0
    with torch.no_grad():
        for number, (x, y) in enumerate(batches(validation, EVALUATION, False, device)):
            right = (model(x).argmax(1) == y).sum().item()
            hits += right if number * EVALUATION < mnist.VALIDATION else 0
    return hits / mnist.VALIDATION


def main() -> None:
    """Time each trial."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--root", required=True)
    parser.add_argument("--trials", type=int, default=20)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--threads", type=int)
    parser.add_argument("--resident", action="store_true")
    parser.add_argument("--test", action="store_true")
    given = parser.parse_args()
    if given.threads:
        torch.set_num_threads(given.threads)
    cuda = torch.cuda.is_available() if given.device == "auto" else given.device != "cpu"
    device = "cuda" if cuda else "cpu"
    torch.manual_seed(0)
    seconds, best = [], 0.0
    for trial in range(given.trials + 1):
        lr = 10.0 ** (-4 + 3 * trial / given.trials)
        began = time.perf_counter()
        best = max(best, train(lr, given.root, device, given.test, given.resident))
        seconds.append(time.perf_counter() - began)
    found = {
        "seconds": seconds[1:],  # the first one warms up and reads the files
        "best": best,
        "device": torch.cuda.get_device_name() if cuda else "cpu",
        "threads": torch.get_num_threads(),
        "versions": f"torch {torch.__version__}, Python {platform.python_version()}",
    }
    print(json.dumps(found))


if __name__ == "__main__":
    main()
