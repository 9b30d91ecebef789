"""The core training function: a stream of specs in, a stream of results out.

A single run is a stream of one spec.
"""

from __future__ import annotations

import logging
import weakref
from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from sweepstack.config.errors import SweepstackError, one_line
from sweepstack.engine import executors
from sweepstack.engine.program import Program
from sweepstack.engine.runner import Broken, Runner, not_started
from sweepstack.engine.width import Widths
from sweepstack.training import device
from sweepstack.training.spec import Monitor, TrialResult, TrialSpec

log = logging.getLogger(__name__)


class Interrupted(SweepstackError):
    """A signal asked to stop, at `step`; the trials that have a folder are checkpointed."""

    def __init__(self, exit_code: int, step: int):
        super().__init__(f"interrupted at step {step}")
        self.exit_code, self.step = exit_code, step


def train(
    specs: Iterable[TrialSpec],
    monitor: Monitor | None = None,
    *,
    width: int | Widths = 1,
    together: int = 1,
    expected: Expected | None = None,
) -> Iterator[TrialResult]:
    """Train every spec, as many of them at a time as the width allows.

    Trials with an equal static part share a stack; those of several static parts that have been
    pulled advance in turn. A trial's numbers depend on its config, the kind of device and the
    precision, never on its slot, the width, its neighbours or a resume. A trial with a folder
    continues from the newest checkpoint that lies there.

    Args:
        specs: pulled lazily, whenever there is room for one.
        monitor: watches every evaluation; may prune.
        width: number of slots S, or how to find it.
        together: this many trials advance together even where stacks are narrower.
        expected: what the first trials are like; everything that they share is made ready before
            the first of them is pulled.

    Yields:
        One result per spec, in the order in which the trials end. A trial that fails (a loss that
        is not finite, a model that raises) yields a result with state "failed".

    Raises:
        Interrupted: the monitor reported a signal while trials were left.
        EnvironmentFault: a checkpoint could not be written.
        Exception: whatever the monitor raised.
    """
    widths = Widths(width) if isinstance(width, int) else width
    run = _Run(specs, monitor or Monitor(), widths, together)
    if expected is not None:
        run.prepare(expected)
    yield from run.results()


@dataclass(frozen=True)
class Expected:
    """About `count` trials with the static part of `spec` come next, which see the same batches if
    they are `in_order`."""

    spec: TrialSpec
    count: int
    in_order: bool


def _handed_on(results: list[TrialResult]) -> Iterator[TrialResult]:
    """Results; the best states of those that are kept then leave the device."""
    waiting = [weakref.ref(result.kept) for result in results if result.kept is not None]
    while results:
        yield results.pop(0)
    for state in filter(None, (each() for each in waiting)):
        state.settle()


class _Pull:
    """An iterator of specs that can be peeked at, and takes some back."""

    def __init__(self, specs: Iterable[TrialSpec]):
        self._specs = iter(specs)
        self.held: list[TrialSpec] = []

    def peek(self) -> TrialSpec | None:
        if not self.held:
            self.held += [spec for spec in [next(self._specs, None)] if spec is not None]
        return self.held[0] if self.held else None

    def next(self) -> TrialSpec:
        return self.held.pop(0)

    def put_back(self, specs: list[TrialSpec]) -> None:
        self.held[:0] = specs


@dataclass
class _Group:
    """Trials of a stack that raised; a full stack has `of`, hence their share of the device."""

    specs: list[TrialSpec]
    of: int


class _Run:
    """One call of `train`: its runners, and the trials that wait for them."""

    def __init__(
        self, specs: Iterable[TrialSpec], monitor: Monitor, widths: Widths, together: int
    ) -> None:
        self.pull, self.monitor, self.widths = _Pull(specs), monitor, widths
        self.together = together
        self.runners: list[Runner] = []
        self.suspects: list[_Group] = []  # in each of which one trial raised
        self.trying: Runner | None = None  # trains such a group
        self._full = 1  # trials of a full stack in place of `trying`
        self.crowded: list[TrialSpec] = []  # each ran out of memory beside others
        self.lone: Runner | None = None  # trains one of them alone
        self._last_width = 1
        self.idle: Runner | None = None  # whose trials ended together, for the next ones

    def prepare(self, expected: Expected) -> None:
        """Build the program, measure the width and capture a step; what fails here fails again
        where a trial needs it, and is said there."""
        try:
            with device.settings(expected.spec.config.training):
                program = Program.of(expected.spec)
                width = self.widths.of(program)
                runner = Runner(program, self.monitor, width)
                runner.prepare(expected.spec, expected.count, in_order=expected.in_order)
        except Exception as error:
            log.debug("nothing is prepared: %s", one_line(error))
        else:
            self._last_width = width
            self.runners.append(runner)

    def results(self) -> Iterator[TrialResult]:
        """Run until the stream has no more."""
        while True:
            yield from self._fill()
            if not self.runners and not self.suspects and not self.crowded:
                return
            yield from self._turns()

    def _turns(self) -> Iterator[TrialResult]:
        """Let each runner advance to its next evaluation. Which trial starts when depends on steps
        and not on how long they take: a seeded sampler is asked in the same order again, and
        refilled slots stay in step with the others. No reference to a runner outlives this: the
        memory of one that broke must be free before the next begins."""
        turns = deque(self.runners)
        while turns:
            runner = turns.popleft()
            evaluated = False
            while runner.live and runner in self.runners and not evaluated:
                yield from _handed_on(self._gathered(runner, runner.advance()))
                self._heed_signals()
                evaluated = runner.evaluated
        apart = (self.trying, self.lone)
        ended = [each for each in self.runners if not each.live and each not in apart]
        self.runners = [runner for runner in self.runners if runner.live]
        busy = self.runners or self.suspects or self.crowded
        self.idle = ended[-1] if ended and not busy else None
        self.trying = self.trying if self.trying in self.runners else None
        self.lone = self.lone if self.lone in self.runners else None

    def _heed_signals(self) -> None:
        code = self.monitor.interrupted()
        if code is None:
            return
        live = [slot for runner in self.runners for _, slot in runner.live]
        if live or self.suspects or self.crowded or self.pull.peek() is not None:
            for runner in self.runners:
                runner.checkpoint(due=False)
            raise Interrupted(code, max((slot.step for slot in live), default=0))

    def _gathered(self, runner: Runner, results: Iterator[TrialResult]) -> list[TrialResult]:
        """A runner's results, under its settings; it is taken apart if it breaks."""
        found: list[TrialResult] = []
        runner.alone = self.runners == [runner]
        try:
            with device.settings(runner.program.config.training):
                found.extend(results)
        except Broken as broken:
            self._take_apart(runner, broken)
        return found

    def _take_apart(self, runner: Runner, broken: Broken) -> None:
        """A step of several trials raised. They resume from their checkpoints or start again: in
        narrower stacks if memory ran out, else in two halves, which finds the faulty trial. A
        single trial for which memory ran out is tried again without neighbours."""
        self.runners.remove(runner)
        suspected, full = runner is self.trying, runner.limit
        if suspected:
            self.trying, full = None, self._full
        count, half = len(broken.specs), len(broken.specs) // 2
        if broken.memory and not half:
            number = broken.specs[0].number
            log.warning("trial %d: out of memory in the stack, training it alone", number)
            self.crowded += broken.specs
            self.together = max(1, min(self.together, sum(len(e.live) for e in self.runners)))
            return
        if broken.memory:
            log.warning(
                "out of memory with %d trials in the stack, continuing with %d", count, half
            )
            self.widths.lower(runner.program, half)
            self.together = min(self.together, half)
        if broken.memory and not suspected:
            self.pull.put_back(broken.specs)
        else:
            halves = (broken.specs[:half], broken.specs[half:])
            self.suspects[:0] = [_Group(specs, full) for specs in halves]

    # --- who comes in ----------------------------------------------------------------------------

    def _fill(self) -> Iterator[TrialResult]:
        if self.lone is not None:
            return
        while self.suspects and self.trying not in self.runners:
            group = self.suspects.pop(0)
            specs, self._full = group.specs, group.of
            self.trying = Runner(Program.of(specs[0]), self.monitor, len(specs))
            yield from self._admit(self.trying, specs)
        while self.crowded and not self.runners:
            yield from self._admit_alone(self.crowded.pop(0))
        if not self.crowded and self.lone not in self.runners:
            yield from self._pull_in()

    def _admit_alone(self, spec: TrialSpec) -> Iterator[TrialResult]:
        try:
            self.lone = Runner(Program.of(spec), self.monitor, 1)
        except (SweepstackError, RuntimeError) as error:
            yield not_started(spec, error)
        else:
            yield from self._admit(self.lone, [spec])

    def _pull_in(self) -> Iterator[TrialResult]:
        """Let trials of the stream in while there is room."""
        while True:
            said = 0
            if not self.pull.held:
                said = self._room()
                if said < 1:
                    return
                self.monitor.room(said)
            head = self.pull.peek()
            if head is None:
                return
            if self.idle is not None and self.idle.program.spec.static != head.static:
                self.idle = None  # its memory must be free before the next begins
            try:
                program = Program.of(head)
                with device.settings(head.config.training):
                    self._last_width = self.widths.of(program)
            except (SweepstackError, RuntimeError) as error:
                spec = self.pull.next()
                if self.runners and device.out_of_memory(error):
                    self.crowded.append(spec)
                    return
                yield not_started(spec, error)
                continue
            room = self._room()
            if room < 1 or self._waits(program, room):
                return
            if room > max(said, len(self.pull.held)):  # the width was not known before
                self.monitor.room(room - len(self.pull.held))
            yield from self._admit_next(program, room)

    def _waits(self, program: Program, room: int) -> bool:
        """Whether trials of another static part wait for more room: where steps are captured, a
        stack that begins with few is captured again when it grows."""
        few = 2 * room < self._last_width and executors.captures(program.device)
        return bool(self.runners) and few and self._open(program) is None

    def _open(self, program: Program) -> Runner | None:
        """A stack of this static part that has places left."""
        for runner in self.runners:
            most = min(self._last_width, runner.limit)
            open_to_all = runner is not self.trying and len(runner.live) < most
            if open_to_all and runner.program.spec.static == program.spec.static:
                return runner
        return None

    def _begun(self, program: Program) -> Runner:
        """A stack for this program: the one whose trials ended together, or a new one."""
        known, self.idle = self.idle, None
        if known and known.program is program and known.limit == self._last_width:
            return known
        return Runner(program, self.monitor, self._last_width)

    def _admit_next(self, program: Program, room: int) -> Iterator[TrialResult]:
        """Let up to `room` of the next trials into one stack: those with this static part."""
        static = program.spec.static
        runner = self._open(program) or self._begun(program)
        specs: list[TrialSpec] = []
        room = min(room, runner.limit - len(runner.live))
        while len(specs) < room and (spec := self.pull.peek()) and spec.static == static:
            specs.append(self.pull.next())
        yield from self._admit(runner, specs)

    def _admit(self, runner: Runner, specs: list[TrialSpec]) -> Iterator[TrialResult]:
        if runner not in self.runners:
            self.runners.append(runner)
        yield from self._gathered(runner, runner.admit(specs))
        if not runner.live and runner in self.runners:  # none of them could begin
            self.runners.remove(runner)

    def _load(self) -> float:
        """The share of the device in use or kept for suspects: a full stack takes all."""
        full = {id(self.trying): self._full}
        at_work = sum(len(e.live) / full.get(id(e), e.limit) for e in self.runners)
        return at_work + sum(len(group.specs) / group.of for group in self.suspects)

    def _room(self) -> int:
        """How many more trials may begin, with stacks as wide as the last."""
        live = sum(len(runner.live) for runner in self.runners)
        live += sum(len(group.specs) for group in self.suspects)
        return max(int((1 - self._load()) * self._last_width + 1e-9), self.together - live)
