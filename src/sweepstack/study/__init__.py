"""Reading studies: never imports the engine or the sweeper.

The package is also the function `sweepstack.study`: importing a package sets its name in the one
above, where the function stood until then.
"""

from __future__ import annotations

import sys
from types import ModuleType
from typing import Any

import sweepstack


class _Package(ModuleType):
    def __call__(self, name: str, storage: str = sweepstack.STORAGE) -> Any:
        """See `sweepstack.study`."""
        return sweepstack.open_study(name, storage)


sys.modules[__name__].__class__ = _Package
