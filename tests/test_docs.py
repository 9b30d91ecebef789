"""README.md and docs/: every command and block of Python is run, links lead somewhere, keys and
files exist, config.md is what conf/ and the schema say."""

from __future__ import annotations

import dataclasses
import importlib.util
import json
import os
import re
import shlex
import subprocess
import sys

import numpy as np
import pytest
import warm
import yaml
from docs_support import Block, blocks, composed, generator, shortened
from PIL import Image
from support import REPOSITORY, SHARED_DATA

from sweepstack.config import schema, sweeper

DOCS = REPOSITORY / "docs"
PAGES = [*sorted(DOCS.glob("*.md")), REPOSITORY / "README.md"]
SHARED = [DOCS / "results.md", DOCS / "own-model.md", REPOSITORY / "README.md"]
"""Pages on the same study and files: they are run in one folder."""
FOLDERS = [SHARED, *([page] for page in PAGES if page not in SHARED and page.name != "config.md")]


def page_name(page) -> str:
    return page.relative_to(REPOSITORY).as_posix()


def arguments(line: str) -> list[str] | None:
    """What `python` is to run for a command of a page; None if this machine lacks what it needs."""
    words = shlex.split(line)
    assert "../" not in line, f"not in a folder that a reader has: {line}"
    assert words[:2] == ["uv", "run"], f"not a command of ours, and not marked: {line}"
    program, rest = words[2], words[3:]
    if program == "pytest":
        return None
    if "data.download=true" in line and not (SHARED_DATA / "MNIST").is_dir():
        return None
    if importlib.util.find_spec("tensorboard") is None:
        rest = [word.replace("[tensorboard,csv]", "csv") for word in rest]
    rest = [word.replace("data.download=true", f"data.root={SHARED_DATA}") for word in rest]
    if program == "sweepstack-study":
        return [*warm.COMMANDS[program], *rest]
    if program == "python":
        return rest
    assert program == "sweepstack", line
    return ["-m", "sweepstack", *shortened(rest)]


def pictures(folder):
    """Two classes of little pictures, light ones and dark ones."""
    draw = np.random.default_rng(0)
    for split, count in (("train", 80), ("val", 20)):
        for name, low in (("dark", 0), ("light", 128)):
            place = folder / split / name
            place.mkdir(parents=True)
            for number in range(count):
                pixels = draw.integers(low, low + 128, (16, 16), dtype=np.uint8)
                Image.fromarray(pixels).save(place / f"{number}.png")


@pytest.mark.slow
@pytest.mark.parametrize("pages", FOLDERS, ids=lambda pages: page_name(pages[-1]))
def test_what_a_page_shows_runs(pages, tmp_path):
    pictures(tmp_path / "mydata")
    earlier: list[list[str]] = []  # run for another page: not run again
    for page in pages:
        found = blocks(page.read_text("utf-8"))
        for number, block in enumerate(found):
            file = block.file or (f"block{number}.py" if block.kind == "python" else None)
            if file is not None:
                (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
                (tmp_path / file).write_text(block.text, "utf-8")
        new = [words for number, block in enumerate(found) for words in to_run(block, number)]
        for words in new:
            if words not in earlier:
                done = warm.run(words, tmp_path, {**os.environ, "COLUMNS": "120"})
                assert done.returncode == 0, f"{words}\n{done.stdout[-3000:]}{done.stderr[-3000:]}"
        earlier += [words for words in new if words[0] == "-m"]


def to_run(block: Block, number: int) -> list[list[str]]:
    """The arguments of `python` for each command of a page's block."""
    if block.kind == "commands":
        return [words for words in map(arguments, block.lines) if words is not None]
    if block.kind == "composed":
        return [["-m", "sweepstack", *words] for words in map(composed, block.lines) if words]
    return [[f"block{number}.py"]] if block.kind == "python" and block.file is None else []


def test_a_page_is_taken_apart_as_its_convention_says():
    page = """Text.

    uv run sweepstack init=he
    uv run sweepstack init=zeros

Slurm needs a cluster. Not run
here:

    A=1 uv run sweepstack -m init=he,zeros hydra/launcher=slurm
    pip install x

```python
# mynet.py
x = 1
```
```text
out
```
"""
    found = blocks(page)
    assert [block.kind for block in found] == ["commands", "composed", "python", "text"]
    assert found[0] == Block(
        "commands", ("uv run sweepstack init=he", "uv run sweepstack init=zeros")
    )
    assert found[2].file == "mynet.py"
    words = composed(found[1].lines[0])
    assert words is not None
    assert words[:3] == ["-m", "init=he,zeros", "hydra.sweeper.dry_run=true"]
    assert composed(found[1].lines[1]) is None


@pytest.mark.parametrize("page", PAGES, ids=page_name)
def test_yaml_of_a_page_can_be_read(page):
    for block in blocks(page.read_text("utf-8")):
        assert block.kind in ("commands", "composed", "python", "yaml", "text")
        if block.kind == "yaml":
            assert isinstance(yaml.safe_load(block.text), dict)


def anchors(text: str) -> set[str]:
    """The anchors that GitHub makes of a page's headings."""
    titles = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


@pytest.mark.parametrize("page", PAGES, ids=page_name)
def test_links_lead_somewhere(page):
    for target in re.findall(r"\]\(([^)\s]+)\)", page.read_text("utf-8")):
        if re.match(r"[a-z]+://", target):
            continue
        name, _, anchor = target.partition("#")
        other = page.parent / name if name else page
        assert other.exists(), target
        if anchor:
            assert anchor in anchors(other.read_text("utf-8")), target


def known_keys() -> set[str]:
    """Every key of a config and of the sweeper."""
    found = {"objective", "metrics", "trust"}
    found |= {f"{group}._target_" for group in ("data", "model", "optimizer", "loss")}
    plain = {group: {"": kind} for group, kind in schema.PLAIN.items()}
    for group, options in {**schema.OPTIONS, **plain}.items():
        for kind in options.values():
            found |= {f"{group}.{item.name}" for item in dataclasses.fields(kind)}
    found |= {f"hydra.sweeper.{key}" for key in sweeper.defaults(sweeper.Sweeper)}
    for group, options in (("sampler", sweeper.SAMPLERS), ("pruner", sweeper.PRUNERS)):
        settings = {key for kind in options.values() for key in sweeper.defaults(kind)} | {"name"}
        found |= {f"hydra.sweeper.{group}.{key}" for key in settings}
    return found | {"hydra.sweeper"}


GROUPS = "|".join((*schema.OPTIONS, *schema.PLAIN))
KEY = re.compile(rf"(?<![\w./+])((?:hydra\.sweeper|{GROUPS})\.\w+(?:\.\w+)*)(?![\w(/])")


@pytest.mark.parametrize("page", PAGES, ids=page_name)
def test_keys_and_files_that_a_page_names_exist(page):
    text = page.read_text("utf-8")
    named = set(KEY.findall(text))
    files = {word for word in named if word.endswith((".py", ".yaml", ".md", ".pt"))}
    assert named - files <= known_keys()
    places = r"`((?:conf|sweeps|src|tests|benchmarks|docs)/[\w./]+)`"
    for path in re.findall(places, text):
        assert (REPOSITORY / path).exists(), path


def test_the_index_lists_every_page():
    index = (DOCS / "README.md").read_text("utf-8")
    for page in DOCS.glob("*.md"):
        assert page.name == "README.md" or f"({page.name})" in index, page.name


def test_every_sweep_and_option_is_documented():
    page = (DOCS / "sweeps.md").read_text("utf-8")
    for file in (REPOSITORY / "sweeps").glob("*.yaml"):
        assert f"### {file.stem}\n" in page
        assert f"+sweeps={file.stem}" in page
    tasks = [page for page in PAGES if page.name != "config.md"]
    text = "\n".join(page.read_text("utf-8") for page in tasks)
    for name in (*sweeper.SAMPLERS, *sweeper.PRUNERS):
        assert f"`{name}`" in text, name
    for key in sweeper.defaults(sweeper.Sweeper):
        if key not in ("storage", "direction", "params"):
            assert re.search(rf"\b{key}\b", text), key


def test_the_reference_is_what_conf_and_schema_say():
    generate = generator()
    written = generate.PAGE.read_text("utf-8")
    assert written == generate.page(), "stale: run python docs/generate.py"
    unnamed = ("name", "scheme", "target", "arguments")  # what an option is chosen by, custom's own
    for key in known_keys():
        if not key.startswith("hydra.") and key.rpartition(".")[2] not in unnamed:
            assert f"`{key}`" in written, key
    for line in written.splitlines():
        assert not re.search(r"\|\s*\|$", line), f"no comment in conf/: {line}"


@pytest.mark.slow
def test_the_site_is_built_without_warnings_or_anything_of_other_hosts(tmp_path):
    pytest.importorskip("mkdocstrings", reason="mkdocs-material or mkdocstrings is not installed")
    build = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "-d", str(tmp_path)]
    quiet = {**os.environ, "NO_MKDOCS_2_WARNING": "1"}
    done = subprocess.run(build, cwd=REPOSITORY, capture_output=True, text=True, env=quiet)
    assert done.returncode == 0, done.stderr
    pages = {path.parent.name: path.read_text("utf-8") for path in tmp_path.rglob("index.html")}
    assert pages.keys() >= {"first-sweep", "config", "api", "trust", "stacks"}
    for name in ("sweepstack.results", "notebook.Study.best", "notebook.Plots.curves"):
        assert f'{name}"' in pages["api"], name
    loaded = re.compile(r"<(?:script|img|iframe)[^>]*src=.?https?:|<link[^>]*stylesheet[^>]*http")
    assert not [name for name, page in pages.items() if loaded.search(page)]


@pytest.mark.slow
def test_the_notebook_runs_from_its_first_cell_to_its_last(tmp_path):
    cells = json.loads((DOCS / "notebook.ipynb").read_text("utf-8"))["cells"]
    code = ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"]
    assert len(code) > 5
    # What a notebook shows of a cell is the value of its last line.
    shown = [f"{text.rpartition(chr(10))[2]}" for text in code]
    checked = [f"assert ({last}) is not None" for last in shown if not last.startswith("import")]
    script = tmp_path / "cells.py"
    script.write_text("\n".join(code + checked[1:]), "utf-8")
    done = warm.run([script.name], tmp_path, {**os.environ})
    assert done.returncode == 0, done.stderr[-3000:]
