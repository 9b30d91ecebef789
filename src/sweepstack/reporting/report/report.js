"use strict";
// Draws what static HTML cannot: the plots, those near the window first, and the table of trials.
// All text of a study reaches the page as textContent, never as HTML.
(() => {
  const PAGE = 100; // rows of the table that are drawn at once
  const PRINTED = 2000; // rows of it on paper
  const NEAR = "500px"; // how far from the window a plot is drawn at once
  const PAPER = 680; // pixels of a plot on paper: A4 and Letter with their margins have more
  const dark = matchMedia("(prefers-color-scheme: dark)");
  const narrow = matchMedia("(max-width: 34rem)");
  const byId = (id) => document.getElementById(id);

  function say(line) {
    byId("message").textContent = line;
    byId("message").hidden = false;
  }

  async function unpack(id) {
    const bytes = Uint8Array.from(atob(byId(id).textContent), (c) => c.charCodeAt(0));
    const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"));
    return new Response(stream).text();
  }

  // ---- plots ----------------------------------------------------------------------------------

  let figures = null; // as JSON, a text for each
  let plotly = null;

  function loaded() {
    plotly ??= (async () => {
      const [source, text] = await Promise.all([unpack("plotly"), unpack("figures")]);
      figures = JSON.parse(text).map((figure) => JSON.stringify(figure));
      const script = document.createElement("script");
      script.textContent = source; // allowed by its hash
      document.head.append(script);
    })();
    return plotly;
  }

  function coloursOf(shade) {
    const style = getComputedStyle(document.documentElement);
    return (name) => style.getPropertyValue(`--${shade}-${name}`).trim();
  }

  function template(shade) {
    const style = getComputedStyle(document.documentElement);
    const colour = coloursOf(shade);
    const ink = colour("ink");
    const axis = {
      automargin: true,
      gridcolor: colour("line"),
      linecolor: colour("line"),
      zerolinecolor: colour("line"),
      tickcolor: colour("line"),
    };
    return {
      layout: {
        font: { family: style.getPropertyValue("--font"), size: 13, color: ink },
        paper_bgcolor: "rgba(0,0,0,0)",
        plot_bgcolor: "rgba(0,0,0,0)",
        margin: { l: 60, r: 24, t: 16, b: 48 },
        xaxis: axis,
        yaxis: axis,
        legend: { bgcolor: "rgba(0,0,0,0)" },
        modebar: { bgcolor: "rgba(0,0,0,0)", color: colour("soft"), activecolor: colour("accent") },
        hoverlabel: {
          bgcolor: colour("panel"),
          bordercolor: colour("soft"),
          font: { color: ink },
        },
        colorway: colour("colours").split(" "),
      },
    };
  }

  // A figure in the colours of light or dark, and in its narrow layout where there is one.
  function figureOf(box, shade, isNarrow) {
    let text = figures[Number(box.dataset.figure)];
    const [from, to] = ["light", shade].map((name) => coloursOf(name)("colours").split(" "));
    from.forEach((colour, index) => {
      text = text.replaceAll(colour, to[index]);
    });
    const { data, layout } = JSON.parse(text);
    const other = (isNarrow && layout.meta?.narrow) || {};
    for (const [key, value] of Object.entries(other)) {
      layout[key] = /axis/.test(key) ? { ...layout[key], ...value } : value;
    }
    return { data, layout };
  }

  // Draws at once: a page that is about to be printed waits for no promise.
  function drawNow(box, onPaper = false) {
    try {
      const shade = dark.matches && !onPaper ? "dark" : "light";
      const { data, layout } = figureOf(box, shade, narrow.matches && !onPaper);
      const height = layout.height ?? Number(box.dataset.height);
      const size = onPaper ? { width: PAPER, autosize: false } : { autosize: true };
      box.style.height = `${height}px`;
      const whole = { ...layout, ...size, height, template: template(shade) };
      Plotly.react(box, data, whole, {
        responsive: !onPaper,
        displaylogo: false,
        showEditInChartStudio: false,
        showSendToCloud: false,
        plotlyServerURL: "",
        topojsonURL: "",
      });
      box.dataset.state = "drawn";
    } catch (error) {
      box.dataset.state = "failed";
      box.textContent = `This plot could not be drawn: ${error.message}`;
    }
  }

  function watchPlots() {
    const boxes = [...document.querySelectorAll(".plot")];
    const isNew = (box) => !box.dataset.state;
    const draw = async (box, onPaper) => {
      await loaded();
      if (isNew(box)) drawNow(box, onPaper);
    };
    const failed = (error) => say(`The plots of this file are damaged: ${error.message}`);
    const observer = new IntersectionObserver(
      (entries) => {
        const near = entries.filter(({ isIntersecting }) => isIntersecting);
        near.forEach(({ target }) => draw(target).catch(failed));
      },
      { rootMargin: NEAR },
    );
    boxes.forEach((box) => observer.observe(box));
    // The others while nothing else is to do, so that a page can be printed and searched whole.
    const idle = globalThis.requestIdleCallback ?? ((next) => setTimeout(next, 50));
    const drawRest = async () => {
      const next = boxes.find(isNew);
      if (!next) return;
      await draw(next);
      idle(drawRest, { timeout: 500 });
    };
    if (boxes.length) loaded().then(() => idle(drawRest, { timeout: 500 }), failed);
    const again = (onPaper) => {
      if (figures && globalThis.Plotly) boxes.forEach((box) => drawNow(box, onPaper));
    };
    dark.addEventListener("change", () => again(false));
    narrow.addEventListener("change", () => again(false));
    // Paper is white and narrower than the window.
    addEventListener("beforeprint", () => again(true));
    addEventListener("afterprint", () => again(false));
  }

  // ---- the table of trials --------------------------------------------------------------------

  const collator = new Intl.Collator("en", { numeric: true, sensitivity: "base" });

  function shortNumber(value) {
    if (!Number.isFinite(value)) return value > 0 ? "inf" : "-inf";
    if (Number.isInteger(value)) return String(value);
    const size = Math.abs(value);
    const short = Number(value.toPrecision(4));
    return size >= 1e-4 && size < 1e5 ? String(short) : short.toExponential();
  }

  function column({ t: title, v: values, l: labels, x: extra }) {
    if (labels) {
      const value = (row) => (values[row] < 0 ? null : labels[values[row]]);
      return { title, extra, number: false, value, shown: (row) => value(row) ?? "" };
    }
    const numbers = values.map((value) => (value === null ? null : Number(value)));
    // As many decimals in every row as four digits of the largest need, so that they line up.
    const known = numbers.filter((value) => value !== null && Number.isFinite(value));
    const whole = known.every(Number.isInteger);
    const largest = known.reduce((most, value) => Math.max(most, Math.abs(value)), 0);
    const metric = /(^|_)(accuracy|loss|value|mse|mae|std)$/.test(title) && largest < 1e3;
    const shown = (row) => {
      const value = numbers[row];
      if (value === null) return "";
      if (metric && !whole && Number.isFinite(value)) return value.toFixed(4);
      return shortNumber(value);
    };
    return { title, extra, number: true, value: (row) => numbers[row], shown };
  }

  function compare(a, b, isNumber) {
    if (a === null || b === null) return (a === null) - (b === null);
    return isNumber ? a - b : collator.compare(a, b);
  }

  const TESTS = {
    "<": (d) => d < 0,
    ">": (d) => d > 0,
    "<=": (d) => d <= 0,
    ">=": (d) => d >= 0,
    "=": (d) => d === 0,
    "!=": (d) => d !== 0,
  };

  // "adam lr<0.01": every word must be in a cell, every comparison must hold.
  function condition(word, columns, textOf) {
    const [, name, sign, right] = /^([^<>=!]+)(<=|>=|!=|=|<|>)(.+)$/.exec(word) ?? [];
    const named = (exact) => ({ title }) => {
      const lower = title.toLowerCase();
      return exact ? lower === name : lower.endsWith(`.${name}`) || lower.endsWith(`_${name}`);
    };
    const found = name && (columns.find(named(true)) ?? columns.find(named(false)));
    if (!found) return (row) => textOf(row).includes(word);
    const wanted = found.number ? Number(right.replace(/^([+-]?)inf$/, "$1Infinity")) : right;
    const test = TESTS[sign];
    return (row) => {
      const value = found.value(row);
      return value !== null && test(compare(value, wanted, found.number));
    };
  }

  async function showTrials() {
    const packedRows = JSON.parse(await unpack("trials-data")).columns;
    const columns = packedRows.map(column);
    const count = packedRows[0].v.length;
    const every = Array.from({ length: count }, (_, row) => row);
    const state = { rows: every, page: 0, sorted: null, descending: false, all: false };
    const table = byId("trials-table");
    const texts = new Array(count);
    const textOf = (row) =>
      (texts[row] ??= columns.map(({ shown }) => shown(row)).join("\n").toLowerCase());

    function filterAndSort() {
      const words = byId("filter").value.toLowerCase().split(/\s+/).filter(Boolean);
      const conditions = words.map((word) => condition(word, columns, textOf));
      state.rows = every.filter((row) => conditions.every((holds) => holds(row)));
      const by = state.sorted;
      if (by) {
        const way = state.descending ? -1 : 1;
        state.rows.sort((a, b) => {
          const [left, right] = [by.value(a), by.value(b)];
          const order = compare(left, right, by.number); // what is missing stays last
          return (left === null || right === null ? order : way * order) || a - b;
        });
      }
      state.page = 0;
      render();
    }

    function sortBy(chosen) {
      const again = state.sorted === chosen;
      // Numbers first from the top: the largest is looked for more often.
      state.descending = again ? !state.descending : chosen.number && chosen !== columns[0];
      state.sorted = chosen;
      filterAndSort();
    }

    function renderHead(shown) {
      const line = document.createElement("tr");
      for (const entry of shown) {
        const cell = document.createElement("th");
        const button = document.createElement("button");
        cell.scope = "col";
        if (entry.number) cell.className = "number";
        const way = state.descending ? "descending" : "ascending";
        cell.setAttribute("aria-sort", state.sorted === entry ? way : "none");
        button.type = "button";
        button.textContent = entry.title;
        button.addEventListener("click", () => {
          sortBy(entry);
          [...table.tHead.querySelectorAll("button")][shown.indexOf(entry)].focus();
        });
        cell.append(button);
        line.append(cell);
      }
      table.tHead.replaceChildren(line);
    }

    function render(onPaper = false) {
      const shown = columns.filter(({ extra }) => state.all || !extra);
      const start = onPaper ? 0 : state.page * PAGE;
      const rows = state.rows.slice(start, start + (onPaper ? PRINTED : PAGE));
      renderHead(shown);
      const lines = rows.map((row) => {
        const line = document.createElement("tr");
        shown.forEach((entry, index) => {
          const cell = document.createElement(index ? "td" : "th");
          if (!index) cell.scope = "row";
          if (entry.number) cell.className = "number";
          cell.textContent = entry.shown(row);
          if (!entry.number && cell.textContent.length > 40) cell.title = cell.textContent;
          line.append(cell);
        });
        return line;
      });
      table.tBodies[0].replaceChildren(...lines);
      const total = state.rows.length.toLocaleString("en");
      const from = (start + 1).toLocaleString("en");
      const to = (start + rows.length).toLocaleString("en");
      byId("range").textContent = rows.length ? `${from}–${to} of ${total}` : "no trial matches";
      byId("previous").disabled = state.page === 0;
      byId("next").disabled = start + PAGE >= state.rows.length;
    }

    const turn = (pages) => () => {
      state.page += pages;
      render();
    };
    byId("previous").addEventListener("click", turn(-1));
    byId("next").addEventListener("click", turn(1));
    byId("filter").addEventListener("input", filterAndSort);
    byId("more").closest("label").hidden = !columns.some(({ extra }) => extra);
    byId("more").addEventListener("change", (event) => {
      state.all = event.target.checked;
      render();
    });
    addEventListener("beforeprint", () => render(true));
    addEventListener("afterprint", () => render());
    render();
    table.dataset.state = "drawn";
  }

  // ---------------------------------------------------------------------------------------------

  if (typeof DecompressionStream === "undefined") {
    say("Plots and the table of trials need a browser of 2023 or later (DecompressionStream).");
    return;
  }
  const unreadable = (error) => say(`This file is damaged: ${error.message}`);
  watchPlots();
  if (byId("trials-table")) showTrials().catch(unreadable);
})();
