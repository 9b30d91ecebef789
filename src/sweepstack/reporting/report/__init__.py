"""A study as one HTML file that needs nothing else: what was asked, found, and every trial.

    page.py     the document: sections from top to bottom, content security policy
    facts.py    what the study is: objective, states, when, command, versions
    found.py    tables of what was found: the pivot, the best trials
    table.py    the table of all trials, as data for report.js
    markup.py   text made safe, numbers for people, data packed into the file
    report.css, report.js   how it looks, and the plots and the table in the browser

Everything that comes from a study is untrusted text.
"""

from __future__ import annotations

import hashlib
import re
from pathlib import Path

from sweepstack.config import files
from sweepstack.config.errors import EnvironmentFault, InputError
from sweepstack.study import storage
from sweepstack.study.library import OpenStudy

FOLDER = Path("outputs/reports")
KINDS = (".html", ".htm")
LONGEST = 120
"""Letters of a file's name that are taken from the study's."""


def place_of(opened: OpenStudy) -> Path:
    """Where a study's report lies: outputs/reports/STUDY.html, the name made safe for a file.

    Names that had to be changed carry a part of their hash, so that no two studies share a file.
    """
    name = opened.name
    safe = re.sub(r"[^\w.=,+-]+", "-", name)[:LONGEST].strip("-.")
    if safe != name:
        digest = hashlib.sha256(name.encode("utf-8", "backslashreplace")).hexdigest()[:8]
        safe = f"{safe}-{digest}" if safe else digest
    return FOLDER / f"{safe}.html"


def check(path: Path) -> None:
    """Check before anything is read that a report can be written there.

    Raises:
        InputError: it is a folder, or its name does not end with .html.
        EnvironmentFault: there is no such folder.
    """
    try:
        if path.is_dir():
            raise InputError(
                f"--output must be a file that ends with .html, got the folder '{path}'"
            )
        if path.suffix.lower() not in KINDS:
            raise InputError(f"--output must end with .html, got '{path}'")
        if not path.absolute().parent.is_dir():
            raise EnvironmentFault(f"cannot write {path}: there is no folder {path.parent}")
    except (OSError, ValueError) as error:
        raise EnvironmentFault(f"cannot write {path}: {error}") from error


def write(opened: OpenStudy, path: Path) -> Path:
    """Write the report of a study, whole or not at all; the folder of `place_of` is made.

    Args:
        opened: of sweepstack or of any other program, in any state.
        path: where to, ending with .html.

    Returns:
        `path`.

    Raises:
        InputError: `path` is a folder or no .html.
        EnvironmentFault: the file cannot be written, or the storage not be read.
    """
    from sweepstack.reporting.report import page

    if path == place_of(opened):
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            reason = error.strerror or error
            raise EnvironmentFault(f"cannot write {path}: {path.parent}: {reason}") from error
    check(path)
    with storage.named(opened.where):
        content = page.html(opened)
    files.write_bytes(path, content.encode("utf-8"))
    return path
