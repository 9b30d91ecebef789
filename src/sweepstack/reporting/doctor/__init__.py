"""The doctor: what a tuning playbook asks a person to check of a sweep, computed.

    finding.py      what is said, and how sure it is
    evidence.py     the study as the checks read it: configurations, the best, curves
    chance.py       the few statistics that the checks use
    edges.py        are the best trials near an edge of the space?
    failures.py     how many failed, and do the best lie next to them?
    curves.py       are the best still improving, saturated early, overfitting, noisy late?
    shapes.py       which learning curves are
    seeds.py        do the best differ by more than seed noise?
    idle.py         which parameters did nothing?
    pruning.py      what pruning saved, and whether it was too early
    overrides.py    what widens or fixes a swept key, in the sweep's own grammar
    command.py      the command that acts on the findings

The questions are those of the Deep Learning Tuning Playbook (Godbole, Dahl, Gilmer, Shallue and
Nado 2023, "Extracting insight from experiment results"); each check's docstring says its rule, its
thresholds and its statistics. A healthy study has facts only, and where there are too few trials
it is said that something is unknown.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from sweepstack.reporting.doctor.finding import Finding, plain

if TYPE_CHECKING:
    from sweepstack.study.library import OpenStudy

__all__ = ["Finding", "examine", "next_command", "plain"]


def examine(opened: OpenStudy) -> list[Finding]:
    """What there is to say of a study, the most important first.

    The texts are plain and hold text of the study (names, values, errors) without its control
    characters; whoever puts them into HTML escapes them.
    """
    from sweepstack.reporting.doctor import curves, edges, failures, idle, pruning, seeds
    from sweepstack.reporting.doctor.evidence import Evidence
    from sweepstack.reporting.doctor.finding import LEVELS

    evidence = Evidence(opened)
    checks = (failures, edges, curves, pruning, seeds, idle)
    found = [finding for check in checks for finding in check.check(evidence)]
    return sorted(found, key=lambda finding: LEVELS.index(finding.level))


def next_command(opened: OpenStudy, findings: list[Finding]) -> str | None:
    """One line for a shell that acts on the findings, the most important first: problems, seed
    noise that is unknown or hides which is the best, then other hints. None where there is nothing
    to do, or where it is not known how the study was made.

    Other values, more steps or seeds are another question, to which the sweeper gives a study of
    its own: an unnamed one finds a name from its arguments, a named one gets NAME_2.
    """
    from sweepstack.reporting.doctor import command

    return command.propose(opened, findings)
