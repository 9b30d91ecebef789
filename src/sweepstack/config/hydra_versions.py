"""The two calls in which Hydra 1.3 (OmegaConf 2.3) and 1.4 (OmegaConf 2.4) differ."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import hydra
import omegaconf
from hydra import version
from omegaconf import OmegaConf

_BASE = "1.3"


def _at_least(given: str, major: int, minor: int) -> bool:
    first, second = given.split(".")[:2]
    return (int(first), int(second)) >= (major, minor)


_HYDRA_1_4 = _at_least(hydra.__version__, 1, 4)

MAIN_ARGUMENTS: dict[str, Any] = {} if _HYDRA_1_4 else {"version_base": _BASE}
"""For `hydra.main`: the defaults of Hydra 1.3, which 1.4 has anyway and asks not to name."""


def set_defaults() -> None:
    """Choose Hydra 1.3's defaults for composing, as `hydra.main` does."""
    if not _HYDRA_1_4:
        version.setbase(_BASE)


def register_resolver(name: str, function: Callable[..., Any]) -> None:
    """Make `${name:}` call `function` in configs."""
    if _at_least(omegaconf.__version__, 2, 4):
        register: Callable[..., Any] = OmegaConf.register_resolver
    else:
        register = OmegaConf.register_new_resolver
    register(name, function, replace=True)
