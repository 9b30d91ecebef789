"""Known configurations that a sweep tries first: reads `hydra.sweeper.enqueue`.

enqueue:
  - {optimizer.lr: 0.1, init: he}
  - [optimizer.lr=0.1, init=he]
  - optimizer.lr=0.1                 # the sampler chooses the rest
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sweepstack.config.check import shown
from sweepstack.config.errors import InputError
from sweepstack.sweep.space import grammar
from sweepstack.sweep.space.parameter import Label
from sweepstack.sweep.space.space import Space

_WHERE = "hydra.sweeper.enqueue"
_POINT = '{optimizer.lr: 0.1, init: he} or "optimizer.lr=0.1"'


def read(found: Space, given: Any, grid: bool) -> tuple[Mapping[str, Label], ...]:
    """The known points; those of a `grid` must be whole.

    Raises:
        InputError: one line for each that lies outside the space.
    """
    points: list[Mapping[str, Label]] = []
    mistakes: list[str] = []
    for number, item in enumerate(given or ()):
        if isinstance(item, str):
            item = [item]
        if not isinstance(item, Mapping | list | tuple):
            mistakes.append(f"{_WHERE}[{number}] must look like {_POINT}, got {shown(item)}")
            continue
        if isinstance(item, Mapping):
            item = [f"{key}={_text(value)}" for key, value in item.items()]
        try:
            point = found.values_of([str(word) for word in item])
        except InputError as error:
            mistakes += [f"{_WHERE}[{number}]: {line}" for line in error.mistakes]
            continue
        if grid and point not in found.grid():
            mistakes.append(
                f"{_WHERE}[{number}] must be a whole point of the grid, got {', '.join(item)}"
            )
        points.append(point)
    if mistakes:
        raise InputError(mistakes)
    return tuple(points)


def _text(value: Any) -> str:
    """A value of a YAML file as an override writes it; words stand as they are."""
    return value if isinstance(value, str) else grammar.text_of(value)
