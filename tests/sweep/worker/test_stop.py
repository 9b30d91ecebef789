"""Workers are asked to stop through their study, and the study's verdict counts."""

from __future__ import annotations

import logging
import math
import signal
import threading
import time
from dataclasses import asdict
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import cloudpickle
import optuna
import pytest
from omegaconf import OmegaConf
from sweep_support import QUICK, states

from hydra_plugins.sweepstack_sweeper import _impl
from sweepstack import storage
from sweepstack.cli import study as cli
from sweepstack.config.errors import EnvironmentFault
from sweepstack.runs import register
from sweepstack.runs.register import Entry
from sweepstack.study.attributes import WORKERS
from sweepstack.study.book.public import PublicBook
from sweepstack.sweep import studies, sweep
from sweepstack.sweep.worker import jobs as worker_jobs
from sweepstack.sweep.worker import launch, trial_folder, worker

SWEPT = "optimizer.lr=0.1,0.2,0.3,0.4"


@pytest.fixture(params=["bulk", "public"])
def books(request, monkeypatch):
    if request.param == "public":
        monkeypatch.setattr(studies, "bulk_problem", lambda: "tables that are used")


def test_stop_ends_the_workers_of_a_study_and_the_same_command_resumes(
    main, books, tmp_path, monkeypatch, capsys
):
    monkeypatch.setattr(worker, "HEED_S", 0.0)
    url, noted = f"sqlite:///{tmp_path}/outputs/studies.db", worker.Worker.record
    said: list[str] = []

    def record(self: Any, outcome: Any) -> None:
        noted(self, outcome)
        if not said:
            capsys.readouterr()
            assert cli.run(["workers", "s", "--storage", url]) == 0
            assert cli.run(["stop", "s", "--storage", url]) == 0
            said.append(capsys.readouterr().out)

    monkeypatch.setattr(worker.Worker, "record", record)
    words = ("-m", *QUICK, SWEPT, "training.width=1")
    stopped = main(*words)

    assert stopped.code == 130
    assert "run the same command again to resume" in stopped.err
    assert "asked 1 worker of study s to stop" in said[0]
    assert "per minute" in said[0]
    assert states(tmp_path).count("COMPLETE") < 4
    assert "RUNNING" not in states(tmp_path)
    assert main(*words).code == 0
    assert states(tmp_path).count("COMPLETE") == 4
    assert cli.run(["workers", "s", "--storage", url]) == 0
    assert "nobody works on study s" in capsys.readouterr().out


@pytest.mark.parametrize("public", [False, True])
def test_a_stop_of_one_sweep_is_not_heeded_by_others(tmp_path, public):
    opened = storage.connect(f"sqlite:///{tmp_path}/s.db")
    kind = PublicBook if public else studies.book_of(opened)
    book = kind(optuna.create_study(storage=opened, study_name="s"), opened, 9)
    before = book.stops()
    assert book.stops("mine") == before

    book.stop("mine")
    assert book.stops("mine") != before
    assert book.stops("other") == before
    book.stop()
    assert book.stops("other") != before
    assert book.stops("later") == book.stops()  # one that begins now goes on


class Board(launch.Scoreboard):
    """Shows nothing of a study whose counts a test sets."""

    def __init__(self, total: int):
        self.done = 0
        self.opened = optuna.create_study()
        self.book: Any = SimpleNamespace(
            study=self.opened,
            total=total,
            counts=lambda: (
                {"done": self.done, "pruned": 0, "failed": 0, "running": 0}
                | {"waiting": 0, "remaining": total - self.done}
            ),
            stops=lambda crew="": None,
        )

    def __enter__(self) -> Board:
        return self

    def __exit__(self, *raised: object) -> None:
        pass

    def enter(self, entry: Entry) -> None:
        self.opened.set_user_attr(f"{WORKERS}.{entry.process}", asdict(entry))

    def refresh(self, *given: object, **named: object) -> None:
        pass


WORKED, SIGNALLED, KILLED, UNBEGUN = (4.0, None), (4.0, 143), (None, None), None
NO_PLACE = (4.0, 3)
"""How workers end: when, and with which code; None of one that did not begin."""
DIED = worker_jobs.JobsFailed("OSError: killed")


@pytest.fixture
def jobs(monkeypatch):
    """A sweep by a launcher that does not name its jobs. Each of `launches` is what becomes of a
    launch: the trials that are done by its end, how each of its workers ended, and what it returns
    or raises."""
    monkeypatch.setattr(worker_jobs, "LOOK_S", 0.01)

    def make(*launches: Any, restarts: int = 3) -> tuple[worker_jobs.Jobs, Board, list[int]]:
        board, asked, left = Board(10), [], list(launches)
        plan = SimpleNamespace(n_jobs=3, max_restarts=restarts, total=10, max_failure_rate=0.5)
        plan.workers_per_gpu = 1
        crew: Any = SimpleNamespace(plan=plan, name="mine", stops=None, deadline=math.inf)

        def other(crew: Any, count: int) -> int | None:
            asked.append(count)
            board.done, ends, result = left.pop(0)
            for number, end in enumerate(ends):
                if end is not None:
                    entry = Entry(f"other/1:{len(asked)}{number}:1", len(asked), 0, crew.name)
                    entry.ended, entry.code = end
                    board.enter(entry)
            if isinstance(result, Exception):
                raise result
            return result  # type: ignore[no-any-return]

        return worker_jobs.Jobs(crew, board, worker_jobs.Launch(other)), board, asked

    return make


def test_a_complete_study_with_a_dead_worker_is_a_success_and_a_line(jobs, caplog):
    run, _, asked = jobs((10, [WORKED, KILLED, WORKED], DIED))
    with caplog.at_level(logging.WARNING, "sweepstack"):
        assert run.run() is None
    assert asked == [3]
    assert said(caplog) == ["the study is complete, though worker 11 on other ended early"]


def test_dead_workers_are_replaced_as_long_as_trials_end(jobs, caplog):
    run, _, asked = jobs(
        (2, [KILLED, SIGNALLED, UNBEGUN], DIED),
        (5, [SIGNALLED, KILLED, KILLED], 143),
        (9, [KILLED, WORKED, WORKED], DIED),
        (10, [WORKED], None),
    )
    assert run.run() is None
    assert asked == [3, 3, 3, 1]


def test_workers_that_die_without_a_trial_are_replaced_so_often(jobs):
    run, _, asked = jobs(
        (2, [KILLED] * 3, DIED), *[(2, [KILLED] * n, DIED) for n in (3, 3, 3)], restarts=2
    )
    with pytest.raises(EnvironmentFault, match="killed"):
        run.run()
    assert asked == [3, 3, 3, 3]  # the first of them made progress


def test_workers_that_are_ended_again_and_again_are_named(jobs):
    run, _, asked = jobs(*[(0, [SIGNALLED] * 3, 143)] * 2, restarts=0)
    with pytest.raises(EnvironmentFault, match=r"10 on other, worker 11 .* ended early; run"):
        run.run()
    assert asked == [3]


def test_workers_that_worked_for_long_are_replaced_though_no_trial_ended(jobs, monkeypatch):
    monkeypatch.setattr(worker_jobs, "MIN_WORK_S", -10.0)
    run, _, asked = jobs(*[(0, [SIGNALLED] * 3, 143)] * 3, (10, [WORKED] * 3, None), restarts=0)
    assert run.run() is None
    assert asked == [3, 3, 3, 3]


def test_workers_that_a_budget_ended_are_not_replaced(jobs):
    run, _, asked = jobs((2, [WORKED] * 3, None))
    assert run.run() is None
    assert asked == [3]


@pytest.mark.parametrize("done", [0, 10])
def test_workers_of_which_none_has_a_place_are_an_error_unless_all_is_done(jobs, done):
    """Each returns nothing, as others of its sweep may have one: with exit code 0 the study would
    be left incomplete."""
    run, _, asked = jobs((done, [NO_PLACE] * 3, None))
    if done < 10:
        with pytest.raises(EnvironmentFault, match="no GPU of the workers' hosts has a place"):
            run.run()
    else:
        assert run.run() is None
    assert asked == [3]
    run, _, asked = jobs((0, [NO_PLACE, WORKED, NO_PLACE], None))
    assert run.run() is None
    assert asked == [3]


@pytest.mark.parametrize(
    ("error", "ends"),
    [
        (DIED, [UNBEGUN] * 3),
        (launch.WorkerFailed("no such data", 3), [(4.0, 3)] * 3),
        (launch.WorkerFailed("no such data", 3), [(4.0, 3), KILLED, KILLED]),
        (ZeroDivisionError("by zero"), [UNBEGUN] * 3),
    ],
)
def test_what_would_end_another_too_is_raised(jobs, error, ends):
    run, _, asked = jobs((2, ends, error))
    with pytest.raises(type(error), match=str(error)):
        run.run()
    assert asked == [3]


def said(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [each.getMessage() for each in caplog.records if each.name.startswith("sweepstack")]


class Scheduler:
    """A made-up queue, whose jobs end only when they are told to."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch):
        self.jobs: list[str] = []
        self.queued: set[str] = set()
        self.cancelled: list[tuple[set[str], str | None]] = []
        self.looks = 0
        self.over = threading.Event()
        monkeypatch.setattr(register, "queued", self.look)
        monkeypatch.setattr(register, "cancel", self.cancel)
        monkeypatch.setattr(worker_jobs, "LOOK_S", 0.01)
        monkeypatch.setattr(worker_jobs, "QUEUE_S", 0.0)

    def submit(self, *jobs: str) -> None:
        self.queued |= set(jobs)
        self.jobs = [*self.jobs, *jobs]

    def look(self, jobs: Any) -> set[str]:
        self.looks += 1
        return self.queued & set(jobs)

    def cancel(self, jobs: Any, only: str | None = None) -> None:
        found = self.queued & set(jobs)
        self.cancelled += [(found, only)] if found else []
        if only != "ask":
            self.queued -= found
            self.over.set()

    def crew(self, run: Any) -> tuple[worker_jobs.Jobs, Board]:
        board, plan = Board(10), SimpleNamespace(n_jobs=2, max_restarts=3, max_failure_rate=0.5)
        plan.total = 10
        crew: Any = SimpleNamespace(plan=plan, name="mine", stops=None, deadline=math.inf)
        return worker_jobs.Jobs(crew, board, worker_jobs.Launch(run, lambda: self.jobs)), board


def test_dead_jobs_are_replaced_while_others_work_and_a_slow_submission_is_awaited(
    monkeypatch, caplog
):
    scheduler, asked = Scheduler(monkeypatch), []

    def run(crew: Any, count: int) -> int | None:
        asked.append(count)
        if len(asked) == 1:
            scheduler.submit("slurm 1_0", "slurm 1_1")
            board.enter(Entry("other/1:11:1", 1, 0, "mine", job="slurm 1_0"))
            scheduler.queued -= {"slurm 1_0"}  # killed
            assert scheduler.over.wait(60)  # and its launcher never knows
            return None
        scheduler.queued -= {"slurm 1_1"}  # which had not begun
        until = scheduler.looks + 5
        while scheduler.looks < until:  # nothing is in the queue
            time.sleep(0.001)
        scheduler.submit(f"slurm {len(asked)}_0")
        if len(asked) == 2:
            board.done = 5
            assert scheduler.over.wait(60)
        else:
            board.done = 10
            board.enter(Entry("other/1:12:1", 1, 0, "mine", job="slurm 3_0", ended=4))
            scheduler.queued.clear()  # all end by themselves
        return None

    jobs, board = scheduler.crew(run)
    with caplog.at_level(logging.WARNING, "sweepstack"):
        assert jobs.run() is None
    assert asked == [2, 1, 1]
    assert board.done == 10
    assert said(caplog) == [f"slurm 1_{n} ended early; starting another" for n in (0, 1)]
    assert scheduler.queued == set()


def test_a_job_without_a_place_has_not_died(monkeypatch):
    """It is not replaced by another, which would find none either; the study goes on."""
    scheduler, asked = Scheduler(monkeypatch), []

    def run(crew: Any, count: int) -> None:
        asked.append(count)
        scheduler.submit("local 1", "local 2")
        board.enter(Entry("other/1:11:1", 1, 0, "mine", job="local 1", ended=2, code=3))
        board.enter(Entry("other/1:12:1", 1, 0, "mine", job="local 2"))
        scheduler.queued -= {"local 1"}
        until = scheduler.looks + 5
        while scheduler.looks < until:
            time.sleep(0.001)
        board.done = 10
        scheduler.queued.clear()

    jobs, board = scheduler.crew(run)
    assert jobs.run() is None
    assert asked == [2]


def test_ctrl_c_cancels_jobs_that_wait_and_asks_those_that_work(monkeypatch, capsys):
    scheduler = Scheduler(monkeypatch)
    stopped: list[str] = []

    def run(crew: Any, count: int) -> int | None:
        scheduler.submit("slurm 1_0", "slurm 1_1")
        jobs.code = 130
        assert scheduler.over.wait(60)
        return None

    jobs, board = scheduler.crew(run)
    board.book.stop = stopped.append
    assert jobs.run() == 130
    assert stopped == ["mine"]
    assert scheduler.cancelled[0] == ({"slurm 1_0", "slurm 1_1"}, "waiting")
    assert "Ctrl-C again leaves at once" in capsys.readouterr().out


def test_the_second_ctrl_c_says_what_may_still_run_and_how_to_end_it(monkeypatch, capsys):
    scheduler, codes = Scheduler(monkeypatch), []
    monkeypatch.setattr(launch.os, "_exit", codes.append)
    scheduler.submit("slurm 1_0", "slurm 1_1")
    scheduler.queued -= {"slurm 1_0"}
    jobs, _ = scheduler.crew(lambda crew, count: None)
    jobs._is_idle()
    jobs._leave(130)
    assert codes == [130]
    assert capsys.readouterr().err.splitlines() == [
        "sweepstack: may still run: slurm 1_1; end with: scancel 1_1",
        "sweepstack: interrupted; run the same command again to resume",
    ]


def test_a_worker_hands_its_error_to_who_launched_it(monkeypatch):
    """A launcher would wrap the exception, with its traceback, into one of its own."""
    crew = worker_jobs.Crew(*(SimpleNamespace(),) * 2, Path(), math.inf)  # type: ignore[arg-type]

    def join(self: Any, stop: Any) -> None:
        raise launch.WorkerFailed("no such data", 3)

    monkeypatch.setattr(worker_jobs.Crew, "join", join)
    assert crew() == ("no such data", 3)


def test_a_preempted_job_ends_in_good_order_before_it_is_requeued(monkeypatch):
    did: list[str] = []
    before = signal.signal(signal.SIGUSR2, lambda *given: did.append("requeued"))

    def join(self: Any, stop: Any) -> None:
        signal.raise_signal(signal.SIGUSR2)
        did.append(f"stopped with {stop.code}")

    monkeypatch.setattr(worker_jobs.Crew, "join", join)
    crew = worker_jobs.Crew(*(SimpleNamespace(),) * 2, Path(), math.inf)  # type: ignore[arg-type]
    try:
        assert crew() == 143
    finally:
        signal.signal(signal.SIGUSR2, before)
    assert did == ["stopped with 143", "requeued"]


def test_nothing_is_launched_once_a_person_has_stopped_it(jobs, monkeypatch):
    run, board, asked = jobs((2, [KILLED] * 3, DIED), (10, [WORKED], None))
    stopped: list[str] = []
    board.book.stop = stopped.append

    def died(within_s: float = 0) -> dict[str, Any]:
        run.code = 130  # Ctrl-C, between two launches
        return {}

    monkeypatch.setattr(run, "_died", died)
    monkeypatch.setattr(run, "_is_idle", lambda within_s=0: run.code is not None)
    assert run.run() == 130
    assert asked == [3]
    assert stopped == ["mine"]


def test_a_replacement_that_is_refused_leaves_no_success_of_a_study_that_is_not_complete(
    monkeypatch, caplog
):
    scheduler, asked = Scheduler(monkeypatch), []

    def run(crew: Any, count: int) -> int | None:
        asked.append(count)
        if len(asked) > 1:
            raise worker_jobs.JobsFailed("sbatch: error: QOSMaxSubmitJobPerUserLimit")
        scheduler.submit("slurm 1_0", "slurm 1_1")
        for n in (0, 1):
            board.enter(Entry(f"other/1:1{n}:1", 1, 0, "mine", job=f"slurm 1_{n}"))
        scheduler.queued.clear()  # killed
        raise DIED

    jobs, board = scheduler.crew(run)
    with (
        caplog.at_level(logging.WARNING, "sweepstack"),
        pytest.raises(worker_jobs.JobsFailed, match="QOSMaxSubmit"),
    ):
        jobs.run()
    assert asked == [2, 2]
    assert (
        said(caplog)[-1] == "no other could be started: sbatch: error: QOSMaxSubmitJobPerUserLimit"
    )


def test_jobs_that_wait_say_so_and_how_to_look(monkeypatch, capsys):
    monkeypatch.setattr(worker_jobs, "WAIT_S", 0.0)
    scheduler = Scheduler(monkeypatch)

    def run(crew: Any, count: int) -> int | None:
        scheduler.submit("slurm 7_0", "slurm 7_1")
        board.enter(Entry("other/1:10:1", 1, 0, "mine", job="slurm 7_0"))
        until = scheduler.looks + 9
        while scheduler.looks < until:
            time.sleep(0.001)
        board.done = 10
        board.enter(Entry("other/1:10:1", 1, 0, "mine", job="slurm 7_0", ended=4))
        scheduler.queued.clear()
        return None

    jobs, board = scheduler.crew(run)
    assert jobs.run() is None
    line = "jobs that wait: 1 (squeue --jobs=7_1); Ctrl-C ends them"
    assert capsys.readouterr().out.count(line) == 1


@pytest.mark.parametrize("code", [None, 130])
def test_a_launcher_that_runs_jobs_where_it_is_called_runs_them_in_the_main_thread(
    jobs, monkeypatch, code
):
    """A task may set handlers of signals, which only the main thread may."""
    run, board, _ = jobs()
    worker = worker_jobs.Crew(run.crew.plan, SimpleNamespace(), Path(), math.inf)  # type: ignore[arg-type]
    threads = []

    def join(self: Any, stop: Any) -> None:
        signal.signal(signal.SIGUSR1, signal.getsignal(signal.SIGUSR1))
        threads.append(threading.current_thread())
        stop.code, board.done = code, 3 if code else 10

    monkeypatch.setattr(worker_jobs.Crew, "join", join)
    stopped: list[str] = []
    board.book.stop = stopped.append
    run.other = worker_jobs.Launch(lambda crew, count: worker())  # type: ignore[arg-type, return-value]
    assert run.run() == code
    assert threads == [threading.main_thread()]


def test_only_what_is_set_for_a_process_that_starts_is_taken_back(monkeypatch):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setenv("MKL_NUM_THREADS", "7")
    with launch._share(1):
        assert launch.os.environ[register.NVML] == "1"
        assert launch.os.environ["OMP_NUM_THREADS"] == str(register.cores())
        monkeypatch.setenv("SET_MEANWHILE", "by another thread")
    assert not {"OMP_NUM_THREADS", register.NVML} & launch.os.environ.keys()
    assert launch.os.environ["MKL_NUM_THREADS"] == "7"
    assert "SET_MEANWHILE" in launch.os.environ


def test_of_a_launcher_that_refuses_its_jobs_no_new_study_is_left(main, tmp_path, monkeypatch):
    url, words = f"sqlite:///{tmp_path}/outputs/studies.db", ("-m", *QUICK, "optimizer.lr=0.1,0.2")
    plain = sweep.launch

    def refused(*given: Any, **named: Any) -> None:
        raise worker_jobs.JobsFailed("sbatch: error: invalid partition")

    monkeypatch.setattr(sweep, "launch", refused)
    assert main(*words).lines[-1] == "sweepstack: sbatch: error: invalid partition"
    assert optuna.get_all_study_names(url) == []
    optuna.create_study(study_name="s", storage=url, direction="maximize")  # a person's, to be used
    assert main(*words).code == 3
    assert optuna.get_all_study_names(url) == ["s"]
    monkeypatch.setattr(sweep, "launch", plain)
    assert main(*words).code == 0
    assert states(tmp_path) == ["COMPLETE"] * 2


def test_a_new_study_is_kept_where_the_disk_is_full_once_a_trial_has_begun(
    main, tmp_path, monkeypatch
):
    """Its trials wait again, with their checkpoints: the same command is to go on with them."""

    def full(*given: Any, **named: Any) -> None:
        raise EnvironmentFault("cannot write: No space left on device")

    monkeypatch.setattr(trial_folder.TrialFolder, "end", full)
    assert main("-m", *QUICK, "optimizer.lr=0.1").code == 3
    assert states(tmp_path) == ["FAIL", "WAITING"]


def test_sweeps_that_share_a_folder_of_submitit_s_know_their_own_jobs(tmp_path):
    """Two that begin in the same second; the first to end would cancel the jobs of the other."""
    folder = f"{tmp_path}/.submitit/%j"
    target = "hydra_plugins.hydra_submitit_launcher.submitit_launcher.SlurmLauncher"
    node = {"hydra": {"launcher": {"_target_": target, "submitit_folder": folder}}}
    crews = [worker_jobs.Crew(*[SimpleNamespace()] * 2, Path(), 0.0) for _ in range(2)]  # type: ignore[arg-type]

    def run(crew: Any, count: int) -> int | None:
        file = tmp_path / f".submitit/{crew.name}_0/{crew.name}_0_submitted.pkl"
        file.parent.mkdir(parents=True)
        file.write_bytes(cloudpickle.dumps(partial(print, crew)))
        return None

    launches = [_impl._submitit(run, OmegaConf.create(node)) for _ in crews]
    assert [each.jobs() for each in launches] == [[], []]
    for each, crew in zip(launches, crews, strict=True):
        each.run(crew, 1)
    assert [each.jobs() for each in launches] == [[f"slurm {crew.name}_0"] for crew in crews]
