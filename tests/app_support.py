"""Other Hydra applications for tests: written into a folder, run as their users would."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path
from textwrap import dedent
from typing import Any

import optuna
import warm
from support import without_report

from sweepstack import storage

optuna.logging.set_verbosity(optuna.logging.WARNING)


class App:
    """`app.py` (or another name) with `conf/config.yaml` beside it."""

    def __init__(self, folder: Path, code: str, config: str, name: str = "app.py"):
        self.folder, self.file = folder, folder / name
        self.file.write_text(dedent(code))
        (folder / "conf").mkdir()
        (folder / "conf" / "config.yaml").write_text(dedent(config))

    def __call__(self, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
        return warm.run(
            [self.file.name, *without_report(arguments)],
            self.folder,
            {**os.environ, "COLUMNS": "120", **environment},
        )

    def sweep(self, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
        """Run a sweep that must succeed."""
        done = self("-m", *arguments, **environment)
        assert done.returncode == 0, done.stdout + done.stderr
        assert "Traceback" not in done.stderr
        return done

    def trials(self, study: str, file: str = "studies.db") -> list[Any]:
        """The study's trials, by number."""
        opened = storage.connect(f"sqlite:///{self.folder / file}")
        return optuna.load_study(study_name=study, storage=opened).trials


def states(trials: list[Any]) -> list[str]:
    """The words for how trials ended."""
    return [trial.state.name for trial in trials]


def complaint(done: subprocess.CompletedProcess[str]) -> str:
    """The one line that a sweep ended with."""
    assert "Traceback" not in done.stderr, done.stderr
    (line,) = [text for text in done.stderr.splitlines() if text.startswith("sweepstack: ")]
    return line
