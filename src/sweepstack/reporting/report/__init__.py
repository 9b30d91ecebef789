"""A study as one HTML file that needs nothing else: what was asked, found, and every trial.

    content.py            facts and tables of the study, as plain text and data
    page.py, templates/   the document: sections, security policy, packed data
    report.css, report.js   how it looks; the plots and the table of trials in the browser

Everything that comes from a study is untrusted text.
"""

from __future__ import annotations

import hashlib
import re
from pathlib import Path

from sweepstack import storage
from sweepstack.config import errors
from sweepstack.config.errors import EnvironmentFault, InputError
from sweepstack.runs import progress
from sweepstack.study.view import StudyView, outputs

KINDS = (".html", ".htm")
MAX_NAME = 120
"""Letters of a file's name that are taken from the study's."""


def place_of(view: StudyView) -> Path:
    """Where a study's report lies: outputs/reports/STUDY.html, the name made safe for a file.

    Names that had to be changed carry a part of their hash, so that no two studies share a file.
    """
    name = view.name
    safe = re.sub(r"[^\w.=,+-]+", "-", name)[:MAX_NAME].strip("-.")
    if safe != name:
        digest = hashlib.sha256(name.encode("utf-8", "backslashreplace")).hexdigest()[:8]
        safe = f"{safe}-{digest}" if safe else digest
    return outputs(view.where) / "reports" / f"{safe}.html"


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


def write(view: StudyView, path: Path) -> Path:
    """Write the report of a study, whole or not at all; the folder of `place_of` is made.

    Args:
        view: of sweepstack or of any other program, in any state.
        path: where to, ending with .html.

    Returns:
        `path`.

    Raises:
        InputError: `path` is a folder or no .html.
        EnvironmentFault: the file cannot be written, or the storage not be read.
    """
    from sweepstack.reporting.report import page

    if path == place_of(view):
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            reason = error.strerror or error
            raise EnvironmentFault(f"cannot write {path}: {path.parent}: {reason}") from error
    check(path)
    # On a terminal only, and gone afterwards: a thousand trials take some seconds.
    doing = progress.console().status(f"writing the report of {len(view.frame):,} trials")
    with storage.named(view.where), doing:
        content = page.html(view)
    errors.write_bytes(path, content.encode("utf-8"))
    return path
