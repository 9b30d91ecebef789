"""Trials of sweepstack itself: composed, checked, and trained by the engine as one stream of specs.

`Own` says what a sweep of sweepstack asks, before any trial exists; `Trainer` runs the trials of
one worker. Its sibling for other Hydra applications is `other.py`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cache, cached_property, partial
from pathlib import Path
from typing import Any

from sweepstack.config import reading as config
from sweepstack.config.errors import InputError
from sweepstack.config.schema import RunConfig
from sweepstack.engine.spec import TrialSpec
from sweepstack.sweep.book.book import checkpointed
from sweepstack.sweep.naming import PLACES
from sweepstack.sweep.plan import Plan
from sweepstack.sweep.space import points
from sweepstack.sweep.space.space import Space
from sweepstack.sweep.worker import equal, question
from sweepstack.sweep.worker.composition import Composition
from sweepstack.sweep.worker.trainer import Trainer
from sweepstack.sweep.worker.trial import Verdicts

SAME_IN_ALL = frozenset({"training.seeds", "objective"})
"""Keys without which the trials of a study could not be compared."""


@dataclass(frozen=True)
class Own:
    """sweepstack as the application that is swept.

    Attributes:
        config_dir: the folder of `--config-dir`.
        config_name: the primary config.
    """

    config_dir: str | None = None
    config_name: str = config.CONFIG_NAME
    prefix = "sweepstack"
    prunes = True

    def __reduce__(self) -> tuple[type[Own], tuple[str | None, str]]:
        return Own, (self.config_dir, self.config_name)  # another process composes anew

    @property
    def origin(self) -> dict[str, str | None]:
        """Where its configs come from."""
        folder = None if self.config_dir is None else str(Path(self.config_dir).absolute())
        return {"name": "sweepstack", "config_dir": folder, "config_name": self.config_name}

    def prepare(self, plan: Plan) -> tuple[Plan, dict[str, Any]]:
        """Check every value of the space, and find out what is optimized.

        Returns:
            The plan with objectives and directions, and what else must be the same when the study
            is gone on with.

        Raises:
            InputError: one line for each mistake.
            EnvironmentFault: the dataset or the device is missing.
        """
        configs = self._configs(plan.space)
        program = question.meet(configs)
        objectives, directions = question.resolve(plan, program)
        swept = {parameter.path for parameter in plan.space.parameters}
        asked = {
            "objectives": list(objectives),
            "config": _without(asdict(configs[0]), "", swept | PLACES),
        }
        fixed = plan.space.fixed

        def static(words: list[str]) -> Any:
            return TrialSpec(self.read(self.composition, [*fixed, *words])).static

        ranks = points.ranks(plan.space, static) if plan.grid else {}
        found = replace(plan, objectives=objectives, directions=directions, order=ranks)
        return found, asked

    def runner(self, plan: Plan, folder: Path, verdicts: Verdicts) -> Trainer:
        """What a worker runs its trials with."""
        return Trainer(partial(self.read, self.composition), plan, folder, verdicts)

    def checkpointed(self, folder: Path, number: int) -> int | None:
        """Steps that the checkpoints of a trial hold, None if it never began."""
        return checkpointed(folder, number)

    @cached_property
    def composition(self) -> Composition:
        """Composes overrides of this application quickly; what it has composed, it keeps."""
        places = [config.folder("conf"), config.folder("sweeps").parent]
        places += [Path(self.config_dir)] if self.config_dir else []

        @cache
        def is_group(key: str) -> bool:
            return any((place / key.partition("@")[0]).is_dir() for place in places)

        def load(words: list[str]) -> Any:
            return config.compose(
                words, config_dir=self.config_dir, config_name=self.config_name, with_hydra=True
            )

        return Composition(load, is_group)

    def repeats(self, plan: Plan) -> int | None:
        """How many points of a grid do what another does, if that is soon known."""
        return equal.count(plan, self.composition)

    def config(self, plan: Plan) -> Any:
        """The config without the swept values."""
        return self.composition(list(plan.space.fixed))

    def read(self, composition: Composition, words: Sequence[str]) -> RunConfig:
        """The typed config of `words`.

        Raises:
            InputError: one line for each mistake.
        """
        try:
            return config.read_plain(composition(words))
        except config.REFUSALS:
            config.compose(words, self.config_dir, self.config_name)  # says it for people
            raise

    def check(self, space: Space) -> None:
        """Check every value of a space.

        Raises:
            InputError: one line for each mistake.
        """
        self._configs(space)

    def _configs(self, space: Space) -> list[RunConfig]:
        """The config of every point at which a space is checked."""
        composition, mistakes = self.composition, dict[str, None]()
        found: list[RunConfig] = []
        for words in points.to_check(space):
            try:
                found.append(self.read(composition, [*space.fixed, *words]))
            except InputError as error:
                mistakes |= dict.fromkeys(error.mistakes)
        for path in SAME_IN_ALL & {parameter.path for parameter in space.parameters}:
            mistakes[f"{path} must be the same in the whole sweep: give one value"] = None
        if mistakes:
            raise InputError(list(mistakes))
        return found


def _without(node: Mapping[str, Any], prefix: str, left_out: set[str] | frozenset[str]) -> Any:
    """A config without the keys that are swept or say only where things are."""
    kept: dict[str, Any] = {}
    for key, value in node.items():
        path = f"{prefix}{key}"
        # Of a group that is swept, what is fixed in it still counts.
        if path in left_out and (path in PLACES or not isinstance(value, Mapping)):
            continue
        kept[key] = _without(value, f"{path}.", left_out) if isinstance(value, Mapping) else value
    return kept
