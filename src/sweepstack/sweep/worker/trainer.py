"""Trains the trials of one worker: asked ones become specs, results become outcomes.

The engine's monitor and Optuna's study meet here: evaluations become reports, the pruner's verdicts
end trials. Its sibling for other Hydra applications is `other.Caller`.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from hydra.errors import HydraException
from omegaconf.errors import OmegaConfBaseException

from sweepstack.config import trust
from sweepstack.config.effect import effect
from sweepstack.config.errors import SweepstackError, masked, one_line
from sweepstack.config.schema import RunConfig
from sweepstack.engine import seeds
from sweepstack.engine.seeds import Group
from sweepstack.engine.spec import Monitor, TrialResult, TrialSpec
from sweepstack.engine.width import MANY, Widths
from sweepstack.study.attributes import EFFECT, PLANNED
from sweepstack.sweep import samplers
from sweepstack.sweep.plan import Plan
from sweepstack.sweep.space import points
from sweepstack.sweep.worker.equal import Equal
from sweepstack.sweep.worker.models_kept import Kept
from sweepstack.sweep.worker.trial import Asked, Outcome, Verdicts
from sweepstack.sweep.worker.trial_folder import TrialFolder

MOST_ASKED = 16
"""Trials that a sampler which learns is asked for at once, at most."""

WORTH_STACKING = 4
"""Fewer trials than this take less time one after the other."""


class Trainer(Monitor):
    """Trains the trials of one worker and reports to its study.

    A trial of several seeds is trained as a stack of them, so that pruning acts on their mean.
    """

    def __init__(
        self,
        read: Callable[[Sequence[str]], RunConfig],
        plan: Plan,
        folder: Path,
        verdicts: Verdicts,
    ) -> None:
        self.plan, self.folder, self.verdicts = plan, folder, verdicts
        self.kept = Kept(verdicts.study, plan.keep_models)
        self.equal = Equal(read, self._place, self._line)
        self._groups: dict[int, tuple[Asked, Group, TrialFolder]] = {}
        self._newest, self._steps = (0, 0), 0
        self._members = 1

    def run(self, asked: Iterator[Asked]) -> Iterator[Outcome]:
        """Train trials until no more are asked; each ends in one outcome. Those that cannot be
        composed are told before any other is asked for, or there might be no end of them.

        Raises:
            Interrupted: a signal asked to stop while trials were left; they are checkpointed.
            EnvironmentFault: the disk is full, the data are gone.
        """
        from sweepstack.engine.device import keep_memory
        from sweepstack.engine.train import train

        keep_memory()
        first = next(asked, None)
        if first is None:
            return
        specs = self._specs(first, asked)
        head = next(specs, None)
        if head is not None:
            training = self._groups[head.number][1].spec.config.training
            widths = self._widths(training.width, training.seeds)
            stream = train(_chain(head, specs), self, width=widths, together=training.seeds)
            for result in stream:
                yield from self._ended(result)

    def _widths(self, wanted: int | str, seeds: int) -> Widths:
        """How many trials are trained as one. A sampler that learns, does so from the trials that
        have ended: unless the user says, no more than a tenth of all are asked at once, and how
        many is not measured, so that the same seed asks for the same trials again."""
        file, plan = self.folder.parents[1] / "widths.json", self.plan
        if wanted != "auto":
            return Widths(wanted)
        if plan.grid or plan.sampler.name in samplers.INDEPENDENT:
            alike = points.most_alike(plan.space, plan.order) if plan.grid else plan.total
            mine = MANY if alike is None else -(-alike // plan.n_jobs)
            return Widths("auto", seeds * max(mine, 1), file=file)
        trials = 1 if plan.total is None else min(plan.total // 10, MOST_ASKED)
        most = seeds * max(trials, 1)
        return Widths(wanted, most if most >= WORTH_STACKING else 1, measures=False)

    def _specs(self, first: Asked, rest: Iterator[Asked]) -> Iterator[TrialSpec]:
        for asked in _chain(first, rest):
            try:
                run_config = self.equal.config_of(asked)
            except (SweepstackError, HydraException, OmegaConfBaseException) as error:
                self.verdicts.tell(Outcome.failed(asked, one_line(error)))
                continue
            place = self._place(asked.number)
            spec = TrialSpec(run_config, number=asked.number, folder=place.path)
            place.begin(spec, asked.overrides, self._line(asked))
            try:
                trust.see_own_packages(run_config.trust)
            except SweepstackError as error:
                self.verdicts.tell(Outcome.failed(asked, one_line(error)))
                continue
            members = seeds.members(spec)
            self._members = len(members)
            self._groups[spec.number] = (asked, Group(spec, len(members)), place)
            if self.plan.max_steps_total is not None:
                self._plan_steps(asked, spec)
            yield from members

    def _place(self, number: int) -> TrialFolder:
        of = {"study": self.plan.study, "storage": masked(self.plan.storage or "")}
        return TrialFolder(self.folder / str(number), of)

    def _plan_steps(self, asked: Asked, spec: TrialSpec) -> None:
        """Say, to the other workers too, how many steps a trial may take."""
        from sweepstack.engine.program import Program

        with contextlib.suppress(SweepstackError):  # which is told when the trial is to begin
            steps = Program.of(spec).total_steps(spec) * self._members
            self.verdicts.planned[spec.number] = steps
            asked.trial.set_user_attr(PLANNED, steps)

    def _line(self, asked: Asked) -> list[int]:
        """Numbers of the trials that a trial replaces, the last one first."""
        return self.verdicts.book.line(asked.continues)

    def _ended(self, result: TrialResult) -> Iterator[Outcome]:
        asked, group, place = self._groups[result.spec.number]
        self._report(asked, group.end(result))
        if result.state != "complete":
            self.verdicts.condemn(asked)  # the other seeds need not go on
        if not group.is_over:
            return
        del self._groups[asked.number]
        outcome = self._outcome(asked, group)
        feasible = all((c.violation(outcome.numbers) or 0) <= 0 for c in self.plan.constraints)
        place.end(group, outcome, keep_model=self.kept.wants(outcome, feasible=feasible))
        yield outcome

    def _outcome(self, asked: Asked, group: Group) -> Outcome:
        results, training = group.results, group.spec.config.training
        metrics = group.metrics()
        numbers = {
            "num_parameters": results[0].num_parameters,
            "steps": sum(result.steps for result in results),
            "seconds": round(sum(result.seconds for result in results), 4),
            "samples_per_s": round(results[0].samples_per_s, 1),
        }
        attributes: dict[str, Any] = {
            **metrics,
            **numbers,
            "best_step": max(result.best_step for result in results),
            "device": results[0].device,
            "seed": training.seed,
            "config_hash": group.spec.config_hash,
            EFFECT: effect(group.spec.config),
        }
        if _is_on_gpu(group):
            attributes["gpu_seconds"] = numbers["seconds"]
        if group.size > 1:
            values = [result.value for result in results]
            attributes |= {"seeds": group.size, "values": values, "std": seeds.spread(values)}
        stopped = [result.stopped for result in results if result.stopped]
        attributes |= {"stopped": stopped[0]} if stopped else {}
        attributes |= {"error": group.error} if group.error else {}
        finite = {key: _finite(value) for key, value in attributes.items()}
        values_of = metrics | numbers
        objectives = tuple(float(values_of.get(n, math.nan)) for n in self.plan.objectives)
        trace = None
        if group.spec.folder is not None and any(result.trace for result in results):
            trace = group.spec.folder / "sweepstack.log"
        return Outcome(asked, group.state, objectives, finite, values_of, trace)

    # --- what the engine tells -------------------------------------------------------------------

    def room(self, slots: int) -> None:
        """Let as many trials be claimed at once as there is room for."""
        self.verdicts.room = max(1, -(-slots // self._members))

    def started(
        self, spec: TrialSpec, step: int, total_steps: int, history: Sequence[Mapping[str, float]]
    ) -> None:
        """Tell the study what a resumed trial has reported before."""
        self._newest, self._steps = (spec.number, total_steps), step
        place = self._groups[spec.number][2]
        place.log(f"step {step} of {total_steps}, seed {spec.config.training.seed}")
        for row in history:
            self.report(spec, row)

    def stepped(self, steps: int) -> None:
        """Write what waits, and say how far the running trials are."""
        self.verdicts.settle()
        self._steps += steps
        number, total = self._newest
        of = f"trial {number} step {min(self._steps, total)}/{total}"
        self.verdicts.notify(of if len(self._groups) == 1 else f"{len(self._groups)} trials train")

    def report(self, spec: TrialSpec, row: Mapping[str, float]) -> None:
        """Note an evaluation; the study learns of all of a stack's together."""
        asked, group, place = self._groups[spec.number]
        training = spec.config.training
        place.log(" ".join(f"{name} {value:.6g}" for name, value in row.items()))
        value = row[self._objective(row, spec)]
        self._report(asked, group.observe(training.seed, int(row["step"]), value))

    def _objective(self, row: Mapping[str, float], spec: TrialSpec) -> str:
        """The metric that is reported step by step: the run's own objective."""
        from sweepstack.engine.program import Program

        return Program.of(spec).objective

    def _report(self, asked: Asked, means: Iterable[tuple[int, float]]) -> None:
        if len(self.plan.objectives) == 1:  # Optuna takes reports of a single objective only
            for step, value in means:
                self.verdicts.report(asked, step, value)

    def should_stop(self, spec: TrialSpec) -> bool:
        """What the pruner says, asked once for all trials that have reported."""
        asked = self._groups[spec.number][0]
        if not self.verdicts.prunes:  # nothing to judge: reports wait for the block's end
            return self.verdicts.is_condemned(asked)
        return self.verdicts.ends(asked)

    def interrupted(self) -> int | None:
        """The exit code of a signal."""
        return self.verdicts.stop.code


def _is_on_gpu(group: Group) -> bool:
    from sweepstack.engine.program import Program

    if not group.results[0].device:  # it never began
        return False
    return Program.of(group.spec).device.type == "cuda"


def _chain(first: Any, rest: Iterator[Any]) -> Iterator[Any]:
    yield first
    yield from rest


def _finite(value: Any) -> Any:
    """The value as JSON knows it: no NaN."""
    if isinstance(value, list):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
