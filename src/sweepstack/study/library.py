"""Studies found by name and opened for reading, with the folder in which their trials lie."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import optuna
from sqlalchemy import make_url
from sqlalchemy.exc import ArgumentError

from sweepstack.config.errors import InputError, masked, nearest
from sweepstack.study import storage
from sweepstack.study.attributes import FOLDER, SWEEP

if TYPE_CHECKING:
    import pandas as pd

MOST_NAMED = 8
"""Studies that are listed where a name is wrong."""


@dataclass(frozen=True)
class OpenStudy:
    """A study, opened.

    Attributes:
        study: Optuna's; of sweepstack or of any other program.
        where: URL or path of its storage.
    """

    study: optuna.Study
    where: str

    @property
    def name(self) -> str:
        """The study's."""
        return str(self.study.study_name)

    @property
    def asked(self) -> dict[str, Any]:
        """How sweepstack was asked for it: arguments, hydra (overrides of Hydra's own node),
        application, sampler, pruner, n_trials, grid; empty of other programs."""
        found = self.user_attrs.get(SWEEP)
        return found if isinstance(found, dict) else {}

    @cached_property
    def user_attrs(self) -> dict[str, Any]:
        """Attributes of the study, as they were when they were first asked for."""
        return self.study.user_attrs

    @property
    def folder(self) -> Path | None:
        """Where its trials have their folders, if that is to be found here: beside the database
        or under the working folder."""
        name = self.user_attrs.get(FOLDER)
        # It comes from the database, and decides which files are read.
        if not isinstance(name, str) or name != Path(name).name or name in ("", ".", ".."):
            return None
        roots = [place(self.where) / "studies", Path("outputs/studies")]
        return next((root / name for root in roots if (root / name).is_dir()), None)

    @cached_property
    def frame(self) -> pd.DataFrame:
        """One row per trial; see `frame.frame`."""
        from sweepstack.study.frame import frame

        return frame(self.study)

    @cached_property
    def history(self) -> pd.DataFrame:
        """One row per evaluation; see `history.history`."""
        from sweepstack.study.history import history

        return history(self.study, self.folder)


def open_study(name: str, where: str = storage.DEFAULT) -> OpenStudy:
    """Open a study for reading.

    Args:
        name: its name.
        where: as for `storage.look`.

    Raises:
        InputError: there is no such study; the nearest name is said.
        EnvironmentFault: the storage cannot be read.
    """
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    url, opened = storage.look(where)
    with storage.named(url):
        names = [study.study_name for study in opened.get_all_studies()]
        if name not in names:
            raise InputError(_unknown(name, names, url))
        return OpenStudy(optuna.load_study(study_name=name, storage=opened), url)


def _unknown(name: str, names: list[str], url: str) -> str:
    line = f"there is no study '{name}' in {masked(url) if '://' in url else url}"
    if not names:
        return f"{line}: it holds none"
    closest = nearest(name, names)
    if closest:
        return f"{line}{closest}"
    more = f" and {len(names) - MOST_NAMED} more" if len(names) > MOST_NAMED else ""
    return f"{line}, it holds {', '.join(names[:MOST_NAMED])}{more}"


def place(where: str) -> Path:
    """The folder of a SQLite file or a journal; of a server's database none that is known."""
    if "://" not in where or where.startswith("journal:///"):
        return Path(where.removeprefix("journal:///")).parent
    try:
        parsed = make_url(where)
    except (ArgumentError, ValueError):
        return Path("outputs")
    if parsed.get_backend_name() == "sqlite" and parsed.database:
        return Path(parsed.database).parent
    return Path("outputs")
