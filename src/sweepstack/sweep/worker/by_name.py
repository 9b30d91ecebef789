"""Another application's trip to a local worker process, by pickle as multiprocessing uses it.

What pickle cannot carry is found again by its name in the process that is started, which has
imported the application's main module: the task (under its name stands Hydra's wrapper, and not the
function itself) and OmegaConf's resolvers (closures). A resolver has to be a function that can be
imported, or be registered when the main module is imported.

Other launchers (joblib, submitit, ray) use cloudpickle, which carries functions by value, and take
Hydra's state along themselves; they do not come here.
"""

from __future__ import annotations

import inspect
import pickle
from collections.abc import Callable
from importlib import import_module
from multiprocessing.reduction import ForkingPickler
from typing import Any

from hydra.core.singleton import Singleton
from hydra.core.utils import setup_globals
from omegaconf import OmegaConf
from omegaconf.basecontainer import BaseContainer

from sweepstack.config import hydra_adapter
from sweepstack.sweep.worker.other import Other

_Task = Callable[[Any], Any]


def _reduce(app: Other) -> tuple[Any, ...]:
    instances = Singleton.get_state()["instances"]
    task: Any = app.task
    if inspect.isfunction(task) and "<locals>" not in task.__qualname__:
        task = (task.__module__, task.__qualname__)
    return _restore, (instances, _resolvers(), app.context, app.master, task)


def _restore(
    instances: Any,
    resolvers: dict[str, Callable[..., Any]],
    context: Any,
    master: Any,
    task: _Task | tuple[str, str],
) -> Other:
    """The application in the process that was started."""
    setup_globals()
    Singleton.set_state(
        {"instances": instances, "omegaconf_resolvers": dict(BaseContainer._resolvers)}
    )
    for name, function in resolvers.items():
        if not OmegaConf.has_resolver(name):
            hydra_adapter.register_resolver(name, function)
    return Other(context, master, _found(*task) if isinstance(task, tuple) else task)


def _found(module: str, qualname: str) -> _Task:
    found: Any = import_module(module)
    for part in qualname.split("."):
        found = getattr(found, part)
    return inspect.unwrap(found)  # type: ignore[no-any-return]


def _resolvers() -> dict[str, Callable[..., Any]]:
    """Those of the registered resolvers that another process can import."""
    found: dict[str, Callable[..., Any]] = {}
    for name, wrapper in BaseContainer._resolvers.items():
        function = inspect.getclosurevars(wrapper).nonlocals.get("resolver")
        try:
            pickle.dumps(function)
        except (pickle.PicklingError, AttributeError, TypeError):
            continue
        if callable(function):
            found[name] = function
    return found


ForkingPickler.register(Other, _reduce)
