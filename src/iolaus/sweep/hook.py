"""`hydra.sweeper.custom_search_space`: a function of the user's that suggests more parameters.

It is called as `function(config, trial)` for every trial, after the declared parameters. Called by
`plan.py`, which checks that it is there, and by `worker.py`.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from typing import Any

from iolaus.errors import InputError, one_line

_WHERE = "hydra.sweeper.custom_search_space"


def find(dotted: str) -> Callable[[Any, Any], None]:
    """The function called `dotted`, as in "package.module.configure".

    A leading dot is ignored, as older versions of Hydra did. The module may be `__main__`, and may
    have a name that is no Python word, such as that of the file `my-app.py`.

    Raises:
        InputError: there is no such module, it cannot be imported, or has no such function.
    """
    module, _, name = dotted.lstrip(".").rpartition(".")
    what = f"{_WHERE} must name a function (config, trial) as package.module.function"
    if not module:
        raise InputError(f"{what}, got '{dotted}'")
    try:
        function = getattr(import_module(module), name, None)
    except Exception as error:  # the user's module may raise anything
        reason = f"{type(error).__name__}: {one_line(error)}"
        raise InputError(f"{what}, got '{dotted}': {reason}") from None
    if not callable(function):
        raise InputError(f"{what}, got '{dotted}': '{module}' has no function '{name}'")
    return function  # type: ignore[no-any-return]
