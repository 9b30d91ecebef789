"""The report: what is in it, that nothing in it runs or leaves, where it is written."""

from __future__ import annotations

import re
from html import unescape
from html.parser import HTMLParser
from pathlib import Path

import optuna
import pytest
from report_support import (
    HOSTILE,
    data_of,
    empty,
    failed,
    grid,
    hostile,
    new,
    opened,
    plots,
    published_grid,
    several,
)

from sweepstack.analysis import doctor
from sweepstack.analysis.doctor import Finding
from sweepstack.cli import study as cli
from sweepstack.config.errors import EnvironmentFault, InputError
from sweepstack.reporting import report
from sweepstack.reporting.dashboard import decorate
from sweepstack.reporting.report import page

LIMIT = 6_000_000


class Read(HTMLParser):
    """Tags, attributes and text of a page, scripts and styles apart."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.ids, self.links, self.texts, self.attributes = [], [], [], [], []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += [(tag, name, value) for name, value in attrs]
        self.ids += [value for name, value in attrs if name == "id"]
        self.links += [value for name, value in attrs if name == "href"]

    def handle_data(self, data):
        if self.lasttag not in ("script", "style") and data.strip():
            self.texts.append(data.strip())


@pytest.fixture
def with_plots(monkeypatch):
    monkeypatch.setattr(page.plots, "plots", plots)


@pytest.fixture
def without_plots(monkeypatch):
    monkeypatch.setattr(page.plots, "plots", lambda _: [])


def test_it_says_what_won_by_its_mean_and_how_it_was_looked_for(without_plots):
    view = grid()
    said = " ".join(Read(page.html(view)).texts)
    assert (
        "0.8100 ± 0.0100 val_accuracy of the winner, n=3 0.4000 ± 0.0000 its test_accuracy" in said
    )
    assert "Winner init=xavier , model.activation=tanh As YAML sweepstack-study best grid" in said
    assert "Sampler tpe, seed 0 Pruner none" in said
    asked = {**view.asked, "grid": True, "pruner": {"name": "median", "n_min_trials": 3}}
    view.study.set_user_attr("sweepstack.sweep", asked)
    said = " ".join(Read(page.html(opened(view.study))).texts)
    assert "Sampler every point of the grid once Pruner median, n_min_trials 3" in said
    assert decorate.chosen(opened(view.study))[0][1] == "every point of the grid once"


def test_a_report_has_all_parts_and_each_link_has_its_target(with_plots):
    text = page.html(grid())
    read = Read(text)
    assert '<html lang="en">' in text
    assert read.tags.count("h1") == 1
    assert "title" in read.tags
    said = " ".join(read.texts)
    assert "val_accuracy (maximize) · 12 trials: 12 complete · 2026-11-22 04:23 to 04:34" in said
    assert "sweepstack -m +sweeps=init_activation_grid 'data.root=/a b'" in said
    assert "tpe, seed 0" in said
    assert "torch 2.15.0" in said
    assert "18.0 s of training, all trials 11 min 30 s from first start to last end" in said
    targets = [link.removeprefix("#") for link in read.links]
    assert set(targets) <= set(read.ids)
    # The means are in the section of the heatmap, as a table.
    assert "Means by init and model.activation, as a table" in said
    parts = ("plot-heatmap", "best", "plot-history", "trials")
    assert [name for name in targets if name in parts] == list(parts)
    assert len(data_of(text, "figures")) == 2


def test_the_pivot_and_the_best_trials_are_in_it(without_plots):
    text = page.html(grid())
    assert re.search(r"0\.8100 <i>± 0\.0100</i> <small>n 3</small>", text)
    assert text.count('class="best"') == 1
    assert "<code>sweepstack-study rerun grid 11</code>" in text
    assert re.search(r'<th scope="row">11</th><td class="number"><b>0\.8200</b></td>', text)


def test_of_many_keys_those_that_matter_most_are_in_the_pivot(without_plots):
    study = new()
    labels = optuna.distributions.CategoricalDistribution(["a", "b"])
    for index in range(8):
        bits = [(index >> place) & 1 for place in range(3)]
        params = {name: "ab"[bit] for name, bit in zip("xyz", bits, strict=True)}
        value = bits[0] + 0.01 * bits[1] + 0.5 * bits[2]
        study.add_trial(
            optuna.create_trial(
                value=value, params=params, distributions=dict.fromkeys("xyz", labels)
            )
        )
    text = page.html(opened(study))
    assert 'id="pivot-title">Means by x and z</h2>' in text
    assert "over all other keys" in text


def test_continuous_keys_have_no_pivot_and_several_objectives_a_front(without_plots):
    text = page.html(several())
    assert "sweepstack-study rerun" not in text  # another program's trials
    assert 'id="pivot"' not in text
    assert "2 of 3" not in text
    assert "3 of 3 trials that no other beats in every objective" in text


def test_nothing_of_a_study_is_markup(monkeypatch):
    monkeypatch.setattr(page.plots, "plots", lambda _: plots(hostile_text=HOSTILE))
    text = page.html(hostile())
    read = Read(text)
    assert not {"img", "iframe", "object", "link", "base", "form"} & set(read.tags)
    scripts = [value for tag, name, value in read.attributes if (tag, name) == ("script", "type")]
    assert read.tags.count("script") == len(scripts) + 1  # the page's own program
    assert set(scripts) == {"application/octet-stream"}
    assert not [name for _, name, _ in read.attributes if name.startswith("on")]
    assert any("</script><img src=x onerror" in said for said in read.texts)
    assert "\u2028" not in text


def test_every_script_that_may_run_is_named_by_its_hash(with_plots):
    text = page.html(grid())
    policy = unescape(re.search(r'Content-Security-Policy" content="([^"]*)"', text)[1])
    assert policy.startswith("default-src 'none'; script-src 'sha256-")
    assert "unsafe-inline" not in policy.partition("style-src")[0]
    assert "connect-src" not in policy
    assert not re.search(r"https?:", policy)
    assert "unsafe-eval" not in policy


@pytest.mark.parametrize(
    ("study", "says"),
    [
        (empty, "This study has no trials yet."),
        (failed, "No trial has completed: 3 failed. Failed most often with: loss is nan &lt;b&gt;"),
    ],
)
def test_a_study_without_results_has_a_report_that_says_so(study, says, without_plots):
    text = page.html(study())
    assert says in text
    assert 'id="best"' not in text


def test_trials_that_break_a_constraint_are_neither_best_nor_averaged(without_plots):
    study = new()
    labels = optuna.distributions.CategoricalDistribution(["a", "b"])
    for index in range(4):
        trial = optuna.create_trial(
            value=index, params={"x": "ab"[index % 2]}, distributions={"x": labels}
        )
        trial.system_attrs["constraints"] = [1.0 if index == 3 else -1.0]
        study.add_trial(trial)
    text = page.html(opened(study))
    assert "3 complete, 1 infeasible" in text
    assert "value of the winner, n=2" in text


def test_ten_thousand_trials_stay_small(with_plots):
    study = published_grid(10_000)
    text = page.html(study)
    assert len(text.encode()) < LIMIT
    columns = data_of(text, "trials-data")["columns"]
    assert {len(column["v"]) for column in columns} == {10_000}
    assert text.count("<tr>") < 100


def test_a_report_lies_under_the_name_of_its_study():
    assert report.place_of(opened(new("mnist_grid"))) == Path("outputs/reports/mnist_grid.html")
    names = ["../../etc/passwd", "..", "a/b", "a\\b", "a b", "<x>", "x" * 300, "x" * 301, "."]
    places = [report.place_of(opened(new(name))) for name in names]
    assert {place.parent for place in places} == {Path("outputs/reports")}
    assert len(set(places)) == len(names)
    assert all(len(place.name) < 200 and not place.name.startswith(".") for place in places)


def test_the_default_place_is_made_and_the_file_replaced(tmp_path, monkeypatch, without_plots):
    monkeypatch.chdir(tmp_path)
    study = grid()
    path = report.place_of(study)
    assert report.write(study, path) == path
    path.write_text("old")
    report.write(study, path)
    assert path.read_text("utf-8").startswith("<!DOCTYPE html>")
    assert [entry.name for entry in path.parent.iterdir()] == ["grid.html"]


def test_a_place_that_cannot_be_written_is_one_line(tmp_path, monkeypatch, without_plots):
    study = grid(4)
    with pytest.raises(InputError, match="got the folder"):
        report.write(study, tmp_path)
    with pytest.raises(InputError, match=r"must end with \.html, got '.*x\.pdf'"):
        report.write(study, tmp_path / "x.pdf")
    with pytest.raises(EnvironmentFault, match="there is no folder"):
        report.write(study, tmp_path / "nowhere" / "x.html")
    with pytest.raises(EnvironmentFault, match="cannot write"):
        report.write(study, tmp_path / f"{'x' * 300}.html")
    monkeypatch.chdir(tmp_path)
    Path("outputs").write_text("a file")
    with pytest.raises(EnvironmentFault, match=r"cannot write outputs/reports/grid\.html"):
        report.write(study, report.place_of(study))
    assert [entry.name for entry in tmp_path.iterdir()] == ["outputs"]


def test_the_command_prints_where_the_report_is(tmp_path, monkeypatch, capsys, without_plots):
    monkeypatch.chdir(tmp_path)
    study = optuna.create_study(study_name="[b]lr", storage="sqlite:///some.db")
    study.add_trial(optuna.create_trial(value=1.0))
    assert cli.run(["report", "[b]lr", "--storage", "some.db"]) == 0
    line = capsys.readouterr().out.strip()
    assert line.startswith("report: outputs/reports/b-lr-")
    assert Path(line.removeprefix("report: ")).is_file()
    assert cli.run(["report", "[b]lr", "--storage", "some.db", "-o", "[i]x.html"]) == 0
    assert capsys.readouterr().out == "report: [i]x.html\n"


def test_a_wrong_place_is_said_before_anything_is_read(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match="must end with"):
        cli.run(["report", "none", "-o", "x.pdf"])


def test_what_the_doctor_finds_is_in_it_with_its_commands(monkeypatch, without_plots):
    command = "sweepstack -m 'optimizer.lr=tag(log,interval(1e-4,10))'"
    found = [Finding("edge", "problem", f"lr {HOSTILE}", command), Finding("seeds", "fact", "n 1")]
    monkeypatch.setattr(doctor, "examine", lambda _: found)
    monkeypatch.setattr(doctor, "next_command", lambda *_: f"sweepstack -m {HOSTILE}")
    read = Read(page.html(grid()))
    assert "findings" in read.ids
    assert "Problem:" in read.texts
    assert command in read.texts
    assert "What to run next:" in read.texts
    assert "img" not in read.tags


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_has_contrast_enough_to_be_read(scheme):
    style = (Path(report.__file__).parent / "report.css").read_text("utf-8")
    colours = dict(re.findall(rf"--{scheme}-(\w+): (#[0-9a-f]{{6}});", style))

    def light(colour):
        parts = [int(colour[place : place + 2], 16) / 255 for place in (1, 3, 5)]
        red, green, blue = (c / 12.92 if c <= 0.04 else ((c + 0.055) / 1.055) ** 2.4 for c in parts)
        return 0.2126 * red + 0.7152 * green + 0.0722 * blue + 0.05

    for text in ("ink", "soft", "accent"):
        for ground in ("page", "panel"):
            pair = sorted((light(colours[text]), light(colours[ground])))
            assert pair[1] / pair[0] >= 4.5, (text, ground)
