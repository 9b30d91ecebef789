"""Workers whose runner says when which trial ends and how; two trials at a time do the same."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import optuna
from fault_support import rows

from sweepstack import storage
from sweepstack.sweep import plan, studies
from sweepstack.sweep.worker import Asked, Outcome, Stop
from sweepstack.sweep.worker.duplicates import Original
from sweepstack.sweep.worker.worker import Worker


def value_of(asked: Asked) -> int:
    (word,) = asked.overrides
    return int(word.removeprefix("a="))


class Pairs:
    """0 and 1 do the same, 2 and 3 do, and so on."""

    def effect_of(self, asked: Asked) -> str:
        return f"pair {value_of(asked) // 2}"

    def outcome(self, asked: Asked, original: Original) -> Outcome:
        attributes = {"equals": original.number, "loss": original.attributes["loss"]}
        return Outcome(asked, original.state, tuple(original.values), attributes)


@dataclass
class Script:
    """A runner that holds `width` trials at a time and ends the oldest; also the app that has it.

    `before_end` may do anything when a trial is about to end, and say another state than complete.
    """

    width: int = 1
    before_end: Callable[[int], str | None] = lambda value: None
    trained: list[int] = field(default_factory=list)
    equal: Any = field(default_factory=Pairs)

    def runner(self, plan: Any, folder: Path, worker: Any) -> Script:
        self.worker = worker
        return self

    def checkpointed(self, folder: Path, number: int) -> int:
        return 0

    def close(self) -> None:
        pass

    def run(self, asked: Iterator[Asked]) -> Iterator[Outcome]:
        held: list[Asked] = []
        while True:
            while len(held) < self.width and (new := next(asked, None)) is not None:
                held.append(new)
                self.trained.append(value_of(new))
            if not held:
                return
            oldest = held.pop(0)
            value = value_of(oldest)
            for step in (1, 2):
                self.worker.decisions.report(oldest, step, value + step)
            state = self.before_end(value) or "complete"
            attributes = {"error": "so it was"} if state == "failed" else {"loss": value}
            yield Outcome(oldest, state, (float(value),), attributes)  # type: ignore[arg-type]


def worker(folder: Path, app: Script, values: str = "0,1,2,3,4,5", **settings: Any) -> Worker:
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    (folder / "outputs").mkdir(exist_ok=True)
    url = f"sqlite:///{folder}/outputs/studies.db"
    node = {"storage": url, "study_name": "s", **settings}
    chosen = plan.read(node, [f"a={values}"], "app")
    chosen = replace(chosen, objectives=("value",), directions=("minimize",))
    opened = storage.connect(url)
    study = studies.open_study(opened, "s", ["minimize"], {"space": "a"})
    book = studies.open_book(chosen, study, opened, lambda number: 0)
    return Worker(chosen, app, book, folder, Stop())  # type: ignore[arg-type]


def told(folder: Path) -> dict[int, tuple[str, Any]]:
    """State, and which value's numbers it has, of every point; those put back are left out."""
    final = [row for row in rows(folder) if not row.is_retried]
    points = {row.number: int(dict(row.params)["a"]) for row in rows(folder) if row.params}
    found = {}
    for row in final:
        original = row.attributes.get("equals")
        found[points[row.number]] = (row.state, None if original is None else points[original])
    assert len(found) == len(final), "a point was run twice"
    return found


def check_all(folder: Path, points: int = 6) -> None:
    """Every point is complete; one of each pair was trained, and the other has its numbers."""
    final = {dict(row.params)["a"]: row for row in rows(folder) if not row.is_retried}
    assert sorted(final) == list(range(points))
    assert {row.state for row in final.values()} == {"COMPLETE"}
    for pair in range(0, points, 2):
        one, other = final[pair], final[pair + 1]
        equal = [row for row in (one, other) if "equals" in row.attributes]
        assert len(equal) == 1
        assert (one.values, one.reports) == (other.values, other.reports)
        assert len(one.reports) == 2
        assert one.attributes["loss"] == other.attributes["loss"]
        numbers = {one.number, other.number} - {equal[0].number}
        assert {equal[0].attributes["equals"]} == numbers
