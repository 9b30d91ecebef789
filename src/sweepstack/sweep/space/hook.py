"""The user's own function that suggests more: reads `hydra.sweeper.custom_search_space`.

    def suggest(config, trial):            # mypackage/space.py, in the working folder or installed
        trial.suggest_int("model.hidden", 8, 64)

`hydra.sweeper.custom_search_space=mypackage.space.suggest` names it. What it suggests becomes an
override of the trial.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import optuna

from sweepstack.config.errors import InputError, one_line

WHERE = "hydra.sweeper.custom_search_space"


def find(name: str) -> Callable[[Any, optuna.Trial], None]:
    """The function of that dotted name.

    A leading dot is ignored, as older versions of Hydra did. The module may be `__main__`.

    Raises:
        InputError: there is no such function, or its module does not import.
    """
    module, _, function = name.lstrip(".").rpartition(".")
    rule = f"{WHERE} must name a function (config, trial), such as mypackage.space.suggest"
    if not module:
        raise InputError(f"{rule}, got '{name}'")
    if str(Path.cwd()) not in sys.path:  # as `python -m` has it
        sys.path.insert(0, str(Path.cwd()))
    try:
        found = getattr(importlib.import_module(module), function)
    except Exception as error:  # the user's module may raise anything
        reason = one_line(error) or type(error).__name__
        raise InputError(f"{rule}, got '{name}': {reason}") from None
    if not callable(found):
        raise InputError(f"{rule}, got '{name}', which is no function")
    hook: Callable[[Any, optuna.Trial], None] = found
    return hook
