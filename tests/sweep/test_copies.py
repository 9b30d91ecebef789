"""`sweepstack-study rename`, `copy`, `merge` and `prune-files`: what is kept, and after faults."""

from __future__ import annotations

import json
import math
import shlex
from pathlib import Path

import optuna
import pytest
from optuna.distributions import CategoricalDistribution, FloatDistribution
from optuna.trial import TrialState, create_trial
from sweep_support import QUICK

from sweepstack import storage
from sweepstack.cli import draft, housekeeping, merging
from sweepstack.cli.study import run
from sweepstack.config.errors import EnvironmentFault, InputError
from sweepstack.reporting.dashboard import decorate
from sweepstack.study.attributes import EQUALS, FOLDER, IDENTITY, SWEEP, UNFINISHED
from sweepstack.study.book.bulk import BulkBook
from sweepstack.study.book.public import PublicBook
from sweepstack.study.view import open_study

pytestmark = pytest.mark.slow

JOURNAL = "journal:///studies.journal"
METRICS = "study:metric_names"
ARTIFACT = "0" * 8 + "-0000-0000-0000-" + "0" * 12


def study(name, url=storage.DEFAULT):
    return optuna.load_study(study_name=name, storage=storage.connect(url))


def names(url=storage.DEFAULT):
    return optuna.get_all_study_names(storage.connect(url))


def trial(state, value=None, lr=0.1, init="he", **given):
    """A trial with all that a trial can have."""
    return create_trial(
        state=state,
        values=None if value is None else [value],
        params={"lr": lr, "init": init},
        distributions={
            "lr": FloatDistribution(1e-4, 1.0, log=True),
            "init": CategoricalDistribution(("he", "xavier")),
        },
        intermediate_values={1: 0.5, 2: math.inf, 3: math.nan},
        **given,
    )


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """The study `old`, of trials in every state, with files, notes and a file of a person's."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")
    made = optuna.create_study(study_name="old", storage=storage.connect())
    made._storage.set_study_system_attr(made._study_id, METRICS, ["val_loss"])
    made.set_user_attr(FOLDER, "old")
    made.set_user_attr("mine", {"x": [1, None]})
    made.set_user_attr(IDENTITY, {"objectives": ["val_loss"], "space": {}})
    asked = {"arguments": ["init=he,xavier"], "hydra": ["hydra.sweeper.study_name=old"]}
    made.set_user_attr(SWEEP, {**asked, "application": {"name": "sweepstack"}})
    made.add_trial(trial(TrialState.COMPLETE, 0.25, user_attrs={"steps": 5, "std": None}))
    made.add_trial(trial(TrialState.FAIL, user_attrs={"error": "loss is nan"}))
    made.add_trial(trial(TrialState.PRUNED, 0.5, system_attrs={"constraints:x": -1.0}))
    made.add_trial(trial(TrialState.RUNNING))
    made.add_trial(trial(TrialState.WAITING, system_attrs={"fixed_params": {"lr": 0.2}}))
    made.add_trial(trial(TrialState.COMPLETE, math.inf))
    write("old", 0, best=True)
    opened = made._storage
    ids = [opened.get_trial_id_from_study_id_trial_number(made._study_id, n) for n in range(6)]
    opened.set_study_system_attr(made._study_id, f"dashboard:{ids[2]}:note_str:0", "mine")
    key = f"dashboard:artifacts:{ids[0]}:{ARTIFACT}"
    opened.set_study_system_attr(made._study_id, key, json.dumps({"filename": "mine.png"}))
    Path("outputs/artifacts").mkdir()
    Path("outputs/artifacts", ARTIFACT).write_text("picture")
    return tmp_path


def write(name, number, best=False, study=None):
    place = Path("outputs/studies", name, str(number))
    place.mkdir(parents=True)
    (place / "metrics.json").write_text(json.dumps({"study": study or name, "state": "complete"}))
    if best:
        (place / "best.pt").write_bytes(b"x" * 1000)
    return place


def content(of):
    """All that a study keeps, but for its name and where its files are."""
    rows = [
        (
            *(t.number, t.state, t.values, t.params, t.distributions, t.user_attrs),
            *(t.system_attrs, repr(t.intermediate_values), t.datetime_start, t.datetime_complete),
        )
        for t in of.get_trials(deepcopy=False)
    ]
    left_out = (FOLDER, SWEEP, UNFINISHED)
    user = {key: value for key, value in of.user_attrs.items() if key not in left_out}
    return rows, user, of.directions, of.metric_names


@pytest.mark.parametrize("to", ["sqlite:///elsewhere.db", JOURNAL, None])
def test_a_copy_has_every_number_and_its_own_files(folder, to):
    before = content(study("old"))
    assert run(["copy", "old", "new", *(["--to", to] if to else [])]) == 0
    copied = study("new", to or storage.DEFAULT)
    assert content(copied) == before == content(study("old"))
    place = Path("outputs/studies", copied.user_attrs[FOLDER])
    assert place.name == "new"
    assert json.loads((place / "0" / "metrics.json").read_text())["study"] == "new"
    assert (place / "0" / "best.pt").read_bytes() == b"x" * 1000
    assert {path.name for path in place.iterdir()} == {"0"}
    ids = {n: id_ for n, (id_, _) in decorate.trial_ids(copied._storage, copied._study_id).items()}
    known = copied._storage.get_study_system_attrs(copied._study_id)
    assert known[f"dashboard:{ids[2]}:note_str:0"] == "mine"
    assert f"dashboard:artifacts:{ids[0]}:{ARTIFACT}" in known
    assert (decorate.artifacts(to or storage.DEFAULT) / ARTIFACT).exists()
    if to is None:  # the other study needs it
        assert run(["delete", "new", "--yes"]) == 0
        assert Path("outputs/artifacts", ARTIFACT).exists()
    else:  # and back again
        assert run(["copy", "new", "back", "--storage", to, "--to", storage.DEFAULT]) == 0
        assert content(study("back")) == before


def test_a_renamed_study_keeps_all_and_says_how_to_resume(folder, capsys):
    before, number = content(study("old")), study("old")._study_id
    report = Path("outputs/reports/old.html")
    report.parent.mkdir()
    report.write_text("a page")
    probed = {"study": "old", "trial": 0, "grows_to": 0.5, "chaotic_from": 10}
    probed["started"] = str(study("old").trials[0].datetime_start)
    for number, name in enumerate(("old", "another")):
        place = Path(f"outputs/reruns/{number}")
        place.mkdir(parents=True)
        (place / "rerun.json").write_text(json.dumps({**probed, "study": name}))
    assert run(["rename", "old", "it's new"]) == 0
    assert open_study("it's new").probed == {0: (0.5, 10)}
    assert json.loads(Path("outputs/reruns/1/rerun.json").read_text())["study"] == "another"
    said = capsys.readouterr().out.splitlines()
    assert said[0] == "renamed study old to it's new: 6 trials, outputs/studies/it's new"
    assert shlex.split(said[-1])[-1] == 'hydra.sweeper.study_name="it\'s new"'
    renamed = study("it's new")
    assert renamed._study_id == number
    assert content(renamed) == before
    assert names() == ["it's new"]
    (place,) = Path("outputs/studies").iterdir()
    assert (place.name, sorted(path.name for path in place.iterdir())) == ("it's new", ["0"])
    assert json.loads((place / "0" / "metrics.json").read_text())["study"] == "it's new"
    assert not report.exists()
    (page,) = report.parent.glob("*.html")
    assert "it's new" in page.read_text().replace("&#39;", "'")


def test_a_study_of_a_journal_is_renamed_too(folder):
    assert run(["copy", "old", "a", "--to", JOURNAL]) == 0
    before = content(study("a", JOURNAL))
    assert run(["rename", "a", "b", "--storage", JOURNAL]) == 0
    check_renamed(before)


def check_renamed(before):
    """The study `a` of a journal is `b`, its folder too."""
    assert names(JOURNAL) == ["b"]
    assert content(study("b", JOURNAL)) == before
    place = open_study("b", JOURNAL).folder
    assert place == Path("outputs/studies/b")
    assert {path.name for path in place.iterdir()} == {"0"}
    assert json.loads((place / "0" / "metrics.json").read_text())["study"] == "b"
    assert {path.name for path in place.parent.iterdir()} == {"b", "old"}


@pytest.mark.parametrize("at", ["before", "after"])
def test_a_rename_in_a_journal_that_was_killed_is_made_good(folder, monkeypatch, at):
    """Killed when the folder had moved: before the new study was whole, or before the old one was
    deleted."""
    assert run(["copy", "old", "a", "--to", JOURNAL]) == 0
    before = content(study("a", JOURNAL))

    def die(*given, **named):
        patched.setattr(housekeeping.os, "rename", lambda *_: None)
        patched.setattr(draft.shutil, "rmtree", lambda *_, **__: None)
        patched.setattr(optuna, "delete_study", lambda *_, **__: None)
        raise Killed

    with monkeypatch.context() as patched:
        owner = draft if at == "before" else PublicBook
        patched.setattr(owner, "_set_user" if at == "before" else "deletion", die)
        with pytest.raises(Killed):
            run(["rename", "a", "b", "--storage", JOURNAL])
    mark = Path("outputs/studies/b", housekeeping.RENAMED_FROM)
    mark.write_text("a")  # what cleans up is no part of a kill
    assert sorted(names(JOURNAL)) == ["a", "b"]
    assert run(["rename", "a", "b", "--storage", JOURNAL]) == 0
    check_renamed(before)


def test_a_renamed_study_is_resumed_by_its_new_name(main):
    words = [word for word in QUICK if "study_name" not in word]
    sweep = ("-m", *words, "optimizer.lr=0.1,0.01,0.001")
    assert main(*sweep, "hydra.sweeper.study_name=old").code == 0
    assert run(["rename", "old", "new"]) == 0
    done = main(*sweep, "hydra.sweeper.study_name=new")
    assert done.code == 0
    assert "3 trials, 3 of them done before" in done.out
    assert names() == ["new"]
    assert len(study("new").trials) == 3
    assert run(["rerun", "new", "1"]) == 0


REFUSED = [
    ("rename old kept", "study kept exists: choose another name"),
    ("copy old kept", "study kept exists: choose another name"),
    ("merge old kept -n old", "study old exists"),
    ("rename old a/b", r"new name must be a name that a folder can have"),
    ("copy old ..", r"new name must be a name that a folder can have"),
    ("merge old kept -n a/b", "--name must be a name"),
    ("rename odl new", "did you mean 'old'"),
    ("merge old -n new", "two or more different studies, got old"),
    ("merge old old -n new", "two or more different studies, got old, old"),
    ("merge old kept -n new", "old and kept differ: only one of them was made by a sweep"),
    ("prune-files odl --yes", "did you mean 'old'"),
    ("prune-files old --keep -1", "must be 0 or more, got -1"),
    ("prune-files old --keep 0", "add --yes"),
    ("copy old new --to nosuch://x", "nosuch"),
]


def test_what_is_refused_leaves_everything_as_it_was(folder, monkeypatch):
    monkeypatch.setattr("sys.stdin.isatty", lambda: False, raising=False)
    made = optuna.create_study(study_name="kept", storage=storage.connect())
    made._storage.set_study_system_attr(made._study_id, METRICS, ["val_loss"])
    there = sorted(map(str, folder.rglob("*"))), content(study("old"))
    for words, line in REFUSED:
        with pytest.raises(InputError, match=line) as error:
            run(words.split())
        assert len(error.value.mistakes) == 1, words
    assert (sorted(map(str, folder.rglob("*"))), content(study("old"))) == there
    assert sorted(names()) == ["kept", "old"]


def test_a_study_that_a_living_worker_runs_is_refused(folder):
    BulkBook(study("old"), storage.connect(), 9).claim()
    for words in ("rename old new", "copy old new", "prune-files old --yes"):
        with pytest.raises(EnvironmentFault, match="at work: 1 trials run"):
            run(words.split())
    assert names() == ["old"]


class Killed(BaseException):
    """As if the process ended here: nothing is cleaned up."""


@pytest.mark.parametrize(
    ("to", "name", "after"),
    [
        *((JOURNAL, "set_study_user_attr", 2), (JOURNAL, "last", 0)),
        *((storage.DEFAULT, "create_new_trial", 3), (storage.DEFAULT, "last", 0)),
    ],
)
def test_a_killed_copy_leaves_no_study_that_looks_whole(folder, monkeypatch, to, name, after):
    before, left = content(study("old")), [None] * after
    owner = draft if name == "last" else type(storage.connect(to))
    if name == "last":
        name = "_set_user" if to == JOURNAL else "renaming"
    call = getattr(owner, name)

    def die(*given, **named):
        if left:
            left.pop()
            return call(*given, **named)
        patched.setattr(draft.shutil, "rmtree", lambda *_, **__: None)
        patched.setattr(optuna, "delete_study", lambda *_, **__: None)
        raise Killed

    with monkeypatch.context() as patched:
        patched.setattr(owner, name, die)
        with pytest.raises(Killed):
            run(["copy", "old", "new", "--to", to])
    whole = [n for n in names(to) if not n.startswith(".unfinished")]
    if to == JOURNAL:
        whole = [n for n in whole if study(n, to).user_attrs.get(UNFINISHED, n != "new") is False]
    assert whole == (["old"] if to == storage.DEFAULT else [])
    assert run(["copy", "old", "new", "--to", to]) == 0
    assert content(study("new", to)) == before
    assert sorted(names(to)) == sorted({"new", *whole})
    assert sorted(path.name for path in Path("outputs/studies").iterdir()) == ["new", "old"]


def test_a_folder_that_another_process_made_meanwhile_is_left_alone(folder, monkeypatch):
    plain = draft.Draft._write

    def meanwhile(*given):
        write("new", 5)  # a sweep begins the study `new`
        return plain(*given)

    monkeypatch.setattr(draft.Draft, "_write", meanwhile)
    with pytest.raises(EnvironmentFault, match="cannot make study new"):
        run(["copy", "old", "new"])
    assert names() == ["old"]
    assert sorted(str(p) for p in Path("outputs/studies").glob("*/*")) == [
        "outputs/studies/new/5",
        "outputs/studies/old/0",
    ]


def test_a_fault_while_it_is_renamed_changes_nothing(folder, monkeypatch):
    before, rename = content(study("old")), housekeeping.os.rename

    def fail(one, other):
        rename(one, other)
        if other.name == "new":
            raise OSError(28, "No space left on device")

    monkeypatch.setattr(housekeeping.os, "rename", fail)
    with pytest.raises(EnvironmentFault, match="nothing was renamed"):
        run(["rename", "old", "new"])
    monkeypatch.setattr(housekeeping.os, "rename", rename)
    assert names() == ["old"]
    assert content(study("old")) == before
    assert open_study("old").folder == Path("outputs/studies/old")
    assert {path.name for path in Path("outputs/studies/old").iterdir()} == {"0"}


def test_a_rename_that_was_killed_after_it_moved_the_folder_is_made_good(folder):
    place = Path("outputs/studies/old")
    (place / housekeeping.RENAMED_FROM).write_text("old")
    place.rename("outputs/studies/new")
    assert run(["rename", "old", "new"]) == 0
    assert open_study("new").folder == Path("outputs/studies/new")
    assert {path.name for path in Path("outputs/studies/new").iterdir()} == {"0"}
    assert names() == ["new"]


def test_equal_trials_are_kept_once_and_others_keep_what_they_say(main):
    words = [*QUICK[:-1], "training.seed=0,1", "hydra.sweeper.keep_models=all"]
    for name, inits in (("a", "he,xavier"), ("b", "zeros,xavier")):
        done = main("-m", *words, f"init={inits}", f"hydra.sweeper.study_name={name}")
        assert done.code == 0
    assert run(["merge", "a", "b", "-n", "ab"]) == 0
    merged = open_study("ab")
    frame = merged.frame.set_index(["init", "training.seed"])
    assert len(frame) == 6
    assert frame.index.is_unique
    for name in ("a", "b"):
        rows = open_study(name).frame.set_index(["init", "training.seed"])
        kept = frame.loc[rows.index]
        assert (kept["val_mse"] == rows["val_mse"]).all()
        for key, number in kept["number"].items():
            source = Path("outputs/studies", name, str(rows.loc[key, "number"]), "best.pt")
            copy = Path("outputs/studies/ab", str(number), "best.pt")
            assert source.read_bytes() == copy.read_bytes()
    assert merged.keys["init"].choices == ["he", "xavier", "zeros"]


def test_numbers_of_other_trials_are_those_of_the_merged_study():
    one = trial(TrialState.COMPLETE, 0.5, lr=0.3, user_attrs={EQUALS: 1})
    assert merging._renumbered(one, {1: 7}).user_attrs == {EQUALS: 7}
    assert merging._renumbered(one, {}).user_attrs == {}
    assert one.user_attrs == {EQUALS: 1}


def asked(name, space, config=None, objectives=("val_loss",), arguments=()):
    """A study of sweepstack without trials."""
    made = optuna.create_study(study_name=name, storage=storage.connect())
    said = {"objectives": list(objectives), "space": space, "config": config or {}}
    made.set_user_attr(IDENTITY, said)
    origin = {"application": {"name": "sweepstack"}, "arguments": list(arguments)}
    made.set_user_attr(SWEEP, origin)


def key(name, low=0.0, **given):
    return {name: {"key": name, "kind": "float", "low": low, "high": 1.0, "log": False, **given}}


@pytest.mark.parametrize(
    ("other", "line"),
    [
        ({"config": {"init": {"gain": 1}, "batch": {"size": 32}}}, "config.batch.size: 16 and 32"),
        ({"space": {**key("lr"), **key("init"), **key("x")}}, "x is swept in one of them only"),
        ({"space": {**key("lr", log=True), **key("init")}}, "lr has values of another kind"),
        ({"objectives": ["val_mse"]}, r"objectives: val_loss \(minimize\) and val_mse"),
        ({"arguments": ["init.gain=2"]}, r"arguments: \[\] and .*init.gain=2"),
    ],
)
def test_studies_of_other_questions_are_not_merged(tmp_path, monkeypatch, other, line):
    monkeypatch.chdir(tmp_path)
    space, config = {**key("lr"), **key("init")}, {"init": {"gain": 0}, "batch": {"size": 16}}
    asked("a", space, config)
    asked("b", **{"space": space, "config": config, **other})
    with pytest.raises(InputError, match=f"a and b differ: .*{line}") as error:
        run(["merge", "a", "b", "-n", "ab"])
    assert len(error.value.mistakes) == 1
    assert sorted(names()) == ["a", "b"]


def test_files_that_nobody_needs_go_and_the_best_keep_their_models(folder, capsys):
    made = study("old")
    made.add_trial(trial(TrialState.COMPLETE, 0.1))
    write("old", 6, best=True)
    kept = [write("old", 3) / "checkpoints" / "step_4.pt", Path("outputs/studies/old/6/best.pt")]
    gone = write("old", 2) / "checkpoints" / "step_4.pt"
    for path in (kept[0], gone):
        path.parent.mkdir()
        path.write_bytes(b"y" * 500)
    capsys.readouterr()
    assert run(["prune-files", "old", "--dry-run"]) == 0
    said = "1.5 KB of study old (files of 1 models, 1 checkpoints); the best 1 keep their models"
    assert capsys.readouterr().out == f"would remove {said}\n"
    assert gone.exists()
    assert run(["prune-files", "old", "--yes"]) == 0
    assert not gone.exists()
    assert not Path("outputs/studies/old/0/best.pt").exists()
    assert all(path.exists() for path in kept)
    assert Path("outputs/studies/old/0/metrics.json").exists()
    assert run(["prune-files", "old", "--yes", "--keep", "0"]) == 0
    assert not kept[1].exists()
    assert run(["prune-files", "old", "--yes"]) == 0
    assert "no file to remove" in capsys.readouterr().out
