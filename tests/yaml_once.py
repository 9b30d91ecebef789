"""YAML that was read before is not parsed again: a command composes conf/ three times.

OmegaConf makes its own copy of what it is given.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import yaml
from omegaconf import _utils, omegaconf

LOADER = _utils.get_yaml_loader() if hasattr(_utils, "get_yaml_loader") else None
"""None for OmegaConf 2.4 and later, which reads as it does."""


@cache
def parsed(text: str) -> Any:
    return yaml.load(text, Loader=LOADER)


class _Yaml:
    """The module as OmegaConf uses it."""

    def load(self, given: Any, Loader: Any) -> Any:
        text = given if isinstance(given, str) else given.read()
        try:
            return parsed(text)
        except yaml.YAMLError:
            if text is not given:
                given.seek(0)
            return yaml.load(given, Loader=Loader)  # which names the file

    def __getattr__(self, name: str) -> Any:
        return getattr(yaml, name)


def remember(*files: Path) -> None:
    """Have OmegaConf read so from now on, and read these files."""
    if LOADER is None:
        return
    omegaconf.yaml = _Yaml()
    for file in files:
        parsed(file.read_text("utf-8"))
