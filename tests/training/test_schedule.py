"""Learning-rate schedules against torch.optim.lr_scheduler, and what holds for all of them."""

import math
from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.optim import lr_scheduler

from sweepstack.config import schema
from sweepstack.config.errors import InputError
from sweepstack.training import schedule
from sweepstack.training.loss import direction_of

LR = 0.3
CONSTANT = schema.Constant(name="constant", warmup_steps=0)


def plateau(metric="val_loss", warmup_steps=0, **changes):
    values = {"factor": 0.5, "patience": 1, "min_delta": 0.01} | changes
    return schema.Plateau(name="plateau", warmup_steps=warmup_steps, metric=metric, **values)


def one_cycle(pct_start=0.3, div_factor=25.0, final_div_factor=1e4, warmup_steps=0):
    return schema.OneCycle(
        name="one_cycle",
        warmup_steps=warmup_steps,
        pct_start=pct_start,
        div_factor=div_factor,
        final_div_factor=final_div_factor,
    )


def step_decay(step_size, gamma, warmup_steps=0):
    return schema.StepDecay(
        name="step", warmup_steps=warmup_steps, step_size=step_size, gamma=gamma
    )


def exponential(gamma, warmup_steps=0):
    return schema.Exponential(name="exponential", warmup_steps=warmup_steps, gamma=gamma)


def cosine(min_factor, warmup_steps=0):
    return schema.Cosine(name="cosine", warmup_steps=warmup_steps, min_factor=min_factor)


def build(config, total_steps=100):
    return schedule.build(config, total_steps, direction_of)


def torch_optimizer():
    return torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=LR)


def torch_factors(make, steps):
    """The lr that torch's scheduler gives each step, as a factor of LR."""
    optimizer = torch_optimizer()
    scheduler = make(optimizer)
    factors = []
    for _ in range(steps):
        factors.append(optimizer.param_groups[0]["lr"] / LR)
        optimizer.step()
        scheduler.step()
    return factors


def torch_one_cycle(optimizer, steps, config):
    return lr_scheduler.OneCycleLR(
        optimizer,
        max_lr=LR,
        total_steps=steps,
        pct_start=config.pct_start,
        div_factor=config.div_factor,
        final_div_factor=config.final_div_factor,
        cycle_momentum=False,
        anneal_strategy="cos",
    )


@pytest.mark.parametrize("steps", [1, 2, 7, 50, 1000])
@pytest.mark.parametrize(
    ("config", "make"),
    [
        (step_decay(3, 0.1), lambda o, n: lr_scheduler.StepLR(o, 3, 0.1)),
        (step_decay(1, 0.9), lambda o, n: lr_scheduler.StepLR(o, 1, 0.9)),
        (exponential(0.97), lambda o, n: lr_scheduler.ExponentialLR(o, 0.97)),
        (cosine(0.0), lambda o, n: lr_scheduler.CosineAnnealingLR(o, T_max=n)),
        (cosine(0.2), lambda o, n: lr_scheduler.CosineAnnealingLR(o, T_max=n, eta_min=0.2 * LR)),
        (one_cycle(), lambda o, n: torch_one_cycle(o, n, one_cycle())),
        (one_cycle(0.77, 3.0, 7.0), lambda o, n: torch_one_cycle(o, n, one_cycle(0.77, 3.0, 7.0))),
    ],
)
def test_factors_are_those_of_torch(config, make, steps):
    expected = torch_factors(lambda optimizer: make(optimizer, steps), steps)
    assert build(config, steps).factors(0, steps) == pytest.approx(expected, rel=1e-9, abs=1e-12)


@pytest.mark.parametrize(
    ("config", "make"),
    [
        (step_decay(3, 0.1), lambda o: lr_scheduler.StepLR(o, 3, 0.1)),
        (exponential(0.9), lambda o: lr_scheduler.ExponentialLR(o, 0.9)),
    ],
)
def test_with_unit_epoch_the_factor_changes_after_each_epoch(config, make):
    by_epoch = replace(config, unit="epoch")
    epochs = torch_factors(make, 8)
    mine = schedule.build(by_epoch, 40, direction_of, steps_per_epoch=5)
    assert mine.factors(0, 40) == pytest.approx([epochs[step // 5] for step in range(40)])
    late = schedule.build(replace(by_epoch, warmup_steps=4), 44, direction_of, steps_per_epoch=5)
    assert late.factors(0, 44) == pytest.approx([0.25, 0.5, 0.75, 1.0, *mine.factors(0, 40)])


@pytest.mark.parametrize(
    ("gamma", "steps", "unit", "said"),
    [
        (0.9, 100, "step", 1),
        *((0.97, 100, "step", 0), (0.9, 99, "step", 0), (0.9, 100, "epoch", 0)),
    ],
)
def test_a_decay_per_step_that_is_one_of_an_epoch_is_said_once(gamma, steps, unit, said, caplog):
    schedule.warn_of_fast_decay.cache_clear()
    for _ in range(2):
        build(replace(exponential(gamma), unit=unit), steps)
    lines = [record.getMessage() for record in caplog.records]
    assert lines == said * [
        "schedule.gamma=0.9 per step leaves 3e-05 of the learning rate after 100 steps; torch code "
        "mostly decays once per epoch: schedule.unit=epoch"
    ]


@pytest.mark.parametrize("metric", ["val_loss", "val_accuracy"])
@settings(deadline=None)
@given(
    values=st.lists(st.floats(0, 2) | st.just(math.nan), max_size=40),
    patience=st.integers(0, 4),
    min_delta=st.sampled_from([0.0, 1e-4, 0.1]),
)
def test_plateau_reduces_when_torch_does(metric, values, patience, min_delta):
    ours = build(plateau(metric, patience=patience, min_delta=min_delta))
    optimizer = torch_optimizer()
    theirs = lr_scheduler.ReduceLROnPlateau(
        optimizer,
        mode={"maximize": "max", "minimize": "min"}[direction_of(metric)],
        factor=0.5,
        patience=patience,
        threshold=min_delta,
        threshold_mode="rel",
        eps=0,
    )
    for value in values:
        ours.observe({"val_loss": 0.0, "val_accuracy": 0.0, metric: value})
        theirs.step(value)
        assert ours.factor(50) == optimizer.param_groups[0]["lr"] / LR


def test_plateau_keeps_falling_below_torchs_eps():
    slow = build(plateau(patience=0, factor=0.1))
    for _ in range(21):
        slow.observe({"val_loss": 1.0})
    assert slow.factor(0) == pytest.approx(1e-20)


@settings(deadline=None)
@given(st.lists(st.floats(0, 2), max_size=20), st.lists(st.floats(0, 2), max_size=20))
def test_plateau_continues_from_its_state(before, after):
    whole, resumed = build(plateau()), build(plateau())
    for value in before:
        whole.observe({"val_loss": value})
    resumed.restore(whole.state())
    for value in after:
        whole.observe({"val_loss": value})
        resumed.observe({"val_loss": value})
    assert resumed.state() == whole.state()
    assert resumed.factor(9) == whole.factor(9)


def test_a_state_of_another_version_is_an_error():
    ours = build(plateau())
    with pytest.raises(KeyError):
        ours.restore({"factor": 0.5, "best": 1.0, "bad_evaluations": 0})
    assert ours.factor(9) == 1.0


@pytest.mark.parametrize("config", [CONSTANT, step_decay(3, 0.5), cosine(0.1), one_cycle()])
def test_only_plateau_listens_to_metrics(config):
    ours = build(config)
    before = ours.factors(0, 100)
    ours.observe({"val_loss": 1.0})
    assert ours.factors(0, 100) == before
    assert ours.state() == {}


def test_plateau_names_the_metric_it_needs():
    ours = build(plateau("val_mae"))
    with pytest.raises(KeyError, match="val_mae"):
        ours.observe({"val_loss": 1.0})


DECREASING = st.one_of(
    st.just(CONSTANT),
    st.builds(step_decay, st.integers(1, 50), st.floats(1e-3, 1)),
    st.builds(exponential, st.floats(1e-3, 1)),
    st.builds(cosine, st.floats(0, 1)),
)


@settings(deadline=None)
@given(DECREASING, st.integers(1, 200))
def test_decreasing_schedules_start_at_1_and_never_rise(config, steps):
    factors = build(config, steps).factors(0, steps)
    assert factors[0] == 1
    assert all(1 >= a >= b >= 0 for a, b in pairwise(factors))


@settings(deadline=None)
@given(
    numerator=st.integers(1, 9),
    tenth=st.integers(1, 30),
    div_factor=st.floats(1, 1e3),
    final_div_factor=st.floats(1, 1e5),
)
def test_one_cycle_peaks_at_1_where_pct_start_says(numerator, tenth, div_factor, final_div_factor):
    steps, peak = 10 * tenth, numerator * tenth - 1
    config = one_cycle(numerator / 10, div_factor, final_div_factor)
    factors = build(config, steps).factors(0, steps)
    assert factors[peak] == pytest.approx(1)
    assert max(factors) <= 1
    assert min(factors) >= 0
    if peak > 0:
        assert factors[0] == pytest.approx(1 / div_factor)
    assert factors[-1] == pytest.approx(1 / div_factor / final_div_factor)


WITH_WARMUP = [
    lambda warmup: schema.Constant(name="constant", warmup_steps=warmup),
    lambda warmup: step_decay(3, 0.5, warmup),
    lambda warmup: exponential(0.9, warmup),
    lambda warmup: cosine(0.1, warmup),
    lambda warmup: one_cycle(warmup_steps=warmup),
    lambda warmup: plateau(warmup_steps=warmup),
]


@pytest.mark.parametrize("make", WITH_WARMUP)
def test_warmup_ramps_to_the_schedules_start_and_then_runs_all_of_it(make):
    plain = build(make(0), 20)
    ramp = [(step + 1) / 5 * plain.factor(0) for step in range(5)]
    assert build(make(5), 25).factors(0, 25) == pytest.approx(ramp + plain.factors(0, 20))


@pytest.mark.parametrize("make", WITH_WARMUP)
def test_factors_of_blocks_are_those_of_steps(make):
    ours = build(make(4), 30)
    blocks = ours.factors(0, 3) + ours.factors(3, 20) + ours.factors(23, 7)
    assert blocks == [ours.factor(step) for step in range(30)]


@pytest.mark.parametrize("warmup", [200, 300])
def test_warmup_must_leave_a_step(warmup):
    message = f"schedule.warmup_steps must be < the run's steps (200), got {warmup}"
    with pytest.raises(InputError) as error:
        build(cosine(0.0, warmup), 200)
    assert error.value.mistakes == [message]
    assert build(cosine(0.0, 199), 200).factor(199) == 1
