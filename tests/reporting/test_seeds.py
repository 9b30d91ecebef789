"""Every reader of a study has one rule for seeds: `training.seed` is one, `data.split_seed` not."""

from __future__ import annotations

import io

import pytest
from doctor_support import made, said
from rich.console import Console

from sweepstack.analysis import terminal
from sweepstack.reporting import report
from sweepstack.study.view import StudyView

ARGUMENTS = ("init=he,ones", "data.split_seed=0,1", "training.seed=range(0,3)")


@pytest.fixture
def view() -> StudyView:
    """Two initializations on two splits, each with three seeds; splits differ by far more."""
    return made(
        ARGUMENTS,
        [
            {
                "params": {"init": init, "data.split_seed": split, "training.seed": seed},
                "value": 0.5 + 0.1 * (init == "he") + 0.3 * split + 0.01 * seed,
            }
            for init in ("he", "ones")
            for split in (0, 1)
            for seed in range(3)
        ],
    )


def test_the_terminal_averages_over_seeds_and_not_over_splits(view: StudyView) -> None:
    console = Console(file=io.StringIO(), width=80)
    terminal.show(view, console)
    lines = console.file.getvalue().splitlines()  # type: ignore[attr-defined]
    assert lines[0].endswith("mean ± std, n=3")
    assert "init" in lines[1]
    assert "data.split_seed" in lines[1]
    assert "training.seed" not in "".join(lines)


def test_the_doctor_takes_seeds_for_noise_and_splits_for_a_setting(view: StudyView) -> None:
    [finding] = said(view, "seed-noise", "hint", "fact")
    assert "the best of 4 configurations leads by more" in finding.text
    assert "over 3 seeds" in finding.text


def test_the_report_averages_over_seeds_and_not_over_splits(view: StudyView, tmp_path) -> None:
    page = report.write(view, tmp_path / "s.html").read_text("utf-8")
    assert "Means by init and data.split_seed" in page


def test_the_frame_has_both_as_keys(view: StudyView) -> None:
    assert list(view.frame.attrs["keys"]) == ["init", "data.split_seed", "training.seed"]
    assert view.seeds == ["training.seed"]
