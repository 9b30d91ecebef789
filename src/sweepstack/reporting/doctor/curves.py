"""Learning curves: still improving, saturated early, overfitting, noisy late, and what to do then.

Which trials have which shape is in `shapes.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

from sweepstack.config.commands import shell
from sweepstack.reporting.doctor.chance import Mask
from sweepstack.reporting.doctor.evidence import Evidence
from sweepstack.reporting.doctor.finding import Finding, count
from sweepstack.reporting.doctor.shapes import FEWEST_STEPS, Curves, Losses

Act = Callable[[Evidence], str | None]

FEWEST = 3
"""Curves of the best below which nothing is judged."""


def check(evidence: Evidence) -> Iterator[Finding]:
    """The shape of the learning curves of the best, with counts over all complete trials.

    Source: the tuning playbook, "Examining the training curves": problematic overfitting, high
    step-to-step variance late in training, whether trials still improve at the end, whether they
    saturated long before it. Judged are complete trials that took all of their steps, with 5
    evaluations or more; at least 3 of them must be among the best (top tenth, at least 5), and at
    least half of these must show what is named. The rules of each are at `shapes.Curves`
    and `shapes.Losses`.
    """
    found = Curves.of(evidence)
    if found is None:
        return
    if len(found.values) < FEWEST or found.best.sum() < FEWEST:
        if len(evidence.complete) >= FEWEST:
            yield _unknown(evidence, found)
        return
    improving = found.improving
    yield from _said(evidence, found, "improving", improving, found.improving_text, _longer)
    if 2 * (improving & found.best).sum() < found.best.sum():
        yield from _said(
            evidence, found, "saturated", found.saturated, found.saturated_text, _shorter, share=0.8
        )
    loss = Losses.of(evidence, found)
    if loss is not None:
        overfitting = loss.overfitting
        text = f"overfitting: {loss.name} rises while the training loss still falls"
        yield from _said(evidence, found, "overfitting", overfitting, text, _regularized)
    text = "noisy late: in the second half an evaluation decides more than the settings do"
    yield from _said(evidence, found, "noisy", found.noisy, text, _decayed)


def _unknown(evidence: Evidence, found: Curves) -> Finding:
    """Why nothing can be said."""
    if found.evaluated < FEWEST:
        why, command = f"fewer than {FEWEST_STEPS} evaluations per trial", _oftener(evidence)
    else:
        why, command = f"fewer than {FEWEST} of the best trials ran to the end", None
        why += " (others stopped early, or had fewer steps to take)"
    return Finding("curves", "fact", f"learning curves cannot be judged: {why}", command)


def _said(
    evidence: Evidence,
    found: Curves,
    kind: str,
    which: Mask,
    text: str,
    act: Act,
    share: float = 0.5,
) -> Iterator[Finding]:
    n, best = int((which & found.best).sum()), int(found.best.sum())
    if n < FEWEST or n < share * best:
        return
    of = f"{n} of the {best} best trials ({int(which.sum()):,} of {count(len(which), 'trial')})"
    yield Finding(kind, "hint", f"{of} are {text}", act(evidence))


def _oftener(evidence: Evidence) -> str | None:
    """Ten evaluations."""
    steps = evidence.config("training.max_steps")
    if not isinstance(steps, int) or steps < 10 or "training.eval_every" in evidence.keys:
        return None
    return shell(f"training.eval_every={steps // 10}")


def _longer(evidence: Evidence) -> str | None:
    """Twice the steps, or epochs."""
    return _budget(evidence, 2.0)


def _shorter(evidence: Evidence) -> str | None:
    """Half of them."""
    return _budget(evidence, 0.5)


def _budget(evidence: Evidence, factor: float) -> str | None:
    for key in ("training.max_steps", "training.max_epochs"):
        if key in evidence.keys:
            return None  # it is swept, and an edge if it is too small
        value = evidence.config(key)
        if isinstance(value, int) and not isinstance(value, bool) and value > 1:
            return shell(f"{key}={max(1, int(value * factor))}")
    return None


def _regularized(evidence: Evidence) -> str | None:
    """Dropout or weight decay to choose from, whichever is not yet there."""
    for key, values in (
        ("regularization.dropout", "0.0,0.2,0.4"),
        ("regularization.weight_decay", "0.0,0.0001,0.001"),
    ):
        if key not in evidence.keys and evidence.config(key) == 0:
            return shell(f"{key}={values}")
    return None


def _decayed(evidence: Evidence) -> str | None:
    """A cosine, where the learning rate is constant."""
    constant = evidence.config("schedule.name") == "constant"
    swept = any(key.partition(".")[0] == "schedule" for key in evidence.keys)
    return shell("schedule=cosine") if constant and not swept else None
