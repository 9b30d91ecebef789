"""Triton's kernels for stacks of pictures: torch's numbers, or they are not used.

Without a GPU in Triton's interpreter; whether a card runs them too, `Chooser` asks on that card.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from itertools import chain, zip_longest

import pytest
import torch
from engine_support import Same, by_number, varied
from support import make_spec
from torch.func import vmap
from torch.nn import functional as F

from sweepstack.engine import width
from sweepstack.engine.program import Program
from sweepstack.engine.train import train
from sweepstack.engine.width import Widths
from sweepstack.models import autotune, convolution, layers
from sweepstack.models.autotune import Chooser, Layer, Plan, Rules
from sweepstack.models.convolution import Geometry

pytest.importorskip("triton", reason="this torch comes without Triton")

from triton.runtime import interpreter

from sweepstack.models import kernels
from sweepstack.models.kernels import batch_norm, implicit_gemm
from sweepstack.models.kernels.batch_norm import Norm
from sweepstack.models.kernels.max_pool import Pool

# numpy's, in the interpreter: numbers that are not finite are meant, and that of Triton 3.6 makes
# numbers of arrays of one (numpy 2.4 refuses that).
pytestmark = [
    pytest.mark.filterwarnings("ignore:.* encountered in:RuntimeWarning"),
    pytest.mark.filterwarnings("ignore:Conversion of an array with ndim:DeprecationWarning"),
]

PLACE = "cuda" if torch.cuda.is_available() else "cpu"
SMALL = ("data=digits", "data.subset=50", "batch.size=4", f"training.device={PLACE}")
CONVNET = (*SMALL, "model=convnet", "model.width=2", "model.kernel_size=3", "model.hidden=[8]")
RESNET = (*SMALL, "model=resnet", "model.width=2", "model.depth=2")


ALL = Plan(False, Same("implicit"), kernels=True)
BLOCKS = implicit_gemm._blocks


@pytest.fixture(autouse=True)
def used(monkeypatch):
    """There are kernels on a CPU as well, with few and large programs: each costs the interpreter
    milliseconds. Products are exact on a GPU too."""
    monkeypatch.setattr(kernels, "PLACES", {PLACE})
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    options = interpreter.interpreter_builder.options.__dict__
    monkeypatch.setitem(options, "sanitize_overflow", False)
    if PLACE == "cpu":
        monkeypatch.setattr(implicit_gemm, "_blocks", lambda *_: implicit_gemm.Blocks(512, 16, 16))
        for module in (implicit_gemm, batch_norm):
            monkeypatch.setattr(module, "power", lambda n, a, b: kernels.power(n, a, 8 * b))


def reference(x, weight, bias, geometry):
    """Each slot by torch in float64."""
    g = geometry
    each = zip(x.double(), weight.double(), bias.double(), strict=True)
    return torch.stack([F.conv2d(*row, g.stride, g.padding, g.dilation) for row in each])


def off(mine, other):
    return float(((mine - other).double().norm() / other.double().norm().clamp(min=1e-9)).detach())


CASES = [  # slots, C, O, kernel, stride, padding, dilation
    (1, 1, 3, (3, 5), 1, 2, 1),
    (2, 5, 17, (3, 5), (2, 3), (1, 0), 2),
    (3, 16, 9, (3, 2), (2, 3), (1, 0), 2),
    (5, 9, 16, (1, 1), 2, 0, 1),
    (2, 18, 16, (2, 2), 1, 3, 1),
    (1, 3, 40, (3, 3), 3, (0, 1), 3),
]


@pytest.mark.parametrize("case", CASES, ids=str)
def test_convolutions_give_torchs_numbers(case):
    """In float32, with gradients of all three."""
    slots, depth, channels, kernel, stride, padding, dilation = case
    geometry = Geometry.of(stride, padding, dilation, 1)
    drawn = torch.Generator().manual_seed(0)
    shapes = (slots, 2, depth, 9, 10), (slots, channels, depth, *kernel), (slots, channels)
    x, weight, bias = (torch.randn(s, generator=drawn).to(PLACE).requires_grad_() for s in shapes)
    y = reference(x, weight, bias, geometry)
    gy = torch.randn(y.shape, generator=drawn).to(PLACE)
    gradients = torch.autograd.grad(y, (x, weight, bias), gy.double())
    given = gy, x.detach(), weight.detach(), geometry, False
    with torch.no_grad():
        mine = convolution._implicit(x, weight, bias, geometry, False)
        found = convolution._implicit_back(*given, (True, True, True))
        alone = convolution._implicit_back(*given, (False, True, False))
    assert off(mine, y) < 1e-6
    for one, other in zip(found, gradients, strict=True):
        assert off(one, other) < 2e-6
    assert alone[0] is None
    assert alone[2] is None
    assert off(alone[1], gradients[1]) < 2e-6


def test_a_large_batch_is_taken_in_parts(monkeypatch):
    """As of an evaluation; float32's numbers of pixels end somewhere."""
    geometry = Geometry.of(1, 1, 1, 1)
    x, weight = torch.randn(2, 5, 1, 6, 6, device=PLACE), torch.randn(2, 3, 1, 3, 3, device=PLACE)
    whole = convolution._implicit(x, weight, None, geometry, False)
    monkeypatch.setattr(implicit_gemm, "MAX_PIXELS", 2 * 8 * 8)
    assert implicit_gemm.samples_at_once(x, weight, geometry) == 2
    assert torch.equal(convolution._implicit(x, weight, None, geometry, False), whole)


def test_divisors_are_exact():
    numbers = torch.arange(2**22 - 2**14, 2**22, device=PLACE).float()
    for divisor in (1, 3, 7, 28, 49, 784, 2**11 + 1, 2**21 - 1):
        inverse = torch.tensor(1 / divisor).to(PLACE)
        assert torch.equal(((numbers + 0.5) * inverse).int(), (numbers.long() // divisor).int())


def test_a_weights_gradient_is_added_up_from_parts():
    """Of pixels, and in blocks of channels and taps."""
    geometry = Geometry.of(1, 1, 1, 1)
    x, gy = torch.randn(2, 2, 9, 8, 8, device=PLACE), torch.randn(2, 2, 17, 8, 8, device=PLACE)
    weight = torch.randn(2, 17, 9, 3, 3, device=PLACE)
    given = gy, x, weight, geometry, True, None
    whole = implicit_gemm.correlated_weights(*given)
    parts = implicit_gemm.correlated_weights(*given, implicit_gemm.Blocks(64, 16, 64, span=64))
    for one, other in zip(parts, whole, strict=True):
        assert off(one, other) < 2e-6


def chosen_on_a_card(monkeypatch):
    """Blocks as they are there, not those that the interpreter is quick with."""
    monkeypatch.setattr(implicit_gemm, "_blocks", BLOCKS)
    monkeypatch.setattr(implicit_gemm, "power", kernels.power)


def named(blocks):
    return " ".join(("implicit", *map(str, blocks)))


ODD = [  # slots, C, O, kernel, stride, padding
    (1, 1, 5, 5, 1, 2),
    (2, 3, 20, 5, 1, 0),
    (3, 20, 17, 3, 2, 1),
    (5, 20, 3, 1, 2, 0),
    (2, 1, 20, 1, 1, 1),
    (1, 17, 40, 3, 1, 1),
]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("case", ODD, ids=str)
def test_all_blocks_give_torchs_numbers(monkeypatch, case, dtype):
    """A plan may have any of them, for each pass another one."""
    chosen_on_a_card(monkeypatch)
    slots, depth, channels, kernel, stride, padding = case
    geometry = Geometry.of(stride, padding, 1, 1)
    drawn = torch.Generator().manual_seed(0)
    shapes = (slots, 2, depth, 7, 6), (slots, channels, depth, kernel, kernel), (slots, channels)
    x, weight, bias = (torch.randn(s, generator=drawn).to(PLACE, dtype) for s in shapes)
    rows = [each.double().requires_grad_() for each in (x, weight, bias)]
    y = reference(*rows, geometry)
    gy = torch.randn(y.shape, generator=drawn).to(PLACE, dtype)
    expected = torch.autograd.grad(y, rows, gy.double())
    rounding = 2e-6 if dtype == torch.float32 else 2.0**-7  # the interpreter cuts digits off
    ways = [
        list(map(named, implicit_gemm.candidates(shapes[1], number, geometry.stride)))
        for number in range(3)
    ]
    assert all(3 <= len(set(each)) == len(each) <= 5 for each in ways)
    for way in ways[0]:
        assert off(convolution.forward(way, x, weight, bias, geometry, False), y) < rounding, way
    for number, pair in enumerate(zip_longest(*ways[1:], fillvalue="implicit")):
        wanted = number % 2 == 0, True, True  # the weight's gradient has its own layout without x's
        found = convolution.backward(pair, gy, x, weight, geometry, False, wanted=wanted)
        for one, other in zip(found[number % 2 :], expected[number % 2 :], strict=True):
            assert off(one, other) < rounding, pair


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_low_precision_adds_up_in_float32(dtype):
    geometry = Geometry.of(1, 1, 1, 1)
    drawn = torch.Generator().manual_seed(0)
    shapes = (2, 3, 16, 7, 7), (2, 16, 16, 3, 3), (2, 16), (2, 3, 16, 7, 7)
    x, weight, bias, gy = (torch.randn(s, generator=drawn).to(PLACE, dtype) for s in shapes)
    rows = [each.double().requires_grad_() for each in (x, weight, bias)]
    y = reference(*rows, geometry)
    gradients = torch.autograd.grad(y, rows, gy.double())
    found = convolution._implicit_back(gy, x, weight, geometry, False, (True, True, True))
    mine = convolution._implicit(x, weight, bias, geometry, False)
    rounding = 2.0**-8 if dtype == torch.bfloat16 else 2.0**-11
    for one, other in zip((mine, *found), (y, *gradients), strict=True):
        assert one.dtype == dtype
        assert off(one, other) < rounding


def test_a_slots_numbers_do_not_depend_on_its_neighbours():
    """Not by a bit: its sums are in the same order at any width, and no load leaves its slot."""
    geometry = Geometry.of(2, 1, 1, 1)
    shapes = (3, 4, 9, 9, 9), (3, 16, 9, 3, 3), (3, 16), (3, 4, 16, 5, 5)
    x, weight, bias, gy = (torch.randn(s, device=PLACE) for s in shapes)
    for broken in (0, 2):
        x[broken], gy[broken] = torch.nan, torch.nan
    for slots in (slice(0, 3), slice(1, 2), slice(1, 3)):
        row = [each[slots] for each in (x, weight, bias, gy)]
        y = convolution._implicit(*row[:3], geometry, False)
        back = convolution._implicit_back(row[3], *row[:2], geometry, False, (True, True, True))
        own = [each[1 - slots.start] for each in (y, *back)]
        if slots.stop == 3 and slots.start == 0:
            expected = own
        assert all(
            torch.equal(a, b) and a.isfinite().all() for a, b in zip(own, expected, strict=True)
        )


@pytest.mark.parametrize("shape", [(3, 2, 4, 8, 8), (2, 3, 7, 9), (2, 2, 40, 37), (5, 3)])
@pytest.mark.parametrize("kernel", [(2, 2), (2, 3), (1, 3)])
def test_pools_give_torchs_numbers(shape, kernel):
    """Ties, edges that no window covers, infinite numbers and NaN included."""
    x = torch.randn(shape, generator=torch.Generator().manual_seed(0)).relu()
    x.view(-1)[3:6] = torch.tensor([torch.nan, -torch.inf, torch.inf])
    x = x.to(PLACE).requires_grad_()
    planes = x.view(1, -1, *shape[-2:])
    expected = F.max_pool2d(planes, kernel)
    gy = torch.randn(expected.shape, device=PLACE)
    found = vmap(lambda each: Pool.apply(each, kernel)[0])(planes[0]).unsqueeze(0)
    torch.testing.assert_close(found, expected, rtol=0, atol=0, equal_nan=True)
    pair = [torch.autograd.grad(y, x, gy)[0] for y in (found, expected)]
    assert torch.equal(*pair)


@pytest.mark.parametrize("shape", [(3, 4, 5, 6, 7), (2, 9, 3), (1, 3, 2, 15, 15)])
@pytest.mark.parametrize("affine", [True, False])
def test_batch_norms_give_torchs_numbers(shape, affine):
    """With a mean that is large beside the deviation, and the running statistics."""
    drawn = torch.Generator().manual_seed(0)
    rows = (shape[0], shape[2])
    x = (torch.randn(shape, generator=drawn) + 100).to(PLACE).requires_grad_()
    own = [torch.randn(rows, generator=drawn).to(PLACE).requires_grad_() for _ in range(2)]
    given = own if affine else [None, None]
    running = [torch.rand(rows, generator=drawn).to(PLACE) for _ in range(2)]

    def normalized(x, mean, var, *affine):
        mean, var = mean.clone(), var.clone()
        from sweepstack.models.layers import batch_norm

        return batch_norm(x, mean, var, *affine, True, 0.1, 1e-5), mean, var

    dims = (0, 0, 0, *[0 if affine else None] * 2)
    with Rules(ALL):
        found = vmap(normalized, dims)(x, *running, *given)
    wide = [each if each is None else each.double() for each in (x, *running, *given)]
    expected = vmap(normalized, dims)(*wide)
    gy = torch.randn(shape, generator=drawn).to(PLACE)
    leaves = [x, *own] if affine else [x]
    pair = [torch.autograd.grad(y[0], leaves, gy.to(y[0].dtype)) for y in (found, expected)]
    for one, other in zip((*found, *pair[0]), (*expected, *pair[1]), strict=True):
        assert off(one, other) < 2e-5


@pytest.mark.parametrize("affine", [True, False])
def test_slots_may_share_what_a_batch_norm_takes(affine):
    """As its first layer does, where all trials see the same batches."""
    x, rows = torch.randn(4, 3, 5, 5, device=PLACE), torch.rand(4, 2, 3, device=PLACE)
    mean, var, *own = rows if affine else rows[:2]
    dims = (None, 0, 0, *[0 if affine else None] * 2)
    given = x, mean, var, *(own or (None, None))

    def normalized(x, mean, var, *affine):
        return layers.batch_norm(x, mean.clone(), var.clone(), *affine, True, 0.1, 1e-5)

    expected = vmap(normalized, dims)(*given)
    with Rules(ALL):
        found = vmap(normalized, dims)(*given)
    assert off(found.expand(2, *x.shape), expected.expand(2, *x.shape)) < 2e-6


def test_the_variance_of_infinite_numbers_is_nan():
    x = torch.randn(1, 4, 2, 3, device=PLACE)
    x[0, 1, 0, 1] = torch.inf
    y, _, variances = Norm.apply(x, None, None, 1e-5, x)
    assert variances.isnan().tolist() == [[True, False]]
    assert y[0, :, 0].isnan().all()
    assert y[0, :, 1].isfinite().all()


# --- a stack's steps ------------------------------------------------------------------------------


@pytest.mark.parametrize("words", [CONVNET, RESNET], ids=["convnet", "resnet"])
def test_a_step_comes_to_vmaps_numbers(words):
    stepper = width._Stepper(Program.of(make_spec(*words)), 2)
    slow, fast = ([*chain(*stepper.tried(Rules(plan)))] for plan in (None, ALL))
    assert len(slow) == len(fast)
    assert max(off(*pair) for pair in zip(fast, slow, strict=True)) < 2e-5


def trials(words, count=5):
    base = make_spec(*words, "training.eval_every=1").config
    return [
        varied(
            base, n, optimizer={"lr": 0.01 / (1 + n)}, training={"seed": n, "max_steps": 1 + n % 2}
        )
        for n in range(count)
    ]


@pytest.fixture
def planned(monkeypatch):
    """Plans are chosen on this device, for programs that have none yet, and none stays."""
    monkeypatch.setattr(autotune, "MEASURED_ON", ("cpu", "cuda"))
    programs = [Program.of(make_spec(*words)) for words in (CONVNET, RESNET)]
    for program in programs:
        program.plans.clear()
        program.unplanned.clear()
    yield
    for program in programs:
        program.plans.clear()


@pytest.mark.parametrize("words", [CONVNET, pytest.param(RESNET, marks=pytest.mark.slow)])
def test_a_trial_is_itself_at_every_width(planned, monkeypatch, words):
    """A wrong gradient differs by more, see below."""
    monkeypatch.setattr(Chooser, "chosen", lambda *_: ALL)
    specs = trials(words, 5 if words is CONVNET else 3)
    expected = by_number(train(specs, width=1))
    for wide in (2, 3, 5)[: len(specs) - 2]:
        assert_close(by_number(train(specs, width=Widths(wide))), expected)


def assert_close(found, expected):
    for number, alone in expected.items():
        for one, other in zip(found[number].history, alone.history, strict=True):
            assert one["val_loss"] == pytest.approx(other["val_loss"], rel=1e-4)
            assert one["train_loss"] == pytest.approx(other["train_loss"], rel=1e-4)


@pytest.mark.parametrize("fault", ["other numbers", "raises"])
def test_kernels_that_fail_are_not_used(planned, monkeypatch, caplog, fault):
    """Neither by the choice nor, forced, without the contract's comparison finding it."""
    original = implicit_gemm.correlated_inputs

    def failing(*given):
        if fault == "raises":
            raise TypeError("a compiler's\nerror")
        return -original(*given)

    monkeypatch.setattr(implicit_gemm, "correlated_inputs", failing)
    monkeypatch.setattr(Chooser, "_fastest", lambda *_: ("implicit",) * 3)
    program = Program.of(make_spec(*CONVNET))
    with caplog.at_level("INFO"):
        Widths(2).of(program)
    assert program.plans == {2: None}
    reason = "it differs from vmap's by" if fault == "other numbers" else "a compiler's"
    assert f"is not used: {reason}" in caplog.text
    if fault == "other numbers":
        specs = trials(CONVNET, 2)
        expected = by_number(train(specs, width=1))
        program.plans[2] = ALL
        with pytest.raises(AssertionError):
            assert_close(by_number(train(specs, width=Widths(2))), expected)


def test_the_fastest_plan_is_used_and_kept(planned, monkeypatch, tmp_path):
    """With kernels for all three; a record of before there were any is measured anew."""
    file, program = tmp_path / "widths.json", Program.of(make_spec(*CONVNET))
    monkeypatch.setattr(Chooser, "_fastest", lambda self, layer, last: ("implicit", "loop", "loop"))

    def took(run, place):
        plan = run.args[0].given.plan
        return 1.0 if plan is not None and plan.kernels else 2.0

    monkeypatch.setattr(autotune, "_seconds", took)
    Widths(2, file=file).of(program)
    plan = program.plans.pop(2)
    assert plan.kernels
    assert not plan.last
    assert Plan.read(autotune.record(plan)) == plan
    old = {key: value for key, value in autotune.record(plan).items() if key != "version"}
    assert Plan.read(old) is None
    assert Plan.read({**old, "version": autotune.VERSION - 1}) is None


LAYER = Layer((1, 1, 16, 4, 4), (1, 16, 16, 3, 3), torch.float32, Geometry.of(1, 1), inputs=True)


@pytest.mark.parametrize("number", [0, 1, 2])
def test_blocks_that_fail_leave_the_others(monkeypatch, caplog, number):
    """One that does not compile and one that comes to other numbers: a line of the log each."""
    chosen_on_a_card(monkeypatch)
    blocks = implicit_gemm.candidates(LAYER.weight, number, (1, 1))
    name = ("correlated", "correlated_inputs", "correlated_weights")[number]
    original, place = getattr(implicit_gemm, name), 6 if number == 2 else 4

    def failing(*given):
        if given[place] == blocks[1]:
            raise RuntimeError("out of resource: shared memory")
        found = original(*given)
        wrong = given[place] == blocks[2]
        return [2 * each for each in found] if wrong and number == 2 else found * (1 + wrong)

    monkeypatch.setattr(implicit_gemm, name, failing)
    times = {named(each): 1 / (2 + n) for n, each in enumerate(blocks[1:])}
    times |= {"grouped": 0.6, "implicit": 0.5}
    times[named(blocks[3])], times[named(blocks[-1])] = 0.1, 0.1 if len(blocks) == 4 else 0.4
    monkeypatch.setattr(autotune, "_seconds", lambda run, place: (run(), times[run.args[0]])[1])
    chooser = Chooser(lambda rules: [], torch.device(PLACE), 1e-3)
    with caplog.at_level("INFO"):
        found = chooser._fastest_blocks(LAYER, number, ["grouped"] * 3, time.monotonic() + 1e6)
    assert found == named(blocks[3])
    lines = [line for line in caplog.messages if "are not used" in line]
    assert len(lines) == 2
    assert named(blocks[1]) in lines[0]
    assert "shared memory" in lines[0]
    assert named(blocks[2]) in lines[1]
    assert "differs" in lines[1]
    assert set(chooser.times[LAYER.key, number]) < {*times}


@pytest.mark.parametrize("why", ["slow", "late"])
def test_blocks_are_not_measured_where_they_cannot_matter(monkeypatch, why):
    """The kernel takes 1.6 times as long as another way, or the time for it is over."""
    tried = []

    def took(run, place):
        tried.append(run.args[0])
        return 1.6 if why == "slow" and run.args[0] == "implicit" else 1.0

    monkeypatch.setattr(autotune, "_seconds", took)
    chooser = Chooser(lambda rules: [], torch.device(PLACE), 1e-3)
    until = time.monotonic() + (1e6 if why == "slow" else 0)
    assert chooser._fastest_blocks(LAYER, 0, ["loop"] * 3, until) == "loop"
    assert {*tried} == {"loop", "implicit"}


def test_measured_blocks_are_kept_with_the_width(planned, monkeypatch, tmp_path):
    """Of a plan of before there were any, too; not where a sweep is too short for it."""
    file, program = tmp_path / "widths.json", Program.of(make_spec(*CONVNET))
    way = named(implicit_gemm.Blocks(512, 16, 16))
    calls = []

    def fastest(self, layer, number, ways, until):
        calls.append(number)
        return way

    plain = Plan(False, Same("implicit"), kernels=True)
    monkeypatch.setattr(Chooser, "chosen", lambda self, kept: kept or plain)
    monkeypatch.setattr(Chooser, "_fastest_blocks", fastest)
    monkeypatch.setattr(Chooser, "_time", lambda self, run, ways, times: times.update(implicit=1.0))
    monkeypatch.setattr(Chooser, "_step", lambda self, plan: 1.0 if plan == plain else 0.5)
    monkeypatch.setattr(autotune, "SHARE", 1e-9)
    Widths(2, file=file).of(program)
    (kept,) = json.loads(file.read_text()).values()
    assert kept == autotune.record(program.plans.pop(2))
    assert not calls
    monkeypatch.setattr(autotune, "SHARE", 1e9)
    for _ in range(2):
        widths = Widths(2, file=file)
        assert [widths.of(program), widths.of(program)] == [2, 2]
        plan = program.plans.pop(2)
        assert sorted(calls) == [0, 0, 1, 2, 2]  # the first layer has no input gradient
        assert set(chain(*plan.ways.values())) == {"implicit", way}
        (kept,) = json.loads(file.read_text()).values()
        assert kept == autotune.record(plan, tuned=True)
        assert Plan.read(kept) == plan
    for odd in (f"{way} 1", "implicit 0 1 1 1 1 1", "implicit a b c d e f", "loop 1 1 1 1 1 1"):
        assert Plan.read({**kept, "ways": {"1": ["loop", "loop", odd]}}) is None


@pytest.mark.parametrize("fault", ["other numbers", "no gain", "raises"])
def test_blocks_that_do_not_gain_in_a_step_are_not_used(planned, monkeypatch, fault):
    """The plan stays as it was, and is not measured again."""
    program = Program.of(make_spec(*CONVNET))
    plan = Plan(False, Same("implicit"), kernels=True)
    seen = {LAYER.key: LAYER}
    changed = {LAYER.key: ("implicit", "implicit", named(implicit_gemm.Blocks(512, 16, 16)))}

    def step(rules):
        if rules.given.seen is not None:
            rules.given.seen.update(seen)
        own = rules.given.plan is not None and rules.given.plan.ways == changed
        if own and fault == "raises":
            raise ValueError("odd")
        return [[torch.ones(2) * (2 if own and fault == "other numbers" else 1)]]

    monkeypatch.setattr(Chooser, "_with_blocks", lambda *_: changed)
    monkeypatch.setattr(Chooser, "_step", lambda *_: 1.0)
    chooser = Chooser(step, program.device, 1e-3)
    assert chooser.tuned(plan, 1e6) == (plan, True)
    assert chooser.tuned(None, 1e6) == (None, True)
    assert chooser.tuned(plan, 10) == (plan, False)


@pytest.mark.parametrize("given", ["groups", "channels last", "float64", "another device"])
def test_what_kernels_do_not_take_is_refused(monkeypatch, given):
    x, weight = torch.randn(2, 2, 4, 5, 5, device=PLACE), torch.randn(2, 4, 4, 3, 3, device=PLACE)
    groups, last = 2 if given == "groups" else 1, given == "channels last"
    if given == "another device":
        monkeypatch.setattr(kernels, "PLACES", {"meta"})
    if given == "float64":
        x, weight = x.double(), weight.double()
    with pytest.raises(NotImplementedError, match="no kernels for"):
        convolution._implicit(x, weight, None, Geometry.of(1, 0, 1, groups), last)


def test_without_triton_other_ways_are_chosen(planned, monkeypatch):
    monkeypatch.setitem(sys.modules, "sweepstack.models.kernels", None)
    monkeypatch.delattr("sweepstack.models.kernels")
    program = Program.of(make_spec(*CONVNET))
    Widths(2).of(program)
    plan = program.plans[2]
    assert plan is None or not (plan.kernels or "implicit" in str(plan.ways))


@pytest.mark.skipif(PLACE == "cpu", reason="autocast of a GPU")
def test_a_stacks_convolution_runs_in_bf16_on_a_gpu_as_a_trial_alone_does():
    x, weight, bias = (
        torch.randn(s, device=PLACE) for s in ((2, 3, 4, 6, 6), (2, 5, 4, 3, 3), (2, 5))
    )
    with torch.autocast(PLACE, torch.bfloat16), Rules(None):
        assert vmap(F.conv2d)(x, weight, bias).dtype == torch.bfloat16
        assert F.conv2d(x[0], weight[0], bias[0]).dtype == torch.bfloat16


COMPILED = """
import torch
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource, compile, make_backend
from triton.runtime.jit import create_function_from_signature
from sweepstack.models.kernels import batch_norm, gemm, max_pool

def wanted(kernel, dtype):
    for name in kernel.arg_names:
        if name.startswith("of_") or name == "eps":
            yield name, "fp32"
        elif name in ("parts", "means", "variances") or (name in ("weight", "bias", "weights",
                "biases") and "normalize" in kernel.__name__):
            yield name, "*fp32"
        elif name == "winners":
            yield name, "*u8"
        else:
            yield name, dtype if name in POINTERS else "i32"

POINTERS = {"source", "weight", "bias", "out", "gradient", "weights", "biases", "x", "y"}
KINDS = (("*bf16", "ieee", 8), ("*fp32", "tf32", 4), ("*fp32", "ieee", 4))
for capability, kinds in ((80, KINDS[:1]), (90, KINDS)):
    for dtype, precision, at_once in kinds:
        sizes = {"WIDE": False, "PRECISION": precision, "P": 64, "N": 16, "K": 16}
        cases = [
            (gemm.multiply, {"BIAS": True, "APART": False, "FLAT": False, "V": at_once, **sizes}),
            (gemm.multiply, {"BIAS": False, "APART": True, "FLAT": False, "V": at_once, **sizes}),
            (gemm.multiply, {"BIAS": True, "APART": True, "FLAT": True, "V": 1, **sizes}),
            (gemm.multiply, {"BIAS": False, "APART": False, "FLAT": True, "V": at_once, **sizes}),
            (gemm.weight_gradient, {"BIAS": True, "V": at_once, "G": at_once, **sizes}),
            (gemm.weight_gradient, {"BIAS": False, "V": 1, "G": 1, **sizes}),
            (gemm.lay, {"Q": 64, "C": 16}),
            (gemm.add_up, {"TILE": 1024}),
            (max_pool._pool, {"KH": 2, "KW": 3, "TILE": 1024}),
            (max_pool._pool_back, {"KH": 2, "KW": 3, "TILE": 1024}),
            (batch_norm._normalize, {"AFFINE": True, "B": 16, "A": 128}),
            (batch_norm._normalize_back, {"AFFINE": True, "B": 16, "A": 128}),
        ]
        some = cases if (capability, dtype) == (90, "*bf16") else cases[1:5:2]
        for kernel, chosen in some:
            types = dict(wanted(kernel, dtype)) | dict.fromkeys(chosen, "constexpr")
            made = compile(ASTSource(kernel, types, chosen), GPUTarget("cuda", capability, 32))
            assert "cubin" in made.asm
            backend = make_backend(GPUTarget("cuda", capability, 32))
            launch = create_function_from_signature(kernel.signature, kernel.params, backend)
            x = torch.zeros(32)
            given = {name: x if kind[0] == "*" else 0.5 if kind == "fp32" else 3
                     for name, kind in types.items() if kind != "constexpr"}
            bound, kinds_, options = launch(**given, **chosen, num_warps=8)
            assert options == {"num_warps": 8}, options
"""


@pytest.mark.slow
def test_the_kernels_compile_for_cards_that_are_not_here(tmp_path):
    """Down to machine code; the interpreter takes Python that the compiler does not, and names of
    arguments that Triton's code around a kernel does not."""
    environment = {**os.environ, "TRITON_INTERPRET": "0", "TRITON_CACHE_DIR": str(tmp_path)}
    ended = subprocess.run(
        [sys.executable, "-c", COMPILED], env=environment, capture_output=True, text=True
    )
    assert ended.returncode == 0, ended.stderr
