"""What many tests import: specs composed as the command line does, and where real data lie."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import pytest

from sweepstack.config import composition
from sweepstack.config import reading as config
from sweepstack.config.schema import RunConfig
from sweepstack.training.spec import TrialSpec

REPOSITORY = Path(__file__).resolve().parents[1]
SHARED_DATA = REPOSITORY.parent / "shared" / "data"

DEVICE = "cpu"
"""Where specs are trained; the contracts try others."""

needs_mnist = pytest.mark.skipif(
    not (SHARED_DATA / "MNIST").is_dir(), reason="MNIST is not at ../shared/data/MNIST"
)
needs_pictures = pytest.mark.skipif(
    not (SHARED_DATA / "cifar10_folder").is_dir(),
    reason="pictures are not at ../shared/data/cifar10_folder",
)


def make_spec(*overrides: str, number: int = 0, folder: Path | None = None) -> TrialSpec:
    """A trial as `sweepstack OVERRIDES` would train it, on `DEVICE`."""
    return TrialSpec(_composed((f"training.device={DEVICE}", *overrides)), number, folder)


@cache
def _composed(overrides: tuple[str, ...]) -> RunConfig:
    return config.read(composition.compose(overrides))


def without_report(arguments: tuple[str, ...]) -> list[str]:
    """A command line whose sweep writes no report, unless it says so itself: that takes seconds."""
    words = list(arguments)
    ours = "-m" in words and "hydra/sweeper=basic" not in words
    if ours and not any(
        word.startswith(("hydra.sweeper.report=", "hydra.sweeper=")) for word in words
    ):
        words.append("hydra.sweeper.report=false")
    return words
