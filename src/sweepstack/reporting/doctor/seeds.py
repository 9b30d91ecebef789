"""Do the best configurations differ by more than seed noise?"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from sweepstack.config.commands import shell
from sweepstack.reporting.doctor.command import SEEDS
from sweepstack.reporting.doctor.evidence import Evidence
from sweepstack.reporting.doctor.finding import Finding, count, short

LEVEL = 2.0
"""Standard errors of a difference below which two configurations are not told apart."""


def check(evidence: Evidence) -> Iterator[Finding]:
    """Whether the best is better than the next ones, or luckier.

    Source: the tuning playbook, "Determining whether to adopt a training pipeline change":
    variance between runs of the same settings must be known before a difference is believed.

    Rule: runs of one configuration are its seeds: of trials with training.seeds > 1, or trials that
    differ in their seed alone. s² is the mean of the variances of the best (top tenth, at least
    5), weighted by their degrees of freedom; two configurations with n and m runs are told apart if
    their means differ by more than 2 s √(1/n + 1/m) (a t test with pooled variance at about 5 %).
    Among many the best is also the luckiest, so that this is the least that can be asked. Fewer
    than 4 degrees of freedom, or one run each: unknown, a fact. Two or more not told apart from the
    best with fewer than 5 runs: a hint to give them more seeds; with 5 or more a fact: then choose
    by something else, such as size or speed.
    """
    done = evidence.configurations
    if evidence.goal is None or len(done) < 2:
        return
    more = shell(f"training.seeds={SEEDS}") if evidence.identity.get("config") else None
    head = evidence.best
    several = head[head["runs"] > 1]
    freedom = int((several["runs"] - 1).sum())
    if freedom < 4:
        text = (
            "it is unknown whether the best differ by more than seed noise: "
            f"{'most were' if freedom else 'each was'} trained with one seed"
        )
        yield Finding("seed-noise", "fact", text, more if len(done) >= 5 else None)
        return
    variance = float(((several["runs"] - 1) * several["std"] ** 2).sum()) / freedom
    runs = int(head["runs"].iloc[0])
    gap = head["score"].iloc[0] - done["score"].to_numpy()
    error = np.sqrt(variance * (1 / runs + 1 / done["runs"].to_numpy()))
    tied = int((gap[1:] <= LEVEL * error[1:]).sum())
    of = f"standard error {short(float(np.sqrt(variance / runs)))} over {count(runs, 'seed')}"
    if not tied:
        text = (
            f"the best of {count(len(done), 'configuration')} leads by more than seed noise ({of})"
        )
        yield Finding("seed-noise", "fact", text)
        return
    text = (
        f"the best {tied + 1} of {count(len(done), 'configuration')} do not differ by more than "
        f"seed noise ({of})"
    )
    if runs < SEEDS and tied < len(done) - 1:
        yield Finding("seed-noise", "hint", f"{text}; more seeds may tell them apart", more)
    else:
        yield Finding("seed-noise", "fact", text)
