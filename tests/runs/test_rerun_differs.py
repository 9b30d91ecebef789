"""What is not as it was is told when a trial is run again: other numbers, settings, versions."""

from __future__ import annotations

import re
from math import inf, nan
from pathlib import Path

import pytest
from rerun_support import (
    FIT,
    NULL,
    edit,
    edit_study,
    execute,
    forget_folders,
    reruns,
    study,
    words_of,
)

from sweepstack.runs.rerun.compare import Comparison

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("folder", ["with its folder", "the database alone"])
@pytest.mark.parametrize(("old", "new"), [("lr=0.02", "lr=0.0202"), ("seed=7", "seed=8")])
def test_another_learning_rate_or_seed_is_caught(main, again, old, new, folder):
    assert (
        main("-m", *FIT, "training.width=2", "optimizer.lr=0.02,0.03", "training.seed=7").code == 0
    )
    assert again("s", "0").code == 0
    seed = 8 if new == "seed=8" else 7
    words = [word.replace(old, new) for word in words_of(0)]
    assert words != words_of(0)
    edit(0, sweepstack__overrides=words, config_hash=None, seed=seed)  # nothing but numbers tells
    if folder != "with its folder":
        forget_folders()
    said = again("s", "0")
    assert said.code == 5, said.out
    assert said.verdict.startswith("differs: largest difference ")


@pytest.mark.parametrize("fault", ["optimizer.lr=0.001", "training.seed=0"])
def test_another_learning_rate_or_seed_is_caught_on_digits(main, again, fault):
    words = ("data=digits", "model.hidden=[8]", "training.max_steps=60", "training.eval_every=20")
    words += ("training.device=cpu", "hydra.sweeper.study_name=s", "training.width=3")
    assert main("-m", *words, "training.seed=0,1,2", "optimizer.lr=0.001").code == 0
    assert again("s", "0").code == 0
    key = fault.partition("=")[0]
    changed = "0.00101" if key == "optimizer.lr" else "1"
    edit(
        0,
        sweepstack__overrides=[w.replace(fault, f"{key}={changed}") for w in words_of(0)],
        config_hash=None,
        seed=int(changed) if key == "training.seed" else 0,
    )
    forget_folders()
    assert again("s", "0").code == 5


@pytest.mark.parametrize("name", ["val_mse", "test_mse", "train_loss", "steps", "seed"])
def test_a_recorded_number_that_is_another_is_named(stacked, again, name):
    value = study().trials[1].user_attrs[name]
    edit(1, **{name: value + 1 if isinstance(value, int) else value * 1.01})
    forget_folders()
    said = again("s", "1")
    assert said.code == 5
    assert f"({name}" in said.verdict


def test_a_report_or_a_row_of_the_history_that_is_another_is_named(stacked, again):
    execute(
        "UPDATE trial_intermediate_values SET intermediate_value = intermediate_value * 1.01 "
        "WHERE step = 8 AND trial_id IN (SELECT trial_id FROM trials WHERE number = 2)"
    )
    file = Path("outputs/studies/s/3/history.csv")
    lines = file.read_text().splitlines()
    row = dict(zip(lines[0].split(","), lines[2].split(","), strict=True))
    lines[2] = lines[2].replace(row["val_mae"], str(float(row["val_mae"]) * 1.01))
    file.write_text("\n".join(lines))

    assert "val_mse at step 8" in again("s", "2").verdict
    said = again("s", "3")
    assert said.code == 5
    assert "val_mae at step 8" in said.verdict


def test_what_the_user_changes_is_said_and_compared(stacked, again):
    assert again("s", "0", "training.device=cpu").code == 0
    said = again("s", "0", "optimizer.lr=0.5")
    assert said.code == 5
    assert "changed on purpose: optimizer.lr 0.01 then, 0.5 now" in said.out
    assert again("s", "0", "optimizer.lr=0.01").code == 0
    said = again("s", "0", "optimizer=adam")
    assert said.code == 5
    assert "optimizer.name sgd then, adam now" in said.out
    for word, told in {
        "optimizer.rate=1": "unknown key 'optimizer.rate'",
        "optimizer.lr=1,2": "one value",
        "hydra.run.dir=x": "one value of a config key",
        "trust=[os]": "--trust PACKAGE",
        "optimizer.lr=-1": "optimizer.lr must be > 0",
        "training.eval_every=${nope}": "training.eval_every: Interpolation key 'nope' not found",
        "rubbish": "must have the form KEY=VALUE",
    }.items():
        said = again("s", "0", word)
        assert said.code == 2
        assert told in said.line
    assert len(reruns()) == 4


def test_what_has_changed_around_it_is_said(stacked, again):
    key = study().trials[0].user_attrs["sweepstack.environment"]
    then = study().user_attrs[f"sweepstack.environment.{key}"]
    other = then["versions"] | {"torch": "1.0\x1b[2J", "jax": "3"}
    edit_study(
        f"sweepstack.environment.{key}",
        then
        | {
            "versions": other,
            "git": {"commit": "c0ffee"},
        },
    )
    edit(0, device="NVIDIA H9000")
    said = again("s", "0")
    assert said.code == 0
    for line in (
        "changed: torch 1.0 then",
        "changed: jax 3 then, none now",
        "changed: git commit c0ffee then",
        "changed: device NVIDIA H9000 then",
        "another kind of device: the tolerance is 10 times as wide",
    ):
        assert line in said.out
    assert "changed: numpy" not in said.out


def test_configs_that_are_composed_otherwise_today(stacked, again):
    edit(0, sweepstack__overrides=[*words_of(0), "optimizer.momentum=0.5"])
    said = again("s", "0")
    assert said.code == 0  # the folder's config.yaml has the recorded hash
    assert (
        "composed today it would be another config (optimizer.momentum 0.0 then, 0.5 now)"
        in said.out
    )
    forget_folders()
    said = again("s", "0")
    assert said.code == 5
    assert "the recorded config is unavailable" in said.out


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf"), 10**400])
def test_a_recorded_number_that_is_no_number_never_agrees(stacked, again, value):
    edit(0, val_mse=value)
    said = again("s", "0")
    assert said.code == 5
    assert said.verdict.startswith("differs: largest difference without number (val_mse")


@pytest.fixture
def counted(monkeypatch):
    """Verdicts end with how many numbers were compared: stacks may differ by rounding here."""
    count = property(lambda self: f", {len(self.differences)} compared")
    monkeypatch.setattr(Comparison, "_grown", count)


def count_of(said):
    """How many numbers agree."""
    found = re.fullmatch(r"agrees: .*, (\d+) compared", said.verdict)
    assert found, said.verdict
    return int(found[1])


@pytest.mark.parametrize("value", [nan, inf, 1.5, "8", None, NULL, [8], 10**400])
def test_a_best_step_that_is_no_step_leaves_all_other_numbers(stacked, again, counted, value):
    whole = count_of(again("s", "0"))
    edit(0, best_step=value)
    said = again("s", "0")
    assert said.code == 0, said.out
    # It says of which evaluation the metrics at the end are, and of which state test_* are.
    assert whole - 3 == count_of(said)


def test_a_best_step_that_is_another_evaluation_s_is_caught(stacked, again):
    assert study().trials[0].user_attrs["best_step"] == 24
    edit(0, best_step=8)
    said = again("s", "0")
    assert said.code == 5
    assert re.search(r"\((train|val)_\w+ at step 8\)", said.verdict)


@pytest.mark.parametrize("text", ["²", "9" * 5000, "-1", "nan", "x", ""])
def test_a_row_of_the_history_whose_step_is_none_is_left_out(stacked, again, counted, text):
    whole = count_of(again("s", "0"))
    file = Path("outputs/studies/s/0/history.csv")
    header, first, *others = file.read_text().splitlines()
    assert header.startswith("step,")
    file.write_text("\n".join([header, f"{text},{first.partition(',')[2]}", *others]), "utf-8")
    said = again("s", "0")
    assert said.code == 0, said.out
    # The row has lr, train_loss and val_*; the database has the objective at that step still.
    assert whole - 4 == count_of(said)
