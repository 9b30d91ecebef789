"""Triton's update of a stack: the written-out rule's numbers, or it is not used.

Without a GPU in Triton's interpreter; whether a card runs it as well, the probe asks on that card.
"""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
import torch
from engine_support import assert_same, by_number, varied
from support import make_spec

from sweepstack.engine import step as steps
from sweepstack.engine.program import Program
from sweepstack.engine.step import Batch, Step
from sweepstack.engine.train import train
from sweepstack.training import fused

pytest.importorskip("triton", reason="this torch comes without Triton")

from sweepstack.engine import update

# numpy's, in the interpreter: numbers that are not finite are meant.
pytestmark = pytest.mark.filterwarnings("ignore:.* encountered in:RuntimeWarning")

PLACE = "cuda" if torch.cuda.is_available() else "cpu"
MODEL = ("data=digits", "data.subset=100", "model.hidden=[21]", f"training.device={PLACE}")
"""Parameters of 1344, 21, 210 and 10 numbers: no multiples of a tile."""
KINDS = {
    "plain": (),
    "all": (
        *("regularization.l1=0.01", "regularization.clip_norm=0.5", "training.ema_decay=0.5"),
        *("regularization.clip_value=0.05", "regularization.weight_decay=0.1"),
    ),
    "unfreeze": (
        *("model.freeze=backbone", "training.unfreeze_at=2", "optimizer.backbone_lr_factor=0.5"),
        "regularization.clip_norm=0.5",
    ),
}
OPTIMIZERS = {
    "sgd": ("optimizer=sgd", "optimizer.momentum=0.9", "optimizer.nesterov=true"),
    "dampened": ("optimizer=sgd", "optimizer.momentum=0.9", "optimizer.dampening=0.5"),
    "adam": ("optimizer=adam",),
    "adamw": ("optimizer=adamw",),
    "rmsprop": ("optimizer=rmsprop", "optimizer.momentum=0.5"),
}
EMPTY, BROKEN = 3, 1
"""A slot without a trial, and one whose gradients are not finite."""


@pytest.fixture(autouse=True)
def used(monkeypatch):
    """The kernel is used wherever it agrees, on a CPU as well, and nothing else is."""
    monkeypatch.setattr(steps, "TRITON", {PLACE})
    monkeypatch.setattr(update._Probe, "is_faster", lambda self: True)
    monkeypatch.setattr(update, "_refusals", {})
    monkeypatch.setattr(update, "_PROBED", 1)
    monkeypatch.setattr(fused, "works", lambda name: False)


def stack_of(program, width):
    """Slots of unequal numbers; one of four or more is empty."""
    base = program.config
    specs = [
        varied(
            base,
            n,
            optimizer={"lr": 0.1 / (1 + n)},
            regularization={
                "weight_decay": base.regularization.weight_decay * n,
                "clip_norm": base.regularization.clip_norm and 0.5 + n,
            },
            training={"seed": n},
        )
        for n in range(width)
    ]
    stack = program.stack(width)
    for slot, spec in enumerate(specs):
        if slot != EMPTY:
            stack.insert([slot], [program.initial(spec)], [program.numbers(spec)])
    return stack


def pairs(mine, other):
    yield "params", mine.params, other.params
    for kind in ("moments", "averages"):
        for name, bank in getattr(mine, kind).items():
            if name != "buffers":
                yield name, bank, getattr(other, kind)[name]


@pytest.mark.parametrize(
    ("optimizer", "kind", "width"),
    [
        *((optimizer, kind, 4) for optimizer in OPTIMIZERS for kind in KINDS),
        *((optimizer, "all", 1) for optimizer in OPTIMIZERS),
    ],
)
def test_steps_equal_the_written_out_rule(optimizer, kind, width):
    program = Program.of(make_spec(*MODEL, *OPTIMIZERS[optimizer], *KINDS[kind]))
    step, plain = Step(program), Step(program)
    plain.kernel = lambda stack: None
    mine, other = stack_of(program, width), stack_of(program, width)
    assert step.kernel(mine) is not None
    if program.rule.decays:  # where g ≈ -λθ and v ≈ 0, g/√v is nothing but rounding, either way
        for stack in (mine, other):
            for name in {"second", "square"} & stack.moments.keys():
                stack.moments[name].storage.fill_(0.01)
    generator = torch.Generator().manual_seed(0)
    for number in range(1, 4):
        grads = [0.1 * torch.randn(g.shape, generator=generator) for g in mine.params.packed]
        if width > 1 and number == 2:
            grads[0][BROKEN, 0, :3] = torch.tensor([float("nan"), float("inf"), -float("inf")])
        grads = [grad.to(PLACE) for grad in grads]
        lr = torch.full((width,), 0.1 / number, dtype=torch.float64, device=PLACE)
        if width > 1:
            lr[EMPTY] = 0
        at = torch.full((width,), number, device=PLACE)
        batch = Batch(*[torch.empty(0)] * 2, lr, at, {"at": at - 1})
        step.update(mine, [grad.clone() for grad in grads], batch)
        plain.regularize(grads, other.params.packed, other.strengths, at - 1)
        plain.update(other, grads, batch)
        for name, one, two in pairs(mine, other):
            assert update.close(one, two), (number, name)
    moved = other.params.packed[0] - stack_of(program, width).params.packed[0]
    assert moved.nan_to_num().abs().max() > 1e-3


def trials(*words):
    return [
        varied(
            make_spec(
                *MODEL, "model.hidden=[5]", *words, "training.max_steps=4", "training.eval_every=2"
            ).config,
            n,
            optimizer={"lr": 0.01 / (1 + n)},
            training={"seed": n, "max_steps": (4, 6, 2)[n % 3]},
        )
        for n in range(5)
    ]


@pytest.fixture
def launched(monkeypatch):
    """The widths of the stacks that the kernel moved, beside those of probes."""
    widths = []
    original = update.Update.__call__

    def spy(self, stack, grads, numbers):
        widths.append(stack.width)
        original(self, stack, grads, numbers)

    monkeypatch.setattr(update.Update, "__call__", spy)
    return widths


@pytest.mark.parametrize("words", [("optimizer=adamw", *KINDS["all"]), ("optimizer=sgd",)])
def test_a_trial_is_itself_at_every_width(monkeypatch, launched, words):
    specs = trials("batch.size=8", *words)
    with monkeypatch.context() as without:
        without.setattr(steps, "TRITON", set())
        expected = by_number(train(specs))
    assert not launched
    for width in (1, 2, 3, 5):
        assert_same(by_number(train(specs, width=width)), expected)
    assert {1, 2, 3, 5} <= set(launched)


def test_the_comparison_can_fail(monkeypatch):
    """A kernel that reads another slot's numbers is found by the probe and by the contract."""
    specs = trials("batch.size=8", "optimizer=adam")[:2]
    expected = by_number(train(specs))
    original = update.Update.__call__

    def rolled(self, stack, grads, numbers):
        original(self, stack, grads, numbers.roll(1, -1).contiguous())

    monkeypatch.setattr(update.Update, "__call__", rolled)
    assert_same(by_number(train(specs, width=2)), expected)  # the probe has found it
    monkeypatch.setattr(update.Update, "refusal", lambda self, one_row: None)
    update._refusals.clear()
    with pytest.raises(AssertionError):
        assert_same(by_number(train(specs, width=2)), expected)


def test_tiles_that_begin_at_four_numbers_are_read_by_fours(monkeypatch):
    """Every number is in one tile, and what lies on 16 bytes in a tile in units of four."""
    program = Program.of(make_spec(*MODEL, "model.hidden=[21,8]", "optimizer=adam"))
    monkeypatch.setattr(update, "TILE", 64)
    for one_row in (False, True):
        seen = {1: [], 4: []}
        for _, unit, table in update._tables(program, one_row):
            for which, group, *places in table.tolist():
                begin, size, start, shift = (unit * place for place in places)
                assert group == 0
                assert (which, shift) == (0, begin) if one_row else shift == 0
                seen[unit] += range(begin + start, begin + min(size, start + 64))
        assert sorted(seen[1] + seen[4]) == list(range(program.num_parameters))
        # 1344, 21, 168 (begins at 1365), 8, 80 and 10 numbers
        assert len(seen[4]) == 1344


FAULTS = ["other numbers", "no faster", "raises", "no memory", "not installed"]


@pytest.mark.parametrize("fault", FAULTS)
def test_a_kernel_that_fails_the_probe_is_not_used(monkeypatch, caplog, fault):
    program = Program.of(make_spec(*MODEL, "optimizer=adam"))
    original = update.Update._launch
    if fault == "other numbers":

        def wrong(self, stack, grads, numbers, **more):
            original(self, stack, grads, numbers * 1.0001, **more)

        monkeypatch.setattr(update.Update, "_launch", wrong)
    if fault == "no faster":
        monkeypatch.setattr(update._Probe, "is_faster", lambda self: False)
    if fault in ("raises", "no memory"):

        def raising(self, *given, **more):
            if fault == "no memory":
                raise torch.OutOfMemoryError("CUDA out of memory")
            raise RuntimeError("PTX was compiled with an unsupported toolchain\nmore")

        monkeypatch.setattr(update.Update, "_launch", raising)
    if fault == "not installed":
        monkeypatch.setitem(sys.modules, "sweepstack.engine.update", None)
    with caplog.at_level("INFO"):
        steps_taken = [Step(program).kernel(program.stack(2)) for _ in range(2)]
    assert steps_taken == [None, None]
    lines = [record.message for record in caplog.records if "Triton" in record.message]
    assert len(lines) == (2 if fault in ("no memory", "not installed") else 1)
    assert bool(update._refusals) == (fault not in ("no memory", "not installed"))
    (level,) = {record.levelname for record in caplog.records if "Triton" in record.message}
    assert (level == "INFO") == (fault in ("no faster", "not installed"))
    reason = {"raises": "PTX was compiled", "not installed": "updates run without Triton"}
    assert reason.get(fault, fault) in lines[0]
    assert "\n" not in lines[0]


def test_a_program_that_the_kernel_does_not_take_runs_as_before():
    for words in (
        ("optimizer=lion",),
        ("optimizer=muon",),
        ("optimizer=adam", "training.compile=true"),
    ):
        program = Program.of(make_spec(*MODEL, *words))
        assert Step(program).kernel(program.stack(2)) is None
    assert not update._refusals


COMPILED = """
import torch
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource, compile, make_backend
from triton.runtime.jit import create_function_from_signature
from sweepstack.training.update_kernel import moved
f = "*fp32"
for capability in (80, 90):
    for number, rule in enumerate(("sgd", "adam", "rmsprop")):
        chosen = {"RULE": rule, "DECAY": number, "L1": True, "BOUND": True, "HELD": True}
        chosen |= {"NORM": 2 - number, "AVERAGE": True, "ROWS": 10, "TILE": 1024, "UNIT": 4}
        types = {"weights": f, "grads": (f,) * 8, "first": f, "second": f, "mean": f}
        types |= {"tiles": "*i64", "numbers": "*fp64", "scale": f, "squares": f, "slots": "i32"}
        types |= dict.fromkeys(chosen, "constexpr")
        source = ASTSource(moved, types, chosen)
        made = compile(source, GPUTarget("cuda", capability, 32), {"enable_fp_fusion": False})
        assert "cubin" in made.asm
x, table = torch.zeros(32), torch.zeros(6, dtype=torch.int64)
given = [x, (x,) * 8, x, x, x, table, table.double(), x, x, 4]
backend = make_backend(GPUTarget("cuda", 90, 32))
launch = create_function_from_signature(moved.signature, moved.params, backend)
bound, kinds, options = launch(*given, **chosen, enable_fp_fusion=False)
assert [kind for kind, _ in kinds][:3] == ["*fp32", ("*fp32",) * 8, "*fp32"], kinds
assert options == {"enable_fp_fusion": False}
"""


@pytest.mark.slow
def test_the_kernel_compiles_for_cards_that_are_not_here(tmp_path):
    """Down to machine code; the interpreter takes Python that the compiler does not, and names of
    arguments that Triton's code around a kernel does not."""
    environment = {**os.environ, "TRITON_INTERPRET": "0", "TRITON_CACHE_DIR": str(tmp_path)}
    ended = subprocess.run(
        [sys.executable, "-c", COMPILED], env=environment, capture_output=True, text=True
    )
    assert ended.returncode == 0, ended.stderr
