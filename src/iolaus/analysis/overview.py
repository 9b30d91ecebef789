"""`iolaus-study show`: how far a study is, its best trials, the pivot of what was swept.

Called by `cli.py`.
"""

from __future__ import annotations

import time

from rich.console import Console, Group
from rich.live import Live
from rich.text import Text

from iolaus import progress, storage
from iolaus.analysis import terminal
from iolaus.analysis.library import OpenStudy, open_study


def show(name: str, where: str = storage.DEFAULT, every_s: float | None = None) -> int:
    """Print what is known of a study.

    Args:
        name, where: as for `library.open_study`.
        every_s: seconds after which it is printed anew, until nothing runs or waits any more;
            None prints it once.

    Returns:
        The exit code, 0.

    Raises:
        InputError: there is no such study.
        EnvironmentFault: the storage cannot be read.
    """
    console = progress.console()
    opened = open_study(name, where)
    if every_s is None:
        with storage.named(opened.where):
            _print(opened, console)
        return 0
    with Live(console=console, auto_refresh=False, vertical_overflow="crop") as live:
        while True:
            with storage.named(opened.where):
                live.update(_drawn(opened, console), refresh=True)
                if not set(opened.frame["state"]) & {"running", "waiting"}:
                    return 0
            time.sleep(every_s)
            opened = OpenStudy(opened.study, opened.where)  # read anew


def _drawn(opened: OpenStudy, console: Console) -> Group:
    with console.capture() as capture:
        _print(opened, console)
    return Group(Text.from_ansi(capture.get()))


def _print(opened: OpenStudy, console: Console) -> None:
    terminal.show(opened.study, console)
