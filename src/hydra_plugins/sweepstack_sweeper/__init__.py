"""Hydra's plugin `hydra/sweeper=sweepstack`: what Hydra discovers, and nothing more.

Every Hydra application on this machine imports this module at its start, so it imports neither
torch nor optuna; the sweep itself is in `_impl.py`. The nodes of `hydra.sweeper` and its groups
`sampler` and `pruner` hold the defaults that `sweepstack.config.sweeper` declares. They are plain:
a structured config would refuse the first mistake alone, in Hydra's terms.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from hydra.core.config_store import ConfigStore
from hydra.plugins.sweeper import Sweeper
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig

from sweepstack.config import sweeper


class SweepstackSweeper(Sweeper):
    """Hands everything to `_impl`, which imports what a sweep needs."""

    def __init__(self, **node: Any) -> None:
        self.node = node

    def setup(
        self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig
    ) -> None:
        """Keep what Hydra says."""
        self.hydra_context, self.task_function = hydra_context, task_function
        self.config = config

    def sweep(self, arguments: list[str]) -> None:
        """Run the sweep that the command line and `hydra.sweeper` describe; a mistake ends the
        process with one line and its exit code.

        Raises:
            SystemExit: something is wrong, nothing completed, or a signal ended the sweep.
        """
        from sweepstack.config import commands
        from sweepstack.config.errors import SweepstackError

        assert self.hydra_context is not None
        assert self.task_function is not None
        assert self.config is not None
        try:
            # Its import may find that the installed Optuna is too old.
            from hydra_plugins.sweepstack_sweeper import _impl

            commands.imported()
            _impl.sweep(self.node, arguments, self.hydra_context, self.task_function, self.config)
        except SweepstackError as error:
            commands.complain("sweepstack", error)


def _store(group: str, name: str, node: dict[str, Any]) -> None:
    """Keep a node, unless another plugin has one of this name (hydra-optuna-sweeper's samplers,
    which this sweeper understands too)."""
    known: dict[str, Any] = ConfigStore.instance().repo
    for part in group.split("/"):
        known = known.get(part, {})
    if f"{name}.yaml" not in known:
        ConfigStore.instance().store(group=group, name=name, node=node, provider="sweepstack")


def nodes() -> Iterator[tuple[str, str, dict[str, Any]]]:
    """Group, name and defaults of every node."""
    keys = sweeper.defaults(sweeper.Sweeper)
    options = {"sampler": sweeper.SAMPLERS, "pruner": sweeper.PRUNERS}
    node = {
        "_target_": f"{__name__}.{SweepstackSweeper.__name__}",
        "_recursive_": False,
        "defaults": [{group: keys.pop(group)} for group in options],
        **keys,
    }
    yield "hydra/sweeper", "sweepstack", node
    for group, known in options.items():
        for name, declared in known.items():
            yield f"hydra/sweeper/{group}", name, {"name": name, **sweeper.defaults(declared)}


for _node in nodes():
    _store(*_node)
