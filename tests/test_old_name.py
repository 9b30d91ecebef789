"""The package had another name, which belongs to somebody else on PyPI: nothing of it is left."""

from __future__ import annotations

from support import REPOSITORY

OLD = "io" + "laus"
SKIPPED = {".git", ".venv", "outputs", "__pycache__", "dist"}


def test_nothing_of_the_old_name_is_left():
    files = [
        path
        for path in REPOSITORY.rglob("*")
        if path.is_file()
        and not SKIPPED & set(path.relative_to(REPOSITORY).parts)
        and not path.relative_to(REPOSITORY).parts[0].endswith("_cache")
        and path.suffix in {".py", ".md", ".yaml", ".toml", ".css", ".js", ".txt", ""}
        and ".hypothesis" not in path.parts
    ]
    assert len(files) > 300
    assert not [path for path in files if OLD in path.read_text("utf-8", "replace").lower()]
    assert not [path for path in files if OLD in str(path.relative_to(REPOSITORY)).lower()]
