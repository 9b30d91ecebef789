"""What many tests need: specs composed as the command line does, real data, the command itself."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from iolaus import config
from iolaus.spec import TrialSpec

REPOSITORY = Path(__file__).resolve().parents[1]
SHARED_DATA = REPOSITORY.parent / "shared" / "data"

needs_mnist = pytest.mark.skipif(
    not (SHARED_DATA / "MNIST").is_dir(), reason="MNIST is not at ../shared/data/MNIST"
)
needs_pictures = pytest.mark.skipif(
    not (SHARED_DATA / "cifar10_folder").is_dir(),
    reason="pictures are not at ../shared/data/cifar10_folder",
)


def make_spec(*overrides: str, number: int = 0, folder: Path | None = None) -> TrialSpec:
    """A trial as `iolaus OVERRIDES` would train it, on the CPU."""
    cfg = config.compose(["training.device=cpu", *overrides])
    return TrialSpec(config.read(cfg), number=number, folder=folder)


@pytest.fixture
def spec():
    return make_spec


@pytest.fixture
def iolaus(tmp_path):
    """Run the command line in an empty folder: `iolaus("optimizer.lr=-1")`."""

    def run(*arguments: str, **settings):
        environment = {**os.environ, "COLUMNS": "100", **settings.pop("env", {})}
        return subprocess.run(
            [sys.executable, "-m", "iolaus", *arguments],
            cwd=settings.pop("cwd", tmp_path),
            env=environment,
            capture_output=True,
            text=True,
            timeout=300,
            **settings,
        )

    return run
