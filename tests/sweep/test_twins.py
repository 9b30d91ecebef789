"""Trials of equal effect, with workers whose runner says when which trial ends and how."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import optuna
import pytest
from fault_support import Row, rows, running, until
from sqlalchemy import event

from iolaus import storage
from iolaus.attributes import WORKER
from iolaus.errors import EXIT_INTERRUPTED
from iolaus.sweep import plan, processes, records, studies, twins
from iolaus.sweep.equal import Original
from iolaus.sweep.trial import Asked, Outcome, Stop
from iolaus.sweep.worker import Worker
from iolaus.train import Interrupted

LIMIT_S = 60  # for a hung thread only


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

    def runner(self, plan: Any, folder: Path, verdicts: Any) -> Script:
        self.verdicts = verdicts
        return self

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
                self.verdicts.report(oldest, step, value + step)
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
    study = studies.open_study(storage.connect(url), "s", ["minimize"], {"space": "a"})
    return Worker(chosen, app, study, folder, Stop())  # type: ignore[arg-type]


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


def check_all(folder: Path) -> None:
    """Every point is complete; one of each pair was trained, and the other has its numbers."""
    final = {dict(row.params)["a"]: row for row in rows(folder) if not row.is_retried}
    assert sorted(final) == [0, 1, 2, 3, 4, 5]
    assert {row.state for row in final.values()} == {"COMPLETE"}
    for pair in (0, 2, 4):
        one, other = final[pair], final[pair + 1]
        equal = [row for row in (one, other) if "equals" in row.attributes]
        assert len(equal) == 1
        assert (one.values, one.reports) == (other.values, other.reports)
        assert len(one.reports) == 2
        assert one.attributes["loss"] == other.attributes["loss"]
        numbers = {one.number, other.number} - {equal[0].number}
        assert {equal[0].attributes["equals"]} == numbers


@pytest.mark.parametrize("width", [1, 2, 3, 10])
def test_one_of_each_pair_is_trained_whatever_the_width(tmp_path, width):
    app = Script(width)
    worker(tmp_path, app).work()

    assert app.trained == [0, 2, 4]
    check_all(tmp_path)


def test_what_is_held_aside_runs_until_its_twin_has_ended(tmp_path):
    seen: list[list[Row]] = []
    app = Script(3, lambda value: seen.append(running(tmp_path)))
    worker(tmp_path, app).work()

    at_first = [row.number for row in seen[0]]
    assert at_first == [0, 1, 2, 3, 4]  # three are trained, two wait; 5 was not asked for
    check_all(tmp_path)


def test_a_pruned_trial_prunes_its_twin_with_the_same_reports(tmp_path):
    app = Script(2, lambda value: "pruned" if value == 2 else None)
    worker(tmp_path, app).work()

    assert app.trained == [0, 2, 4]
    assert told(tmp_path)[2] == ("PRUNED", None)
    assert told(tmp_path)[3] == ("PRUNED", 2)
    one, other = rows(tmp_path)[2:4]
    assert one.reports == other.reports
    assert one.values == other.values


@pytest.mark.parametrize("width", [1, 3, 10])
def test_where_a_trial_fails_its_twin_is_trained(tmp_path, width):
    app = Script(width, lambda value: "failed" if value in (0, 4, 5) else None)
    worker(tmp_path, app).work()

    assert sorted(app.trained) == [0, 1, 2, 4, 5]
    states = {value: found[0] for value, found in told(tmp_path).items()}
    assert states == dict(enumerate(["FAIL", *["COMPLETE"] * 3, "FAIL", "FAIL"]))
    assert told(tmp_path)[1] == ("COMPLETE", None)


def test_with_train_all_are_trained(tmp_path):
    app = Script(2)
    worker(tmp_path, app, duplicates="train").work()

    assert sorted(app.trained) == [0, 1, 2, 3, 4, 5]
    assert all("equals" not in row.attributes for row in rows(tmp_path))


def test_twins_of_trials_from_before_are_not_trained(tmp_path):
    first, second = Script(1), Script(1)
    worker(tmp_path, first, sampler="grid", n_trials=3).work()
    worker(tmp_path, second).work()

    assert (first.trained, second.trained) == ([0, 2], [4])
    check_all(tmp_path)


def test_a_twin_of_the_past_is_found_without_a_query(tmp_path):
    worker(tmp_path, Script(1), values="0,2,4").work()
    later = worker(tmp_path, Script(1), values="0,2,4,1,3,5")
    assert later.twins is not None
    queries: list[str] = []
    engine = later.study._storage._backend.engine  # type: ignore[attr-defined]
    event.listen(engine, "before_cursor_execute", lambda *given: queries.append(given[2]))
    trial = later.ledger.claim()
    assert trial is not None
    queries.clear()

    assert not later.twins.admitted([Asked(trial, ["a=1"])])
    assert queries == []


def test_what_is_held_aside_is_put_back_when_a_signal_stops_the_sweep(tmp_path):
    def interrupt(value: int) -> None:
        raise Interrupted(EXIT_INTERRUPTED, 1)

    stopped = Script(2, interrupt)
    worker(tmp_path, stopped).work()

    assert [row.state for row in rows(tmp_path) if row.number < 3] == ["FAIL"] * 3
    assert not running(tmp_path)
    app = Script(2)
    worker(tmp_path, app).work()
    assert sorted(value // 2 for value in app.trained) == [0, 1, 2]
    check_all(tmp_path)


def test_no_more_than_so_many_are_held_aside(tmp_path, monkeypatch):
    monkeypatch.setattr(twins, "MOST_ASIDE", 1)
    most: list[int] = []
    app = Script(3, lambda value: most.append(len(running(tmp_path))))
    worker(tmp_path, app).work()

    assert max(most) == 2  # one is trained and one waits: then no other is asked for
    check_all(tmp_path)


# --- two workers ---------------------------------------------------------------------------------


class Meanwhile:
    """Another worker that works while the first one has a trial in hand."""

    def __init__(self, folder: Path):
        self.folder, self.app = folder, Script(1)
        self.thread = threading.Thread(target=self._work)
        self.errors: list[BaseException] = []

    def _work(self) -> None:
        try:
            worker(self.folder, self.app).work()
        except BaseException as error:
            self.errors.append(error)

    def start(self) -> None:
        """Start it, and wait until it has nothing to do but to wait."""
        self.thread.start()
        until(lambda: len(self._complete()) == 4 or self.errors, "the other has done its work")
        until(lambda: len(running(self.folder)) == 2 or self.errors, "it holds a trial aside")

    def _complete(self) -> list[Row]:
        return [row for row in rows(self.folder) if row.state == "COMPLETE"]

    def join(self) -> None:
        self.thread.join(LIMIT_S)
        assert not self.thread.is_alive()
        assert not self.errors


def test_a_twin_waits_for_the_other_worker_to_the_end(tmp_path):
    other = Meanwhile(tmp_path)
    app = Script(1, lambda value: other.start() if value == 0 else None)
    worker(tmp_path, app).work()
    other.join()

    assert (app.trained, other.app.trained) == ([0], [2, 4])
    check_all(tmp_path)


def test_a_twin_is_trained_when_the_other_worker_s_trial_fails(tmp_path):
    other = Meanwhile(tmp_path)

    def fail(value: int) -> str:
        other.start()
        return "failed"

    app = Script(1, fail)
    worker(tmp_path, app).work()
    other.join()

    assert (app.trained, other.app.trained) == ([0], [2, 4, 1])
    assert told(tmp_path)[0] == ("FAIL", None)
    assert told(tmp_path)[1] == ("COMPLETE", None)


def begun_by_the_dead(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let a worker begin the trial of value 0 and be killed."""
    dead = worker(folder, Script(1))
    with monkeypatch.context() as patch:
        host_and_pid, _, start = processes.this_process().rpartition(":")
        patch.setattr(processes, "this_process", lambda: f"{host_and_pid}:{int(start) - 1}")
        trial = dead.ledger.claim()
    assert trial is not None
    assert processes.is_gone(str(trial.user_attrs[WORKER]))
    dead.plan.space.suggest(trial)
    dead.journal.parameters([trial])
    assert dead.twins is not None
    assert dead.twins.admitted([Asked(trial, ["a=0"])])


def test_a_twin_whose_worker_died_is_trained_by_another(tmp_path, monkeypatch):
    begun_by_the_dead(tmp_path, monkeypatch)

    app = Script(1)
    worker(tmp_path, app).work()

    assert sorted(value // 2 for value in app.trained) == [0, 1, 2]
    check_all(tmp_path)


def test_who_holds_as_many_aside_as_may_be_sees_itself_that_a_worker_died(tmp_path, monkeypatch):
    monkeypatch.setattr(twins, "MOST_ASIDE", 1)
    begun_by_the_dead(tmp_path, monkeypatch)

    app = Script(1)
    live = worker(tmp_path, app)
    live.deadline = time.time() + LIMIT_S  # else it would wait for ever
    live.work()

    assert sorted(value // 2 for value in app.trained) == [0, 1, 2]
    check_all(tmp_path)


def test_workers_see_what_others_have_begun_since_their_start(tmp_path):
    crew = [worker(tmp_path, Script()) for _ in range(3)]
    admitted = []
    for each, value in zip(crew, (0, 1, 2), strict=True):
        trial = each.ledger.claim()
        assert trial is not None
        assert each.twins is not None
        admitted.append(each.twins.admitted([Asked(trial, [f"a={value}"])]))

    assert [bool(trained) for trained in admitted] == [True, False, True]


def test_many_trials_are_looked_up_together(tmp_path):
    several = worker(tmp_path, Script())
    assert several.twins is not None
    batch = []
    for value in range(6):
        trial = several.ledger.claim()
        assert trial is not None
        batch.append(Asked(trial, [f"a={value}"]))

    assert [asked.number for asked in several.twins.admitted(batch)] == [0, 2, 4]
    effects = [row.attributes.get("iolaus.effect") for row in rows(tmp_path)]
    assert effects == ["pair 0", None, "pair 1", None, "pair 2", None]
    other = worker(tmp_path, Script())
    assert other.twins is not None
    assert other.twins.admitted(batch) == []


def test_the_register_holds_the_study_while_it_reads_what_others_wrote(tmp_path, monkeypatch):
    """Or it would pass over what is written and not committed, where a database lets it."""
    several = worker(tmp_path, Script())
    done: list[str] = []
    hold = records.hold
    monkeypatch.setattr(records, "hold", lambda *given: (done.append("hold"), hold(*given)))
    engine = several.study._storage._backend.engine  # type: ignore[attr-defined]
    event.listen(engine, "before_cursor_execute", lambda *given: done.append(given[2]))
    twins.Register(several.study)

    reads = [place for place, what in enumerate(done) if "trial_user_attributes" in what]
    assert reads
    assert "hold" in done[: reads[0]]
