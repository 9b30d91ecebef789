"""The README is short, and its way through the source is. Its commands: `test_docs.py`."""

from __future__ import annotations

import re

from support import REPOSITORY

README = (REPOSITORY / "README.md").read_text("utf-8")


def test_the_readme_is_short_and_shows_what_there_is():
    assert len(README.splitlines()) <= 130
    assert len(re.findall(r"^    uv run sweepstack ", README, re.MULTILINE)) >= 6
    shown = set(re.findall(r"^    uv run sweepstack-study (\w+)", README, re.MULTILINE))
    assert shown >= {"list", "show", "report", "export", "rerun"}
    assert "sweepstack.results(" in README
    assert "uv run pytest" in README


def test_a_reader_meets_at_most_eight_files_on_a_way_through_the_source():
    ways = re.findall(r"^\d\. .*(?:\n   .*)*", README.partition("## Reading the source")[2], re.M)
    assert len(ways) == 2
    for way in ways:
        files = re.findall(r"`([\w/]+\.py)`", way)
        assert 3 <= len(set(files)) == len(files) <= 8
        for file in files:
            assert (REPOSITORY / "src/sweepstack" / file).is_file(), file
