"""A stack's convolutions run in the way that is measured to be fastest and agrees with vmap's.

What the rules do besides: pools as maxima of views, autocast where vmap hides from it.
"""

from __future__ import annotations

import json
import sys
from contextlib import contextmanager, nullcontext
from typing import ClassVar

import pytest
import torch
from engine_support import Same, by_number, varied
from support import make_spec
from torch import nn
from torch.func import vmap
from torch.nn import functional as F

from sweepstack.engine import width
from sweepstack.engine.executors import recorded
from sweepstack.engine.program import Program
from sweepstack.engine.train import train
from sweepstack.engine.width import Widths
from sweepstack.models import autotune, convolution
from sweepstack.models.autotune import Chooser, Layer, Plan, Rules
from sweepstack.models.convolution import Geometry

SMALL = ("data=digits", "data.subset=100", "batch.size=8", "training.max_steps=6")
CONVNET = (*SMALL, "model=convnet", "model.width=2", "model.hidden=[8]", "training.eval_every=3")
RESNET = (*SMALL, "model=resnet", "model.width=2", "training.eval_every=3")
KEPT = {"1 2": ("loop", "product", "grouped")}


class Seen(nn.Module):
    """Notes the types of what is computed, in a model that has no convolutions of pictures."""

    types: ClassVar[list] = []

    def __init__(self):
        super().__init__()
        self.narrow = nn.Conv1d(8, 4, kernel_size=3)
        self.wide = nn.ConvTranspose1d(4, 8, 3)
        self.last = nn.Linear(64, 10)

    def forward(self, x):
        narrow = self.narrow(x.view(-1, 8, 8))
        wide = self.wide(narrow)
        found = F.scaled_dot_product_attention(wide, wide, wide)
        if torch.is_autocast_enabled("cpu"):
            self.types.extend(each.dtype for each in (narrow, wide, found))
        return self.last(found.flatten(1))


@pytest.mark.filterwarnings("ignore:There is a performance drop")
@pytest.mark.parametrize("width", [1, 2])
def test_a_stack_runs_in_bf16_on_a_cpu_as_a_trial_alone_does(width):
    words = ("model=custom", "model._target_=test_autotune.Seen", "trust=[test_autotune]")
    specs = trials((*SMALL, "training.eval_every=3", "training.precision=bf16", *words), width)
    types = sys.modules["test_autotune"].Seen.types
    types.clear()
    assert [result.state for result in train(specs, width=width)] == ["complete"] * width
    assert set(types) == {torch.bfloat16}


@pytest.mark.parametrize("function", [F.conv2d, F.conv3d, F.conv_transpose2d])
def test_autocast_reaches_convolutions_that_have_no_plan(function):
    axes = 3 if function is F.conv3d else 2
    x, weight = (torch.randn(2, 3, 3, *[5] * axes) for _ in range(2))
    with torch.autocast("cpu", torch.bfloat16), Rules(None):
        assert vmap(function)(x, weight).dtype == torch.bfloat16
        assert vmap(function)(x.double(), weight.double()).dtype == torch.float64


def attended(x, into, bias, out):
    more = None, None, False, 0.0, out, None
    return F.multi_head_attention_forward(x, x, x, 4, 2, into, bias, *more)[0]


PRODUCTS = {
    "linear": (F.linear, (5, 4), (6, 4), (6,)),
    "linear without bias": (F.linear, (2, 5, 4), (6, 4)),
    "bilinear": (F.bilinear, (5, 4), (5, 3), (6, 4, 3), (6,)),
    "matmul": (torch.matmul, (5, 4), (4, 6)),
    "bmm": (torch.bmm, (2, 5, 4), (2, 4, 6)),
    "einsum": (lambda a, b: torch.einsum("bi,ij->bj", a, b), (5, 4), (4, 6)),
    "addmm": (torch.addmm, (5, 6), (5, 4), (4, 6)),
    "Tensor.addmm": (lambda a, b, c: a.addmm(b, c), (5, 6), (5, 4), (4, 6)),
    "baddbmm": (torch.baddbmm, (2, 5, 6), (2, 5, 4), (2, 4, 6)),
    "addbmm": (torch.addbmm, (5, 6), (2, 5, 4), (2, 4, 6)),
    "vecdot": (torch.linalg.vecdot, (5, 4), (5, 4)),
    "prelu": (F.prelu, (2, 3, 4), (3,)),
    "attention": (attended, (5, 2, 4), (12, 4), (12,), (4, 4)),
}
"""What autocast may run in bf16, and the shapes of what it is given; bilinear stays in float32."""


@pytest.mark.filterwarnings("ignore:There is a performance drop")
@pytest.mark.parametrize("name", PRODUCTS)
@pytest.mark.parametrize("place", ["cpu", "cuda"])
def test_a_stack_has_the_type_that_autocast_gives_a_trial_alone(place, name):
    if place == "cuda" and not torch.cuda.is_available():
        pytest.skip("there is no CUDA GPU here")
    function, *shapes = PRODUCTS[name]
    drawn = torch.Generator().manual_seed(0)
    given = [torch.randn(2, *shape, generator=drawn).to(place) for shape in shapes]
    with torch.autocast(place, torch.bfloat16):
        alone = torch.stack([function(*row) for row in zip(*given, strict=True)])
        with Rules(None):
            stack = vmap(function)(*given)
    assert stack.dtype == alone.dtype
    torch.testing.assert_close(stack, alone, rtol=0.05, atol=0.05)


# --- pools ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(3, 4, 8, 8), (2, 3, 7, 9), (3, 8, 8)])
@pytest.mark.parametrize("given", [(2,), (3,), ((2, 3),), (2, 1), (3, 3, 1), (2, 2, 0, 2)])
def test_pools_give_torchs_numbers(shape, given):
    x = torch.randn(shape, generator=torch.Generator().manual_seed(0)).relu()
    x.view(-1)[3] = torch.nan
    with torch.no_grad(), Rules(None):
        found = F.max_pool2d(x, *given)
    torch.testing.assert_close(found, F.max_pool2d(x, *given), rtol=0, atol=0, equal_nan=True)


def test_a_pool_that_does_not_overlap_is_the_maximum_of_views(monkeypatch):
    x = torch.randn(2, 3, 8, 8)
    expected = F.max_pool2d(x, 2)
    monkeypatch.setattr(F, "max_pool2d", lambda *_: 1 / 0)
    with torch.no_grad(), pytest.raises(ZeroDivisionError), Rules(None):
        torch.max_pool2d(x, 3, 2)
    with torch.no_grad(), Rules(None):
        assert torch.equal(torch.max_pool2d(x, 2), expected)


# --- a stack's steps ------------------------------------------------------------------------------


@pytest.fixture
def measured_here(monkeypatch):
    """Plans are measured on this CPU, for programs that have none yet."""
    monkeypatch.setattr(autotune, "MEASURED_ON", ("cpu", "cuda"))
    for words in (CONVNET, RESNET):
        program = Program.of(make_spec(*words))
        program.plans.clear()
        program.unplanned.clear()
        recorded._recorders.pop(program, None)
    yield
    for words in (CONVNET, RESNET):
        program = Program.of(make_spec(*words))
        program.plans.clear()
        recorded._recorders.pop(program, None)


def trials(words, count=5):
    base = make_spec(*words).config
    return [
        varied(base, n, optimizer={"lr": 0.01 / (1 + n)}, training={"seed": n, "max_steps": 6 + n})
        for n in range(count)
    ]


@pytest.mark.parametrize(
    ("words", "way", "last"),
    [(CONVNET, "product", True), (CONVNET, "loop", False), (RESNET, "mixed", True)],
    ids=["convnet products", "convnet loop", "resnet mixed"],
)
def test_a_trial_in_a_stack_equals_the_trial_alone(measured_here, monkeypatch, words, way, last):
    """At widths 2, 3 and 5, recorded; a wrong gradient differs by more (see the next test)."""
    monkeypatch.setattr(Chooser, "chosen", lambda *_: Plan(last, Same(way)))
    expected = by_number(train(trials(words), width=1))
    for wide in (2, 3, 5):
        found = by_number(train(trials(words), width=Widths(wide)))
        for number, alone in expected.items():
            for one, other in zip(found[number].history, alone.history, strict=True):
                assert one["val_loss"] == pytest.approx(other["val_loss"], rel=1e-3)
                assert one["train_loss"] == pytest.approx(other["train_loss"], rel=1e-3)
    recorders = recorded._recorders[Program.of(make_spec(*words))]
    assert any(recorder.recording is not None for recorder in recorders.values())
    assert all(recorder.reason is None for recorder in recorders.values())


def wrong(*given):
    return convolution._loop(*given) * 1.01


def test_a_way_with_other_numbers_is_not_used(measured_here, monkeypatch, caplog):
    monkeypatch.setitem(convolution.FORWARD, "loop", wrong)
    monkeypatch.setattr(Chooser, "_fastest", lambda *_: ("loop", "loop", "loop"))
    monkeypatch.setattr(autotune, "WORTH", 1e9)
    program = Program.of(make_spec(*CONVNET))
    with caplog.at_level("INFO"):
        Widths(3).of(program)
    assert program.plans == {3: None}
    assert "is not used: it differs from vmap's by" in caplog.text


@pytest.mark.parametrize(
    ("weight", "small", "bias", "agrees"),
    [(1, 1, 1, True), (1, 1, -1, True), (1.01, 1, 1, False), (1, 0, 1, False)],
)
def test_a_gradient_of_rounding_alone_refuses_no_plan(weight, small, bias, agrees):
    """As of a bias before a batch norm; another small gradient does."""
    slow = [torch.ones(2, 9), torch.full((2, 9), 1e-4), torch.full((2, 9), 1e-8)]
    found = [weight * slow[0], small * slow[1], bias * slow[2]]
    chooser = Chooser(lambda rules: [[torch.ones(2)], found, []], torch.device("cpu"), 1e-3)
    assert chooser._agrees(Plan(True, KEPT), [[torch.ones(2)], slow, []]) == agrees


@pytest.mark.parametrize("number", [0, 1])
def test_statistics_of_batch_norms_are_compared_too(measured_here, monkeypatch, caplog, number):
    """A trial is evaluated by them, its steps do not show them."""
    program = Program.of(make_spec(*RESNET))
    stepper = width._Stepper(program, 2)
    chooser = Chooser(stepper.tried, program.device, autotune.TOLERANCE["fp32"])
    plan, right = Plan(False, KEPT), autotune._normalized
    slow = chooser.step(Rules(None))
    assert [len(kind) for kind in slow] == [1, len(program.sizes), 2 * len(program.batch_norms)]
    assert chooser._agrees(plan, slow)

    def wrong(plan, x, mean, var, *more):
        apart = mean.clone(), var.clone()  # the gradients need those that it has seen
        y = right(plan, x, *apart, *more)
        for place, (mine, other) in enumerate(zip((mean, var), apart, strict=True)):
            mine.copy_(other + 1e-3 * (place == number))
        return y

    monkeypatch.setattr(autotune, "_normalized", wrong)
    with caplog.at_level("INFO"):
        assert not chooser._agrees(plan, slow)
    assert "it differs from vmap's by" in caplog.text


@pytest.mark.parametrize("worth", [0.0, 1e9])
def test_a_plan_is_used_where_it_gains(measured_here, monkeypatch, worth):
    def took(run, place):
        return 2.0 if run.args[0].given.plan is None else 1.0

    monkeypatch.setattr(autotune, "WORTH", worth)
    monkeypatch.setattr(autotune, "_seconds", took)
    monkeypatch.setattr(Chooser, "_fastest", lambda *_: ("loop", "product", "product"))
    program = Program.of(make_spec(*CONVNET))
    Widths(3).of(program)
    assert (program.plans[3] is None) == (worth == 0)
    assert program.plan(2) == program.plans[3]
    assert program.plan(1) is None
    assert program.plan(4) is None


def test_the_fastest_way_of_each_pass_is_found(monkeypatch):
    """Groups cannot be products; a way that raises is left out."""
    times = {"grouped": 3.0, "loop": 2.0, "product": 1.0}
    monkeypatch.setattr(autotune, "_seconds", lambda run, place: (run(), times[run.args[0]])[1])
    chooser = Chooser(lambda rules: [], torch.device("cpu"), 1e-3)
    for groups, best in ((1, "product"), (2, "loop")):
        geometry = Geometry((1, 1), (1, 1), (1, 1), groups)
        shapes = (2, 3, 4, 5, 5), (2, 4, 4 // groups, 3, 3)
        assert set(chooser._fastest(Layer(*shapes, torch.float32, geometry), True)) == {best}


def test_a_capture_that_fails_leaves_the_stream_as_it_was(monkeypatch):
    streams = []

    @contextmanager
    def graph(*_given, **_named):
        yield
        raise RuntimeError("CUDA error: operation not permitted")

    made_up = {
        **{"synchronize": lambda _: None, "device": lambda _: nullcontext(), "graph": graph},
        **{"CUDAGraph": object, "current_stream": lambda _: "here", "set_stream": streams.append},
    }
    for name, value in made_up.items():
        monkeypatch.setattr(torch.cuda, name, value)
    assert autotune._ready(raising_not, torch.device("cuda")) is raising_not
    assert streams == ["here"]


@pytest.mark.parametrize("plan", [Plan(True, KEPT), None])
def test_a_plan_is_kept_with_the_width(measured_here, monkeypatch, tmp_path, plan):
    file, program = tmp_path / "widths.json", Program.of(make_spec(*CONVNET))
    calls = []
    monkeypatch.setattr(Chooser, "chosen", lambda self, kept: kept or (calls.append(1), plan)[1])
    odd = {"ways": {"1 2": ["odd", "loop", "loop"]}, "last": True}
    for number, damage in enumerate((None, None, odd, [], {}, {"ways": 3}), 1):
        if damage is not None:
            (name,) = json.loads(file.read_text())
            file.write_text(json.dumps({name: damage}))
        program.plans.clear()
        assert Widths(3, file=file).of(program) == 3
        assert program.plans[3] == plan
        assert len(calls) == max(1, number - 1)  # at first, and where the record is none
        assert list(json.loads(file.read_text()).values()) == [autotune.record(plan)]


@pytest.mark.parametrize("fault", ["other numbers", "raises"])
def test_a_kept_plan_has_to_agree_here_too(measured_here, monkeypatch, tmp_path, fault):
    """Another version may have measured it, or somebody has written the file."""
    file, program = tmp_path / "widths.json", Program.of(make_spec(*CONVNET))
    with monkeypatch.context() as before:
        before.setattr(autotune, "WORTH", 1e9)
        before.setattr(Chooser, "_fastest", lambda *_: ("loop", "loop", "loop"))
        before.setattr(autotune, "_seconds", lambda run, _: float(not run.args[0].given.plan))
        Widths(3, file=file).of(program)
    kept = program.plans.pop(3)
    assert kept is not None
    monkeypatch.setattr(autotune, "WORTH", 0.0)  # what is measured anew is vmap's own way
    Widths(3, file=file).of(program)
    assert program.plans.pop(3) == kept
    monkeypatch.setitem(convolution.FORWARD, "loop", wrong if fault == "other numbers" else raising)
    Widths(3, file=file).of(program)
    assert program.plans == {3: None}
    assert list(json.loads(file.read_text()).values()) == [autotune.record(None)]


@pytest.mark.parametrize("error", [torch.OutOfMemoryError("CUDA out of memory"), ValueError("odd")])
def test_a_measurement_that_fails_is_not_kept(measured_here, monkeypatch, tmp_path, error):
    """Nor does it fail trials: memory may come free, and the model may raise in that step alone."""

    def failing(*_):
        raise error

    file, program = tmp_path / "widths.json", Program.of(make_spec(*CONVNET))
    with monkeypatch.context() as full:
        full.setattr(width, "why_not_stacked", lambda _: None)
        full.setattr(width, "_Stepper", failing)
        widths = Widths(3, file=file)
        assert [widths.of(program) for _ in range(2)] == [3, 3]
    assert program.plans == {3: None}
    assert not file.exists()


def test_gradients_that_are_not_finite_are_no_measurement(measured_here, monkeypatch, tmp_path):
    """Another trial's may be: nothing is kept for the next sweep."""
    file, program = tmp_path / "widths.json", Program.of(make_spec(*CONVNET))
    lost = [[torch.tensor(torch.nan)]]
    tried = width._Stepper.tried
    monkeypatch.setattr(width._Stepper, "tried", lambda *given: tried(*given) + lost)
    Widths(3, file=file).of(program)
    assert program.plans == {3: None}
    assert not file.exists()


def raising_not():
    pass


def raising(*_):
    raise NotImplementedError("patches of groups")


def test_nothing_is_measured_where_numbers_must_be_equal(measured_here):
    program = Program.of(make_spec(*CONVNET, "training.deterministic=true"))
    assert Widths(3).of(program) == 1
    assert program.plans == {}


def test_a_cpu_keeps_vmaps_way():
    program = Program.of(make_spec(*CONVNET))
    Widths(3).of(program)
    assert program.plans == {}
