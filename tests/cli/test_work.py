"""`sweepstack-study work`: a study goes on from what it keeps, on any machine that joins it."""

from __future__ import annotations

import io
import shutil
import signal
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import optuna
import pytest
from fault_support import HELD, Sweep, rows, running, until
from PIL import Image
from rerun_support import edit_study
from rich.console import Console
from sweep_support import QUICK, states, study

from sweepstack import storage
from sweepstack.cli import study as cli
from sweepstack.cli import work
from sweepstack.config.errors import InputError, Stopped, SweepstackError
from sweepstack.reporting import overview
from sweepstack.reporting.report import content
from sweepstack.runs.register import Entry
from sweepstack.study import view
from sweepstack.study.attributes import IDENTITY, SWEEP
from sweepstack.sweep.worker import worker

SWEPT = "optimizer.lr=0.1,0.2,0.3,0.4"
WORK = [*HELD, "study", "work", "s"]
AT_WORK = {"reports": 1}


@pytest.fixture
def waiting(main, monkeypatch, tmp_path):
    """`waiting(*words)` leaves a sweep that was stopped after its first trial."""

    def sweep(*words: str) -> None:
        if words in _KEPT:
            shutil.copytree(_KEPT[words], tmp_path, dirs_exist_ok=True)
            return
        noted = worker.Worker.record

        def record(self: Any, outcome: Any) -> None:
            noted(self, outcome)
            self.stop.ask(130)

        with monkeypatch.context() as patch:
            patch.setattr(worker.Worker, "record", record)
            assert main("-m", *QUICK, "training.width=1", *words).code == 130
        assert states(tmp_path).count("COMPLETE") == 1
        _KEPT[words] = tmp_path.with_name(f"{tmp_path.name}_kept")
        shutil.copytree(tmp_path, _KEPT[words])

    return sweep


_KEPT: dict[tuple[str, ...], Path] = {}


def sizes(folder: Path) -> dict[str, int]:
    return {
        str(path): path.stat().st_size
        for path in folder.rglob("*")
        if path.is_file() and not path.name.startswith("studies.db")
    }


def test_a_study_whose_sweep_was_stopped_goes_on_and_is_ended_as_by_its_sweep(
    waiting, tmp_path, monkeypatch, capsys
):
    waiting(SWEPT)
    edit_study(SWEEP, study(tmp_path).user_attrs[SWEEP] | {"settings": SETTINGS_WITH_REPORT})
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)
    capsys.readouterr()

    assert cli.run(["work", "s", "--storage", str(tmp_path / "outputs/studies.db")]) == 0

    said = capsys.readouterr().out
    assert "4 trials, 1 of them done before" in said
    assert "this command ran 3 of the 4 finished trials" in said
    assert "winner: trial" in said
    assert "report: " in said
    assert states(tmp_path) == ["COMPLETE"] * 4
    assert sorted(trial.params["optimizer.lr"] for trial in study(tmp_path).trials) == [
        *(0.1, 0.2, 0.3, 0.4)
    ]
    results = tmp_path / "outputs/studies/s"
    assert (results / "optimization_results.yaml").is_file()
    assert {place.name for place in results.iterdir() if place.is_dir()} == set("0123")
    assert "Workers" in next(tmp_path.rglob("s.html")).read_text()


SETTINGS_WITH_REPORT = {"sampler": {"name": "tpe", "seed": 0}, "pruner": {"name": "none"}}


def test_the_last_command_counts_with_all_its_settings(main, waiting, tmp_path, capsys):
    space = ("optimizer.lr=interval(0.01,0.1)", "+hydra.sweeper.sampler.n_startup_trials=2")
    waiting(*space, "hydra.sweeper.n_trials=2", "hydra.sweeper.duplicates=train")
    again = (*space, "hydra.sweeper.n_trials=1", "hydra.sweeper.duplicates=train")
    assert main("-m", *QUICK, "training.width=1", *again).code == 0
    asked = study(tmp_path).user_attrs[SWEEP]
    assert asked["n_trials"] == asked["settings"]["n_trials"] == 1
    assert asked["settings"]["duplicates"] == "train"
    assert asked["settings"]["sampler"]["n_startup_trials"] == 2
    assert "storage" not in asked["settings"]

    edit_study(SWEEP, asked | {"settings": asked["settings"] | {"n_trials": 3}})
    assert cli.run(["work", "s"]) == 0
    assert states(tmp_path) == ["COMPLETE"] * 3
    assert study(tmp_path).user_attrs[SWEEP]["settings"]["n_trials"] == 3  # as its sweep keeps it


def test_who_joins_a_sweep_of_limited_time_works_as_long_as_that(waiting, tmp_path):
    waiting("optimizer.lr=interval(0.01,0.1)", "hydra.sweeper.timeout_s=600")
    opened = view.open_study("s", f"sqlite:///{tmp_path}/outputs/studies.db")
    deadline = opened.asked["deadline"]
    assert 0 < work._recorded(opened)[1]["timeout_s"] <= deadline - time.time() + 1
    edit_study(SWEEP, opened.asked | {"deadline": time.time() - 9})
    assert work._recorded(opened.anew())[1]["timeout_s"] == 600  # it ended: as a new start


def test_a_study_that_was_stopped_can_be_joined_and_stop_ends_who_joined(
    waiting, tmp_path, monkeypatch, capsys
):
    monkeypatch.setattr(worker, "HEED_S", 0.0)
    waiting(SWEPT)
    assert cli.run(["stop", "s"]) == 0
    noted = worker.Worker.record

    def record(self: Any, outcome: Any) -> None:
        noted(self, outcome)
        assert cli.run(["stop", "s"]) == 0

    with monkeypatch.context() as patch:
        patch.setattr(worker.Worker, "record", record)
        with pytest.raises(Stopped) as stopped:
            cli.run(["work", "s"])
    assert stopped.value.exit_code == 130
    assert "trials to go; run the same command again to resume" in str(stopped.value)
    assert "RUNNING" not in states(tmp_path)
    assert 1 < states(tmp_path).count("COMPLETE") < 4
    assert cli.run(["work", "s", "training.device=cpu"]) == 0
    assert states(tmp_path).count("COMPLETE") == 4


def test_who_works_is_said_by_workers_show_and_the_report(waiting, tmp_path, capsys):
    waiting(SWEPT)
    capsys.readouterr()
    assert cli.run(["workers", "s"]) == 0
    assert capsys.readouterr().out == (
        "nobody works on study s; 1 did before\n3 trials to go; join it: sweepstack-study work s\n"
    )
    opened = view.open_study("s")
    now = time.time()
    others = [
        Entry(f"node{n}/1:{n}:1", now - 60, now, gpu="GPU-12345678-1234", job=job, trials=30)
        for n, job in [(7, None), (8, "slurm 4_2"), (9, "x\x1b[31m")]
    ]
    for entry in others:
        study(tmp_path).set_user_attr(f"sweepstack.workers.{entry.process}", asdict(entry))
    for name, odd in (("a", {"began": 1e300}), ("b", {"trials": "many"})):
        study(tmp_path).set_user_attr(f"sweepstack.workers.{name}", asdict(others[0]) | odd)

    assert cli.run(["workers", "s"]) == 0
    head, *lines = capsys.readouterr().out.splitlines()
    assert head.split() == ["worker", "host", "GPU", "since", "trials", "per", "minute", "seen"]
    assert len(lines) == 3
    assert lines[0].split()[:3] == ["7", "node7", "GPU-12345678-12…"]
    assert "slurm 4_2" in lines[1]
    assert all("30        30.0" in line and line.endswith("s ago") for line in lines)
    assert "\x1b" not in "".join(lines)
    facts = dict(content.facts(opened.anew()))["Workers"]
    assert len(facts) == 4
    [fact] = [line for line in facts if line.startswith("7 on node7, GPU-12345678-1234: 30 trial")]
    assert fact.endswith(", 30.0 per minute")

    page = Console(file=io.StringIO(), width=80)
    assert overview._print_workers(opened.anew(), page, 2) == 3
    shown = page.file.getvalue().splitlines()
    assert len(shown) == 4  # a line each at 80 columns
    assert shown[-1] == "and 1 more workers"


def test_a_journal_is_joined_too(main, waiting, tmp_path, monkeypatch):
    monkeypatch.setattr("sweep_support.study", lambda folder: storage_of(folder))
    waiting(SWEPT, "hydra.sweeper.storage=journal:///j.log")
    assert cli.run(["work", "s", "--storage", "j.log"]) == 0
    assert [trial.state.name for trial in storage_of(tmp_path).trials] == ["COMPLETE"] * 4


def storage_of(folder: Path) -> optuna.Study:
    return optuna.load_study(study_name="s", storage=storage.connect(f"journal:///{folder}/j.log"))


# --- wrong inputs, and studies that are not to be trusted ----------------------------------------


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["sss"], "there is no study 'sss' in sqlite:///outputs/studies.db; did you mean 's'?"),
        (["s", "--workers", "0"], "--workers must be 1 to 1024, got 0"),
        (["s", "--workers", "x"], "argument --workers: invalid int value: 'x'"),
        (["s", "optimizer.lr=0.5"], "got optimizer.lr=0.5"),
        (["s", "data.rot=x"], "got data.rot=x; did you mean 'data.root'?"),
        (["s", "fast"], "work takes overrides KEY=VALUE, got fast"),
        (["s", "trust=[evil]"], "packages are trusted with --trust PACKAGE"),
        (["s", "data.root=/x"], "unknown key 'data.root'"),
        (["s", "training.device=cuda:99"], "training.device=cuda:99 needs 100 CUDA device"),
        (["s", "hydra.sweeper.n_trials=9"], "got hydra.sweeper.n_trials=9"),
        (["s", "--config-dir", "nowhere"], "--config-dir must be a folder, got 'nowhere'"),
    ],
)
def test_a_wrong_command_changes_nothing(waiting, tmp_path, words, said):
    waiting(SWEPT)
    before, known = sizes(tmp_path), study(tmp_path).trials
    with pytest.raises(SweepstackError) as raised:
        cli.run(["work", *words])
    assert said in str(raised.value)
    assert raised.value.exit_code in (2, 3)
    assert study(tmp_path).trials == known
    assert sizes(tmp_path) == before


def arguments(*words: str, without: str = "nothing") -> Any:
    def changed(asked: dict[str, Any]) -> dict[str, Any]:
        kept = [word for word in asked["arguments"] if not word.startswith(without)]
        return asked | {"arguments": [*kept, *words]}

    return changed


def custom(*words: str) -> Any:
    return arguments("model=custom", "model._target_=evil.Net", *words, without="model.")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (arguments("training.eval_every=${oc.env:HOME}"), "calls a resolver"),
        (arguments("init=he,${oc.env:HOME}"), "${oc.env:HOME}"),
        (custom(), "add --trust PACKAGE"),
        (custom("trust=[evil]"), "add --trust PACKAGE"),
        (arguments("init=he,xavier", "+model.weights=null,/x", without="init"), "to name files"),
        (arguments("+model.weights=/etc/passwd"), "is not trusted to name files"),
        (arguments("+optimizer.nonsense=1"), "optimizer.nonsense"),
        (lambda asked: asked | {"arguments": None}, "does not keep all of its command"),
        (lambda asked: {k: v for k, v in asked.items() if k != "settings"}, "another version's"),
        (lambda asked: asked | {"settings": {"frob": 1}}, "hydra.sweeper has no frob"),
        (
            lambda asked: asked | {"settings": {"custom_search_space": "evil.Net"}},
            "add --trust PACKAGE",
        ),
        (
            lambda asked: asked | {"application": {"name": "theirs"}},
            "is another program's (theirs), which work cannot start: run its command, here or on "
            "any other machine; it joins the study: python theirs.py -m ",
        ),
        (
            lambda asked: asked | {"application": asked["application"] | {"config_dir": "/x"}},
            "was swept with --config-dir /x: give it again",
        ),
        (lambda asked: {}, "was not made by a sweep of sweepstack"),
    ],
)
def test_nothing_of_a_study_is_trusted(waiting, tmp_path, change, said):
    waiting(SWEPT)
    (tmp_path / "evil.py").write_text("import pathlib\npathlib.Path('canary').touch()\n")
    edit_study(SWEEP, change(study(tmp_path).user_attrs[SWEEP]))
    before, known = sizes(tmp_path), study(tmp_path).trials
    with pytest.raises(InputError) as raised:
        cli.run(["work", "s"])
    assert said in str(raised.value)
    assert study(tmp_path).trials == known
    assert sizes(tmp_path) == before


def test_what_another_machine_must_not_do_is_left_out_and_said(waiting, tmp_path, capsys):
    waiting(SWEPT, "logger=csv")
    change = arguments("hydra.searchpath=[file:///evil]", "logger.tracking_uri=http://evil")
    edit_study(SWEEP, change(study(tmp_path).user_attrs[SWEEP]))
    assert cli.run(["work", "s"]) == 0
    said = capsys.readouterr().out
    assert "left out, give it again if you want it here: logger=csv, hydra.searchpath=" in said
    assert not (tmp_path / "outputs/studies/s/3/log.csv").exists()


def test_other_code_that_asks_another_question_is_refused(waiting, tmp_path):
    waiting(SWEPT)
    identity = study(tmp_path).user_attrs[IDENTITY]
    identity["config"]["training"] |= {"max_steps": 9, "of_their_version": True}
    edit_study(IDENTITY, identity)
    with pytest.raises(InputError) as raised:
        cli.run(["work", "s"])
    assert raised.value.mistakes == [
        "study 's' cannot be joined: what it asks is another question here (other code or "
        "configs?):",
        "config.training.max_steps: 9 in the study, now 8",
        "config.training.of_their_version: true in the study, not set now",
    ]
    assert states(tmp_path).count("COMPLETE") == 1


def test_what_the_user_trusts_and_repeats_is_joined(waiting, tmp_path):
    (tmp_path / "mine.py").write_text(
        "import torch\nclass Net(torch.nn.Linear):\n"
        "    def __init__(self, outputs):\n        super().__init__(1, outputs)\n"
    )
    base = [word for word in QUICK if not word.startswith("model.")]
    asked = {"arguments": [*base, "training.width=1", SWEPT, "model=custom"]}
    asked["arguments"].append("model._target_=mine.Net")
    waiting(SWEPT)
    was = study(tmp_path)
    edit_study(SWEEP, was.user_attrs[SWEEP] | asked)
    with pytest.raises(InputError) as raised:  # the question of another model: trusted, refused
        cli.run(["work", "s", "--trust", "mine"])
    assert "cannot be joined" in str(raised.value)
    assert 'config.model.name: "mlp" in the study, now "custom"' in raised.value.mistakes


def test_data_may_lie_elsewhere(main, waiting, tmp_path, capsys):
    for split in ("train", "val"):
        for label in ("a", "b"):
            place = tmp_path / "there" / split / label
            place.mkdir(parents=True)
            for number in range(4):
                shade = 40 * number + 9 * (label == "b")
                Image.new("L", (4, 4), shade).save(place / f"{number}.png")
    words = [w for w in QUICK if not w.startswith(("data", "model"))]
    words += ["data=image_folder", "data.root=there", "batch.size=4", "training.width=1"]
    assert main("-m", *words, "training.seed=0,1", "hydra.sweeper.n_trials=2").code == 0
    (tmp_path / "there").rename(tmp_path / "elsewhere")
    with pytest.raises(SweepstackError) as raised:
        cli.run(["work", "s", "data.root=nowhere"])
    assert raised.value.exit_code == 3
    assert "nowhere" in str(raised.value)
    capsys.readouterr()
    assert cli.run(["work", "s", "data.root=elsewhere"]) == 0
    assert f"data are read from {tmp_path}/elsewhere" in capsys.readouterr().out


def test_other_versions_are_said(waiting, tmp_path, capsys):
    waiting(SWEPT)
    opened = study(tmp_path)
    [key] = [key for key in opened.user_attrs if key.startswith("sweepstack.environment.")]
    then = opened.user_attrs[key]
    edit_study(key, then | {"versions": then["versions"] | {"torch": "1.0"}})
    assert cli.run(["work", "s"]) == 0
    assert "changed: torch 1.0 then, " in capsys.readouterr().out


# --- several processes ---------------------------------------------------------------------------

LONG = [
    *("data=quadratic", "training.max_steps=900", "training.eval_every=20", "training.width=1"),
    *("hydra.sweeper.study_name=s", "training.seed=range(0,16)", "hydra.sweeper.report=false"),
]


def workers_of(folder: Path) -> dict[int, int]:
    """Finished trials by the process that ran them."""
    found: dict[int, int] = {}
    for row in rows(folder):
        if row.state == "COMPLETE":
            found[row.worker] = found.get(row.worker, 0) + 1
    return found


def at_work(folder: Path, sweep: Sweep) -> list[Any]:
    return [row for row in running(folder, reports=1) if row.worker == sweep.process.pid]


def assert_exact(folder: Path) -> None:
    final = [row for row in rows(folder) if not row.is_retried]
    assert [row.state for row in final] == ["COMPLETE"] * 16
    assert len({row.params for row in final}) == 16


def test_a_running_sweep_is_joined_and_left_by_kill_and_by_ctrl_c(tmp_path):
    sweep = Sweep([*HELD, "-m", *LONG], tmp_path, hold=AT_WORK)
    sweep.until(lambda: at_work(tmp_path, sweep), "it began")
    killed, left = (Sweep(WORK, tmp_path, name, hold=AT_WORK) for name in "kc")
    killed.catch(signal.SIGKILL, lambda: at_work(tmp_path, killed), "the first joined")
    left.catch(signal.SIGINT, lambda: at_work(tmp_path, left), "the second joined")
    assert left.ends() == 130
    assert "which other workers (1) go on with; run the same command again" in left.err
    assert not at_work(tmp_path, left)  # requeued
    (tmp_path / "go").touch()
    sweep.succeeds()
    assert_exact(tmp_path)
    assert "winner: " in sweep.out


def test_two_that_join_after_the_sweeper_was_killed_end_its_study(tmp_path):
    sweep = Sweep([*HELD, "-m", *LONG], tmp_path, hold={"finished": 1})
    sweep.catch(signal.SIGKILL, lambda: workers_of(tmp_path), "a trial ended")
    joined = [Sweep(WORK, tmp_path, name, hold=AT_WORK) for name in "ab"]
    until(lambda: all(at_work(tmp_path, each) for each in joined), "both work")
    (tmp_path / "go").touch()
    for each in joined:
        each.succeeds()
    assert_exact(tmp_path)
    assert set(workers_of(tmp_path)) == {sweep.process.pid, *(e.process.pid for e in joined)}
    assert any("winner: " in each.out for each in joined)
    for each in joined:
        assert "this command ran " in each.out
