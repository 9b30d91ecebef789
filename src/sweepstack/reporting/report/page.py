"""The report as one document: sections from top to bottom, security policy, packed data.

The page needs nothing else: plotly's script, the figures and the table of trials are in it,
compressed, and report.js draws them in the browser. HTML is made by templates/report.html, which
escapes all text.
"""

from __future__ import annotations

import base64
import gzip
import hashlib
import json
import re
from collections.abc import Sequence
from datetime import datetime
from functools import cache
from importlib import metadata
from importlib.resources import files
from typing import Any

import plotly.io
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup, escape

from sweepstack.analysis import doctor, plots
from sweepstack.analysis.plots import Plot
from sweepstack.config.errors import printable
from sweepstack.reporting.report import content
from sweepstack.reporting.report.content import Table
from sweepstack.study.view import StudyView

HEIGHT = 440
"""Pixels of a plot that does not say how high it is."""


def html(view: StudyView) -> str:
    """The whole document."""
    drawn = plots.plots(view)
    findings = doctor.examine(view)
    tables = [t for t in (content.pivot_table(view), content.best_table(view)) if t]
    classes = content.class_tables(view)
    # The heatmap shows the same as the pivot: it has it as text.
    pivots = [t for t in tables if t.key == "pivot" and any(p.key == "heatmap" for p in drawn)]
    tables = [t for t in tables if t not in pivots]
    shown = [
        {**_shown(plot), "index": index, "tables": pivots if plot.key == "heatmap" else []}
        for index, plot in enumerate(drawn)
    ]
    top = [plot for plot in shown if plot["tables"]]
    below = [plot for plot in shown if not plot["tables"]]
    columns, same = content.trials(view)
    better = ">0.9" if view.direction == "maximize" else "<0.1"
    command = doctor.next_command(view, findings)
    links = [
        *([("findings", "Findings")] if findings or command else []),
        *((f"plot-{plot['key']}", plot["title"]) for plot in top),
        *((t.key, t.title) for t in tables),
        *((f"plot-{plot['key']}", plot["title"]) for plot in below),
        *((t.key, t.title) for t in classes),
        *([("trials", "All trials")] if len(view.frame) else []),
    ]
    return document(
        drawn,
        {"columns": columns},
        kind_of_page="Study",
        title=content.clean(view.name),
        links=links,
        lead=content.lead(view),
        trouble=content.trouble(view),
        tiles=content.tiles(view),
        facts=content.facts(view),
        findings=[(f.level, _line(f.text), _line(f.command or "")) for f in findings],
        command=_line(command or ""),
        tables=tables,
        top=top,
        plots=below,
        classes=classes,
        example=f"{content.clean(view.objective)}{better} state=complete" * bool(len(view.frame)),
        same=same,
    )


def compared(
    title: str, lead: str, verdicts: list[str], tables: list[Table], drawn: list[Plot]
) -> str:
    """The page of a comparison: no trials, no facts of one study."""
    shown = [{**_shown(plot), "index": index, "tables": []} for index, plot in enumerate(drawn)]
    links = [("findings", "Findings"), *((t.key, t.title) for t in tables)]
    links += [(f"plot-{plot['key']}", plot["title"]) for plot in shown]
    nothing: dict[str, Any] = dict.fromkeys(("trouble", "command", "example"), "")
    nothing |= {name: [] for name in ("tiles", "facts", "top", "classes", "same")}
    findings = [("fact", _line(text), "") for text in verdicts]
    shared = {
        "title": content.clean(title),
        "lead": content.clean(lead),
        "kind_of_page": "Comparison",
    }
    words = {"links": links, "findings": findings, "tables": tables, "plots": shown}
    return document(drawn, {"columns": []}, **nothing, **shared, **words)


def document(drawn: Sequence[Plot], trials: dict[str, Any], **words: Any) -> str:
    """A page of the template, with its policy, scripts and data."""
    packed = {"figures": _packed(json.dumps([_figure(plot.figure) for plot in drawn]))}
    packed["trials-data"] = _packed(json.dumps(trials, separators=(",", ":")))
    allowed = [_fingerprint(_file("report.js"))]
    if drawn:
        packed["plotly"], name = _plotly()
        allowed.append(name)
    text: str = _template().render(
        policy=_policy(allowed),
        style=Markup(_file("report.css")),
        code=content.CODE,
        written=f"{datetime.now():%Y-%m-%d %H:%M} by sweepstack {metadata.version('sweepstack')}",
        packed=packed,
        program=Markup(_file("report.js")),
        **words,
    )
    return text


@cache
def _template() -> Any:
    environment = Environment(
        loader=PackageLoader("sweepstack.reporting.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["breakable"] = _breakable
    return environment.get_template("report.html")


def _policy(allowed: list[str]) -> str:
    """Nothing is loaded from anywhere; scripts are those that are written into the page."""
    return (
        f"default-src 'none'; script-src {' '.join(allowed)}; style-src 'unsafe-inline'; "
        "img-src data: blob:; base-uri 'none'; form-action 'none'"
    )


def _breakable(text: str) -> Markup:
    """Text of a narrow column, which may break within the names of keys and metrics."""
    return Markup(re.sub(r"(?<=[a-z])([._])(?=[a-z])", r"\1<wbr>", str(escape(text))))


def _shown(plot: Plot) -> dict[str, Any]:
    """What the page says of a plot."""
    height = int(plot.figure.layout.height or HEIGHT)
    title, says = content.clean(plot.title), _line(plot.says)
    return {"key": plot.key, "title": title, "says": says, "height": height}


def _figure(figure: Any) -> Any:
    """A figure as plotly.js reads it, without what the page decides itself."""
    found = json.loads(plotly.io.to_json(figure, validate=False, engine="json"))
    layout = found.get("layout", {})
    for name in ("template", "title", "width", "height"):
        layout.pop(name, None)
    return {"data": found.get("data", []), "layout": layout}


def _line(text: str) -> str:
    """Text of any length, with its spaces, without control characters."""
    return printable(text.replace("\n", " "))


def _file(name: str) -> str:
    return (files("sweepstack.reporting.report") / name).read_text("utf-8")


def _packed(text: str, level: int = 9) -> str:
    """Text as data that no browser runs: gzip, then base64."""
    zipped = gzip.compress(text.encode("utf-8", "backslashreplace"), level, mtime=0)
    return base64.b64encode(zipped).decode("ascii")


def _fingerprint(script: str) -> str:
    """How a content security policy names a script."""
    digest = hashlib.sha256(script.encode("utf-8")).digest()
    return f"'sha256-{base64.b64encode(digest).decode('ascii')}'"


@cache
def _plotly() -> tuple[str, str]:
    """Plotly's own script, packed, and its fingerprint."""
    from plotly.offline import get_plotlyjs

    source = get_plotlyjs()
    return _packed(source, 4), _fingerprint(source)  # 9 takes three times as long for 4 % less
