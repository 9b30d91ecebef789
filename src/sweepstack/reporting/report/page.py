"""The report as one document, from top to bottom."""

from __future__ import annotations

import json
from datetime import datetime
from importlib import metadata
from importlib.resources import files
from typing import Any

import pandas as pd
import plotly.io

from sweepstack.reporting import doctor, plots
from sweepstack.reporting.plots import Plot
from sweepstack.reporting.report import facts, found, table
from sweepstack.reporting.report.found import Section
from sweepstack.reporting.report.markup import clean, fingerprint, packed, plotly_js, prose, text
from sweepstack.study.library import OpenStudy

HEIGHT = 440
"""Pixels of a plot that does not say how high it is."""
COMPILES = ("gl", "parcoords", "splom", "3d", "surface", "cone", "streamtube", "isosurface")
"""Parts of the names of traces that are drawn by WebGL, for which plotly compiles functions."""
LEVELS = {"problem": "Problem", "hint": "Hint", "fact": "Fact"}


def html(opened: OpenStudy) -> str:
    """The whole document."""
    df = facts.judged(opened.frame)
    drawn = _plots(opened)
    sections = [_doctor(opened), found.swept(df), found.top(opened, df)]
    sections += [_plot(index, plot) for index, plot in enumerate(drawn)]
    rows, same = table.data(df)
    if len(df):
        sections.append(_trials(df, same))
    known = [section for section in sections if section]
    figures = json.dumps([_figure(plot.figure) for plot in drawn])
    scripts = [packed("figures", figures), packed("trials-data", rows)]
    allowed = [fingerprint(_file("report.js"))]
    if drawn:
        script, name = plotly_js()
        scripts.append(script)
        allowed += [name, *(["'unsafe-eval'"] if _compiles(drawn) else [])]
    return _document(opened, df, known, scripts, allowed)


def _document(
    opened: OpenStudy,
    df: pd.DataFrame,
    sections: list[Section],
    scripts: list[str],
    allowed: list[str],
) -> str:
    links = "".join(f'<li><a href="#{text(s.key)}">{s.title}</a></li>' for s in sections)
    body = "\n".join(
        f'<section id="{text(s.key)}" aria-labelledby="{text(s.key)}-title">'
        f'<h2 id="{text(s.key)}-title">{s.title}</h2>{s.content}</section>'
        for s in sections
    )
    trouble, version = facts.trouble(df), text(metadata.version("sweepstack"))
    pairs = "".join(f"<dt>{name}</dt><dd>{value}</dd>" for name, value in facts.listed(opened, df))
    tiles = "".join(
        f"<li><strong>{tile.value}</strong><span>{tile.says}</span></li>"
        for tile in facts.tiles(df)
    )
    parts = {
        "title": text(opened.name),
        "policy": _policy(allowed),
        "style": _file("report.css"),
        "lead": facts.lead(df),
        "trouble": f'<p class="trouble">{trouble}</p>' if trouble else "",
        "tiles": f'<ul class="tiles">{tiles}</ul>' if tiles else "",
        "facts": f"<dl>{pairs}</dl>" if pairs else "",
        "nav": f'<nav aria-label="Contents"><ul>{links}</ul></nav>' if links else "",
        "sections": body,
        "written": f"{datetime.now():%Y-%m-%d %H:%M} by sweepstack {version}",
        "scripts": "\n".join(scripts),
        "program": _file("report.js"),
    }
    return PAGE % parts


def _policy(allowed: list[str]) -> str:
    """Nothing is loaded from anywhere; scripts are those that are written into the page."""
    return (
        f"default-src 'none'; script-src {' '.join(allowed)}; style-src 'unsafe-inline'; "
        "img-src data: blob:; base-uri 'none'; form-action 'none'"
    )


def _doctor(opened: OpenStudy) -> Section | None:
    """What the doctor finds, and the command that is proposed next."""
    findings = doctor.examine(opened)
    command = doctor.next_command(opened, findings)
    if not findings and not command:
        return None
    items = "".join(
        f'<li class="{finding.level}"><b>{LEVELS[finding.level]}:</b> {prose(finding.text)}'
        f"{_command(finding.command)}</li>"
        for finding in findings
    )
    content = f'<ul class="findings">{items}</ul>' if items else ""
    if command:
        content += f"<p>What to run next:</p>{_command(command)}"
    return Section("findings", "Findings", content)


def _command(command: str | None) -> str:
    return f"<pre><code>{prose(command)}</code></pre>" if command else ""


def _plots(opened: OpenStudy) -> list[Plot]:
    return plots.plots(opened)


def _plot(index: int, plot: Plot) -> Section:
    height = int(plot.figure.layout.height or HEIGHT)
    content = (
        f"<figure><figcaption>{prose(plot.says)}</figcaption>"
        f'<div class="plot" data-figure="{index}" role="img" aria-label="{text(plot.title)}: '
        f'{prose(plot.says)}" style="height:{height}px"></div></figure>'
    )
    return Section(f"plot-{plot.key}", text(plot.title), content)


def _figure(figure: Any) -> Any:
    """A figure as plotly.js reads it, without what the page says or decides itself."""
    content = json.loads(plotly.io.to_json(figure, validate=False, engine="json"))
    layout = content.get("layout", {})
    for name in ("template", "title", "width", "height"):
        layout.pop(name, None)
    return {"data": content.get("data", []), "layout": layout}


def _compiles(drawn: list[Plot]) -> bool:
    kinds = {trace.type or "" for plot in drawn for trace in plot.figure.data}
    return any(part in kind for kind in kinds for part in COMPILES)


def _trials(df: pd.DataFrame, same: str) -> Section:
    name, direction = next(iter(df.attrs["objectives"].items()))
    example = f"{clean(name)}{'>0.9' if direction == 'maximize' else '<0.1'} state=complete"
    content = (
        '<div class="controls"><label>Filter <input id="filter" type="search" '
        f'placeholder="{text(example)}" autocomplete="off" spellcheck="false"></label>'
        '<label class="check" hidden><input id="more" type="checkbox"> all columns</label>'
        '<span class="pages"><button id="previous" type="button">Previous</button> '
        '<output id="range" aria-live="polite"></output> '
        '<button id="next" type="button">Next</button></span></div>'
        '<div class="scroll" tabindex="0" role="region" aria-labelledby="trials-title">'
        '<table id="trials-table"><thead></thead><tbody></tbody></table></div>'
        '<p class="note">Words and comparisons such as <code>lr&lt;0.01</code> filter, a title '
        "sorts. Numbers have six digits here; <code>sweepstack-study export</code> writes all.</p>"
    )
    if same:
        content += f'<p class="note">The same in every trial: {same}.</p>'
    return Section("trials", "All trials", content)


def _file(name: str) -> str:
    return (files("sweepstack.reporting.report") / name).read_text("utf-8")


PAGE = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="%(policy)s">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<meta name="referrer" content="no-referrer">
<title>%(title)s · sweepstack</title>
<style>%(style)s</style>
</head>
<body>
<a class="skip" href="#content">Skip to content</a>
%(nav)s
<main id="content">
<header>
<p class="kind">Study</p>
<h1>%(title)s</h1>
<p class="lead">%(lead)s</p>
%(trouble)s
%(tiles)s
%(facts)s
</header>
<noscript><p class="trouble">Plots and the table of trials need JavaScript.</p></noscript>
<p class="trouble" id="message" role="status" hidden></p>
%(sections)s
<footer>Written %(written)s.</footer>
</main>
%(scripts)s
<script>%(program)s</script>
</body>
</html>
"""
