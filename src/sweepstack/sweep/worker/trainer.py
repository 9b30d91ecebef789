"""Trials of sweepstack itself, trained by the engine as one stream of specs.

Claimed trials become specs, evaluations become reports, the pruner's decisions end trials, results
become outcomes. What is swept, before any trial exists, is in `training_app.py`; the same for other
Hydra applications in `application.py`.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hydra.errors import HydraException
from omegaconf.errors import OmegaConfBaseException

from sweepstack.config import schema, trust
from sweepstack.config.effect import effect
from sweepstack.config.errors import SweepstackError, masked, one_line
from sweepstack.config.schema import RunConfig
from sweepstack.config.space import points
from sweepstack.engine.width import MANY, Widths
from sweepstack.reporting.scoreboard import Live, Pace
from sweepstack.runs import seeds
from sweepstack.runs.logger import Logged, Run, run_of
from sweepstack.runs.seeds import Group
from sweepstack.study.attributes import DATA_HASH, EFFECT, EQUALS, PLANNED, PREFIX
from sweepstack.sweep import samplers
from sweepstack.sweep.plan import Plan
from sweepstack.sweep.worker import Asked, Outcome
from sweepstack.sweep.worker.duplicates import Original
from sweepstack.sweep.worker.trial_folder import BestModels, TrialFolder
from sweepstack.training.spec import Monitor, TrialResult, TrialSpec

if TYPE_CHECKING:
    from sweepstack.engine.program import Program
    from sweepstack.engine.train import Expected
    from sweepstack.sweep.worker.worker import Worker

MAX_ASKED = 16
"""Trials that an adaptive sampler is asked for at once, at most."""
MIN_STACK = 4
"""Fewer trials than this take less time one after the other."""
_REFUSED = (SweepstackError, HydraException, OmegaConfBaseException)
"""Errors of a trial that cannot be composed."""


@dataclass
class _Training:
    """A trial in training: its members, one for each seed, its folder, and its program once it has
    started."""

    asked: Asked
    group: Group
    folder: TrialFolder
    live: Live
    program: Program | None = None


class Trainer(Monitor):
    """Trains the trials of one worker and reports to its study.

    A trial of several seeds is trained as a stack of them, so that pruning acts on their mean.
    """

    def __init__(
        self, read: Callable[[Sequence[str]], RunConfig], plan: Plan, folder: Path, worker: Worker
    ) -> None:
        self.plan, self.folder, self.worker = plan, folder, worker
        self._read, self._configs = read, dict[int, RunConfig]()
        self._effects: dict[int, str] = {}
        self._best = BestModels(worker.study, worker.book.storage, plan.keep_models)
        self._training: dict[int, _Training] = {}
        self._pace, self._seeds = Pace(), 1
        self._alike = plan.alike
        self._logged: Logged | None = None

    def run(self, asked: Iterator[Asked]) -> Iterator[Outcome]:
        """Train trials until no more are asked; each ends in one outcome. Those that cannot be
        composed are reported before any other is asked for, or there might be no end of them.

        Raises:
            Interrupted: a signal asked to stop while trials were left; they are checkpointed.
            EnvironmentFault: the disk is full, the data are gone.
        """
        from sweepstack.engine.train import train
        from sweepstack.training.device import keep_memory

        keep_memory()
        specs, expected = self._specs(asked), self._expected()
        head = next(specs, None) if expected is None else expected.spec
        if head is None:
            return
        specs = specs if expected is not None else chain([head], specs)
        training, logged = head.config.training, self._logger(head)
        self._seeds = training.seeds
        widths = self._widths(training.width, training.seeds)
        results = train(specs, logged, width=widths, together=training.seeds, expected=expected)
        for result in results:
            logged.end(result)
            yield from self._ended(result)

    def _expected(self) -> Expected | None:
        """What the first trials are like, if all of the study are alike; asked once."""
        from sweepstack.engine.train import Expected

        config, self._alike = self._alike, None
        if config is None:
            return None
        total = self.worker.book.total
        count = MANY if total is None else self.worker.book.counts()["remaining"]
        if not count:
            return None
        trust.see_own_packages(config.trust)
        swept = {parameter.path for parameter in self.plan.space.parameters}
        in_order = swept.isdisjoint({"training.seed", "data.order_seed"})
        seeds = config.training.seeds
        return Expected(TrialSpec(config), count * seeds, in_order and seeds == 1)

    def _logger(self, spec: TrialSpec) -> Logged:
        """What logs the trials of this worker; the first one's config says where."""
        if self._logged is None:
            self._logged = Logged(self, spec.config.logger, self._run)
        return self._logged

    def _run(self, spec: TrialSpec, duplicate: Asked | None = None) -> Run:
        asked = duplicate or self._training[spec.number].asked
        fixed = self.plan.space.fixed
        return run_of(
            spec,
            asked.overrides,
            self.folder,
            study=self.plan.study,
            varied=[word for word in asked.overrides if word not in fixed],
            seeds=1 if duplicate else self._seeds,
            continues=self._replaced(asked),
        )

    def close(self) -> None:
        """Let loggers write what is left."""
        if self._logged is not None:
            self._logged.close(stopped=lambda: self.worker.stop.code is not None)

    def _widths(self, wanted: int | str, seeds: int) -> Widths:
        """How many trials are trained as one stack.

        An adaptive sampler learns from the trials that have ended: unless the user says, at most a
        tenth of all are asked at once, and how many is not measured, so that the same seed asks for
        the same trials again.
        """
        plan, file = self.plan, self.folder.parents[1] / "widths.json"
        if wanted != "auto":
            return Widths(wanted, file=file)
        if plan.grid or plan.sampler.name in samplers.INDEPENDENT:
            alike = points.most_alike(plan.space, plan.order) if plan.grid else plan.total
            share = MANY if alike is None else -(-alike // plan.n_jobs)
            return Widths("auto", seeds * max(share, 1), file=file)
        trials = 1 if plan.total is None else min(plan.total // 10, MAX_ASKED)
        most = seeds * max(trials, 1)
        return Widths(wanted, most if most >= MIN_STACK else 1, measures=False)

    def _specs(self, claimed: Iterable[Asked]) -> Iterator[TrialSpec]:
        for asked in claimed:
            try:
                run_config = self._config_of(asked)
                trust.see_own_packages(run_config.trust)
            except _REFUSED as error:
                self.worker.record(Outcome.failed(asked, one_line(error)))
                continue
            folder = self._folder_of(asked.number)
            spec = TrialSpec(run_config, number=asked.number, folder=folder.path)
            folder.begin(spec, asked.overrides, self._replaced(asked))
            members = seeds.members(spec)
            self._seeds = len(members)
            self._training[spec.number] = _Training(
                asked, Group(spec, len(members)), folder, Live(spec.number, 0, 1)
            )
            if self.plan.max_steps_total is not None:
                self._plan_steps(asked, spec)
            yield from members

    def _folder_of(self, number: int) -> TrialFolder:
        of = {"study": self.plan.study, "storage": masked(self.plan.storage or "")}
        return TrialFolder(self.folder / str(number), of)

    def _plan_steps(self, asked: Asked, spec: TrialSpec) -> None:
        """Record, for the other workers too, how many steps a trial may take."""
        with contextlib.suppress(SweepstackError):  # it is raised again when the trial begins
            steps = _program(spec).total_steps(spec) * self._seeds
            self.worker.planned[spec.number] = steps
            asked.trial.set_user_attr(PLANNED, steps)

    def _replaced(self, asked: Asked) -> list[int]:
        """Numbers of the trials that a trial replaces, the last one first."""
        return self.worker.book.line(asked.continues)

    def _ended(self, result: TrialResult) -> Iterator[Outcome]:
        training = self._training[result.spec.number]
        asked, group = training.asked, training.group
        self._report(asked, group.end(result))
        if result.state != "complete":
            self.worker.decisions.end(asked)  # the other seeds need not go on
        if group.is_over:
            del self._training[asked.number]
            self._pace.ended(training.live)
            outcome = self._outcome(training)
            feasible = all((c.violation(outcome.numbers) or 0) <= 0 for c in self.plan.constraints)
            keep_model = self._best.wants(outcome, feasible=feasible)
            training.folder.end(group, outcome, keep_model=keep_model)
            yield outcome

    def _outcome(self, training: _Training) -> Outcome:
        asked, group, program = training.asked, training.group, training.program
        results, spec = group.results, group.spec
        numbers = group.metrics() | {
            "num_parameters": results[0].num_parameters,
            "steps": sum(result.steps for result in results),
            "seconds": round(sum(result.seconds for result in results), 4),
            "samples_per_s": round(results[0].samples_per_s, 1),
        }
        attributes: dict[str, Any] = {
            **numbers,
            "best_step": max(result.best_step for result in results),
            "device": results[0].device,
            "seed": spec.config.training.seed,
            "config_hash": spec.config_hash,
            EFFECT: self._effects.pop(asked.number, None) or effect_on_data(spec.config),
        }
        if program is not None and results[0].device:  # else it never began
            if program.device.type == "cuda":
                attributes["gpu_seconds"] = numbers["seconds"]
            if fingerprint := program.data.fingerprint:
                attributes[DATA_HASH] = fingerprint
        if group.size > 1:
            values = [result.value for result in results]
            attributes |= {"seeds": group.size, "values": values, "std": seeds.spread(values)}
        if stopped := [result.stopped for result in results if result.stopped]:
            attributes["stopped"] = stopped[0]
        if group.error:
            attributes["error"] = group.error
        attributes = {key: _finite(value) for key, value in attributes.items()}
        objectives = tuple(float(numbers.get(n, math.nan)) for n in self.plan.objectives)
        trace = None
        if spec.folder is not None and any(result.trace for result in results):
            trace = spec.folder / "sweepstack.log"
        return Outcome(asked, group.state, objectives, attributes, numbers, trace)

    # --- duplicates ------------------------------------------------------------------------------

    @property
    def equal(self) -> Trainer:
        """What knows which trials do the same."""
        return self

    def effect_of(self, asked: Asked) -> str | None:
        """The effect of a trial; None where it cannot be composed."""
        try:
            if asked.number not in self._configs:
                self._configs[asked.number] = self._read(asked.overrides)
        except _REFUSED:
            return None
        found = self._effects[asked.number] = effect_on_data(self._configs[asked.number])
        return found

    def _config_of(self, asked: Asked) -> RunConfig:
        """The config of a trial, for the last time that it is asked for."""
        return self._configs.pop(asked.number, None) or self._read(asked.overrides)

    def outcome(self, asked: Asked, original: Original) -> Outcome:
        """Record a trial in its folder as equal to another, and say how it ended: with the other's
        attributes but for what is its own.

        Raises:
            EnvironmentFault: the disk is full or the folder cannot be made.
        """
        folder = self._folder_of(asked.number)
        self._effects.pop(asked.number, None)
        spec = TrialSpec(self._config_of(asked), number=asked.number, folder=folder.path)
        known = original.attributes
        attributes = {key: value for key, value in known.items() if not key.startswith(PREFIX)}
        attributes |= {"seed": spec.config.training.seed, "config_hash": spec.config_hash}
        attributes |= {"seconds": 0.0, EQUALS: original.number}
        numbers = {
            key: value
            for key, value in known.items()
            if isinstance(value, int | float) and not isinstance(value, bool)
        }
        values = tuple(original.values)
        outcome = Outcome(asked, original.state, values, attributes, numbers=numbers)
        folder.begin(spec, asked.overrides, self._replaced(asked))
        folder.equal(spec, outcome, original.number)
        metrics = {
            name: value
            for name, value in numbers.items()
            if name.startswith(("train_", "val_", "test_"))
        }
        logged, describe = self._logger(spec), partial(self._run, spec, asked)
        logged.duplicate(describe, original.state, metrics, original.number)
        return outcome

    # --- what the engine reports -----------------------------------------------------------------

    def room(self, slots: int) -> None:
        """Let as many trials be claimed at once as there is room for."""
        self.worker.room = max(1, slots // self._seeds)

    def started(
        self, spec: TrialSpec, step: int, total_steps: int, history: Sequence[Mapping[str, float]]
    ) -> None:
        """Report again what a resumed trial has reported before."""
        training, seed = self._training[spec.number], spec.config.training.seed
        training.live = Live(spec.number, step, total_steps)
        training.program = _program(spec)
        training.folder.log(f"step {step} of {total_steps}, seed {seed}")
        for row in history:
            self.report(spec, row)

    def stepped(self, steps: int, specs: Sequence[TrialSpec]) -> None:
        """Write what waits, and say how far the running trials are."""
        self.worker.write()
        for number in {spec.number for spec in specs}:
            live = self._training[number].live
            live.step = min(live.step + steps, live.total)
        self._pace.add(steps * len(specs), specs[0].config.batch.size)
        trials = [training.live for training in self._training.values()]
        self.worker.notify(self._pace.status(trials, self._memory(specs[0])))

    def _memory(self, spec: TrialSpec) -> int | None:
        """Bytes of its GPU that are allocated."""
        import torch

        program = self._training[spec.number].program
        if program is None or program.device.type != "cuda":
            return None
        return torch.cuda.memory_allocated(program.device)

    def report(self, spec: TrialSpec, row: Mapping[str, float]) -> None:
        """Note an evaluation; those of a stack are written together."""
        training = self._training[spec.number]
        training.folder.log(" ".join(f"{name} {value:.6g}" for name, value in row.items()))
        assert training.program is not None
        value = row[training.program.objective]  # the run's own, whatever the sweep optimizes
        means = training.group.observe(spec.config.training.seed, int(row["step"]), value)
        known = list(means)
        training.live.values += [value for _, value in known]
        self._report(training.asked, known)

    def _report(self, asked: Asked, means: Iterable[tuple[int, float]]) -> None:
        if len(self.plan.objectives) == 1:  # Optuna takes reports of a single objective only
            for step, value in means:
                self.worker.decisions.report(asked, step, value)

    def should_stop(self, spec: TrialSpec) -> bool:
        """What the pruner decides, asked once for all trials that have reported."""
        asked = self._training[spec.number].asked
        if not self.worker.decisions.prunes:  # nothing to decide: reports wait for the block's end
            return self.worker.decisions.is_over(asked)
        return self.worker.decisions.ends(asked)

    def interrupted(self) -> int | None:
        """The exit code of a signal."""
        return self.worker.stop.code


def effect_on_data(config: RunConfig) -> str:
    """What a trial does, and on which data where those are files of the user's, which may change
    before a sweep goes on."""
    from sweepstack import data

    found = effect(config)
    if isinstance(config.data, schema.Own):
        with contextlib.suppress(SweepstackError):  # training says what is wrong
            found += data.load(config.data, config.trust).fingerprint
    return found


def _program(spec: TrialSpec) -> Program:
    from sweepstack.engine.program import Program

    return Program.of(spec)


def _finite(value: Any) -> Any:
    """The value as JSON knows it: no NaN."""
    if isinstance(value, list):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
