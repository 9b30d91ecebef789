"""What a report looks like in a real browser: ticks, contrast, labels on a narrow page, on paper.

One study that has every plot, with labels of 20 characters, is opened once for all tests.
"""

from __future__ import annotations

import io
import re

import numpy as np
import optuna
import pytest
from browser_support import browser, eventually
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.trial import TrialState, create_trial
from plots_support import BEGIN, timedelta
from report_support import opened

from sweepstack.analysis.plots import plots, style
from sweepstack.reporting.report import page

pytestmark = pytest.mark.slow

__all__ = ["browser"]
NAMES = [f"{name}_{'x' * 20}"[:20] for name in ("orthogonal", "kaiming", "lecun", "zeros", "ones")]
SPACE = {
    "init": CategoricalDistribution(NAMES),
    "model.activation": CategoricalDistribution([f"gelu_{'y' * 15}", f"relu_{'z' * 15}"]),
    "optimizer.lr": FloatDistribution(1e-4, 1.0, log=True),
    "regularization.weight_decay": FloatDistribution(1e-6, 1e-2, log=True),
    "training.seed": IntDistribution(0, 2),
}
CONTRAST = 4.5
IN_DRAWING = {
    "heatmap": "n=6",
    "optimization": "by trial",
    "mean-curves": "model.activation = gelu",
    "learning-curves": "34: ones_x…",
    "intermediate": "complete pruned failed step",
    "learning-rate": "complete pruned failed or diverged",
    "importance": "share of importance",
    "isolation": "(n=12)",
    "slices": "orthog…xxxxxx",
    "contour": "val_accuracy regularization.",
    "parallel": "worst 50%",
    "timeline": "time since the start",
}
"""What stands in each plot, and not in its title or caption."""


def everything(count: int = 60):
    """A study with pruned and failed trials, learning curves, times: all plots but those of layers
    and several objectives."""
    random = np.random.default_rng(0)
    study = optuna.create_study(study_name="everything", direction="maximize")
    study.set_user_attr("sweepstack.identity", {"objectives": ["val_accuracy"]})
    states = [TrialState.COMPLETE] * 8 + [TrialState.PRUNED, TrialState.FAIL]
    for index in range(count):
        state = states[index % len(states)]
        params = {
            "init": NAMES[index % 5],
            "model.activation": SPACE["model.activation"].choices[index // 5 % 2],
            "optimizer.lr": float(10 ** random.uniform(-4, 0)),
            "regularization.weight_decay": float(10 ** random.uniform(-6, -2)),
            "training.seed": index % 3,
        }
        steps = range(10, 70 if state == TrialState.COMPLETE else 30, 10)
        value = 0.5 + index % 5 / 12 + random.uniform(0, 0.1)
        trial = create_trial(
            value=value if state == TrialState.COMPLETE else None,
            state=state,
            params=params,
            distributions=SPACE,
            intermediate_values={step: value * step / 60 for step in steps},
            user_attrs={"val_loss": float(10 ** random.uniform(-3, 0)), "steps": 60, "seconds": 1},
        )
        trial.datetime_start = BEGIN + timedelta(seconds=index)
        trial.datetime_complete = trial.datetime_start + timedelta(seconds=3)
        study.add_trial(trial)
    return opened(study)


@pytest.fixture(scope="module")
def study():
    return everything()


@pytest.fixture(scope="module")
def tab(browser, study, tmp_path_factory):
    """The report, all plots drawn without that anyone has scrolled."""
    path = tmp_path_factory.mktemp("report") / "report.html"
    path.write_text(page.html(study), "utf-8")
    context = browser.new_context(viewport={"width": 1280, "height": 900})
    tab = context.new_page()
    tab.goto(path.as_uri())
    settled(tab)
    yield tab
    context.close()


def settled(tab) -> None:
    """Wait until all plots are drawn as the page is now."""
    boxes = tab.locator(".plot").count()
    assert boxes >= 11
    tab.locator(".plot[data-state=drawn]").nth(boxes - 1).wait_for(state="attached")
    resized = """() => new Promise((done) => {
        const look = () => {  // plotly hears of a resize with a frame, and heeds it 100 ms later
            const boxes = [...document.querySelectorAll(".plot")];
            boxes.some((box) => box._resolveResize) ? setTimeout(look, 20) : done();
        };
        requestAnimationFrame(() => requestAnimationFrame(look));
    })"""
    tab.evaluate(resized)


def shown_in(tab, width: int, scheme: str) -> None:
    tab.set_viewport_size({"width": width, "height": 900})
    tab.emulate_media(color_scheme=scheme)
    settled(tab)


def test_every_axis_has_ticks(tab):
    shown_in(tab, 1280, "light")
    found = tab.evaluate("""() => {
        const bare = [];
        let axes = 0;
        for (const box of document.querySelectorAll(".plot")) {
            for (const [name, axis] of Object.entries(box._fullLayout)) {
                if (!/^[xy]axis\\d*$/.test(name) || !axis.visible || !axis.showticklabels) continue;
                axes += 1;
                const ticks = box.querySelectorAll(`.${axis._id}tick text`);
                const texts = [...ticks].filter((tick) => tick.textContent.trim());
                const rows = axis.tickvals?.length ?? 2;  // one worker has one row
                const id = box.parentNode.parentNode.id;
                if (texts.length < Math.min(rows, 2)) bare.push(`${id} ${name}`);
            }
        }
        return [axes, bare];
    }""")
    assert found[1] == []
    assert found[0] >= 20


OVERLAPS = """() => {
    const corners = (text) => {
        const { x, y, width, height } = text.getBBox();
        const by = text.getScreenCTM();
        // Letters fill the middle of their line.
        const [top, bottom] = [y + 0.15 * height, y + 0.85 * height];
        return [[x, top], [x + width, top], [x + width, bottom], [x, bottom]]
            .map(([px, py]) => [by.a * px + by.c * py + by.e, by.b * px + by.d * py + by.f]);
    };
    const apart = (one, other) => [one, other].some((shape) =>
        shape.some(([x, y], index) => {
            const [nextX, nextY] = shape[(index + 1) % 4];
            const [ax, ay] = [y - nextY, nextX - x];
            const spans = [one, other].map((each) => each.map(([px, py]) => px * ax + py * ay));
            const [[low, high], [from, to]] =
                spans.map((span) => [Math.min(...span), Math.max(...span)]);
            return high <= from || to <= low;
        }));
    const found = [];
    let count = 0;
    for (const box of document.querySelectorAll(".plot")) {
        const id = box.parentNode.parentNode.id;
        const { left, right } = box.getBoundingClientRect();
        const texts = [...box.querySelectorAll("svg text")]
            .filter((text) => text.textContent.trim() && text.getClientRects().length)
            .filter((text) => !text.closest(".textpoint, .hoverlayer, .updatemenu-container"))
            .map((text) => [text.textContent, corners(text)]);
        count += texts.length;
        texts.forEach(([text, shape], index) => {
            for (const [other, place] of texts.slice(0, index)) {
                if (!apart(shape, place)) found.push(`${id}: ${other} | ${text}`);
            }
            const isCut = shape.some(([x]) => x < left - 1 || x > right + 1);
            if (isCut) found.push(`${id}: ${text} is cut`);
        });
    }
    return [count, found];
}"""


def check_labels(tab, width: int) -> None:
    shown_in(tab, width, "light")
    count, found = tab.evaluate(OVERLAPS)
    assert found == []
    assert count > 100
    assert tab.evaluate("document.scrollingElement.scrollWidth") <= width


def test_at_1280_pixels_labels_do_not_overlap_and_the_best_trials_are_seen_whole(tab):
    check_labels(tab, 1280)
    wide = tab.evaluate("""() => {
        const box = document.querySelector("#best .scroll");
        return box.scrollWidth - box.clientWidth;
    }""")
    assert wide <= 0


def contrast(*colours: str) -> float:
    """Of two opaque colours as a browser writes them, by WCAG 2.2."""

    def light(colour):
        parts = [int(part) / 255 for part in re.findall(r"\d+", colour)[:3]]
        red, green, blue = (
            c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in parts
        )
        return 0.2126 * red + 0.7152 * green + 0.0722 * blue + 0.05

    low, high = sorted(map(light, colours))
    return high / low


CONTRASTS = """() => {
    const canvas = document.createElement("canvas");
    canvas.width = canvas.height = 1;
    const brush = canvas.getContext("2d", { willReadFrequently: true });
    const read = (colour) => {  // red, green, blue, alpha of any CSS colour
        brush.clearRect(0, 0, 1, 1);
        brush.fillStyle = colour;
        brush.fillRect(0, 0, 1, 1);
        const [r, g, b, a] = brush.getImageData(0, 0, 1, 1).data;
        return [r, g, b, a / 255];
    };
    const over = (top, below, opacity = 1) => {
        const a = top[3] * opacity;
        return [0, 1, 2].map((i) => a * top[i] + (1 - a) * below[i]).concat(1);
    };
    const light = ([r, g, b]) => {
        const linear = [r, g, b].map((c) => c / 255)
            .map((c) => (c <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4));
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2] + 0.05;
    };
    const ratio = (one, other) => {
        const pair = [light(one), light(other)].sort((a, b) => a - b);
        return pair[1] / pair[0];
    };
    const chain = (node) => (node ? [node, ...chain(node.parentElement)] : []);
    const ground = (node) =>
        chain(node).reverse().reduce(
            (below, each) => over(read(getComputedStyle(each).backgroundColor), below),
            [255, 255, 255, 1],
        );
    const opacity = (node) =>
        chain(node).reduce((all, each) => all * Number(getComputedStyle(each).opacity), 1);
    const faint = [];
    let count = 0;
    let cells = 0;
    const check = (node, colours, below, what) => {
        const dim = opacity(node);
        const best = Math.max(...colours.map((c) => ratio(over(read(c), below, dim), below)));
        count += 1;
        if (best < LIMIT) faint.push(`${what} ${best.toFixed(2)} ${colours}`);
    };
    const cellOf = (box, point) => {  // the colour of a heatmap below its number
        const map = box._fullData.find((t) => t.type === "heatmap" && t.visible === true);
        const z = map && point && map.z[point.y][point.x];
        if (!Number.isFinite(z)) return undefined;
        const scale = map.colorscale.map(([at, colour]) => [at, read(colour)]);
        const tone = (z - map.zmin) / (map.zmax - map.zmin);
        const last = Math.max(1, scale.findIndex(([at]) => at >= tone));
        const [[low, dark], [high, bright]] = scale.slice(last - 1, last + 1);
        const share = (tone - low) / (high - low);
        return `rgb(${[0, 1, 2].map((i) => dark[i] + share * (bright[i] - dark[i]))})`;
    };
    const visible = (node) => node.getClientRects().length && node.textContent.trim();
    for (const node of document.querySelectorAll("main *, nav a")) {
        const own = [...node.childNodes].some((n) => n.nodeType === 3 && n.textContent.trim());
        if (node.closest("svg, script, style") || !own || !visible(node)) continue;
        const what = `${node.tagName} ${node.textContent.slice(0, 30)}`;
        check(node, [getComputedStyle(node).color], ground(node), what);
    }
    for (const box of document.querySelectorAll(".plot")) {
        const id = box.parentNode.parentNode.id;
        for (const text of box.querySelectorAll("svg text")) {
            if (text.closest(".hoverlayer") || !visible(text)) continue;
            const menu = text.closest("[class^=updatemenu]");
            const rect = menu?.querySelector("rect");
            const cell = cellOf(box, text.closest(".textpoint")?.__data__);
            cells += Boolean(cell);
            const fill = rect ? getComputedStyle(rect).fill : (cell ?? "transparent");
            const below = over(read(fill), ground(box));
            const what = `${id} text ${text.textContent.slice(0, 30)}`;
            check(text, [getComputedStyle(text).fill], below, what);
        }
        const marks = ".scatterlayer path.point, .barlayer path, .legendpoints path, .js-line";
        for (const mark of box.querySelectorAll(marks)) {
            const { fill, stroke, fillOpacity, strokeOpacity, strokeWidth } =
                getComputedStyle(mark);
            const drawn = [];
            const isLine = parseFloat(strokeWidth) > 0 && strokeOpacity > 0.9;
            if (fill !== "none" && fillOpacity > 0.9) drawn.push(fill);
            if (stroke !== "none" && isLine) drawn.push(stroke);
            const what = `${id} ${mark.getAttribute("class")}`;
            if (drawn.length) check(mark, drawn, ground(box), what);
        }
        for (const icon of box.querySelectorAll(".modebar-btn path")) {
            check(box, [getComputedStyle(icon).fill], ground(box), `${id} modebar`);
        }
    }
    return [count, [...new Set(faint)], cells];
}""".replace("LIMIT", str(CONTRAST))


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_and_marks_can_be_told_from_the_page(tab, scheme):
    shown_in(tab, 1280, scheme)
    tab.evaluate("document.querySelectorAll('details').forEach((each) => (each.open = true))")
    tab.locator("#plot-optimization .updatemenu-header").click()
    buttons = tab.locator("#plot-optimization .updatemenu-dropdown-button")
    eventually(buttons.last).to_have_css("opacity", "1")
    count, faint, cells = tab.evaluate(CONTRASTS)
    tab.locator("#plot-optimization .updatemenu-header").click()
    assert faint == []
    assert count > 1000
    assert cells == 8  # of 5 inits × 2 activations two have no complete trial
    ground, ink, said = tab.locator("#plot-optimization .plot").evaluate("""(box) => {
        Plotly.Fx.hover(box, [{ curveNumber: 0, pointNumber: 3 }]);
        const group = box.querySelector(".hoverlayer .hovertext");
        const colours = ["path", "text"].map((n) => getComputedStyle(group.querySelector(n)).fill);
        return [...colours, group.textContent];
    }""")
    assert contrast(ground, ink) >= CONTRAST
    assert re.fullmatch(r"trial 3: 0\.\d{1,4}", said)


def test_the_pdf_has_as_many_plots_as_the_page(tab, study):
    pypdf = pytest.importorskip("pypdf", reason="the package pypdf is missing")
    shown_in(tab, 1280, "dark")
    printed = pypdf.PdfReader(io.BytesIO(tab.pdf(format="A4")))
    pages = [" ".join(page.extract_text().split()).replace("ﬁ", "fi") for page in printed.pages]
    found = plots(study)
    assert len(found) == len(IN_DRAWING) == tab.locator(".plot").count()
    for plot in found:
        here = next(place for place, text in enumerate(pages) if plot.title in text)
        assert IN_DRAWING[plot.key] in pages[here].replace(plot.says, ""), plot.key


def test_at_400_pixels_labels_of_twenty_characters_do_not_overlap(tab):
    check_labels(tab, 400)


def test_the_page_has_the_colours_of_the_plots():
    css = page._file("report.css")
    assert f"--light-colours: {' '.join((*style.PALETTE, style.GREY))};" in css
