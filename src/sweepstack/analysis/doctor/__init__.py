"""The doctor: what a tuning playbook asks a person to check of a sweep, computed.

    finding     what is said, how sure it is, and the statistics of the checks
    failures    how many failed, and do the best lie next to them? are probed trials chaotic?
    settings    are the best at an edge, do they differ by more than seed noise, what did nothing?
    curves      are the best still improving, saturated early, overfitting, noisy late; pruning
    overrides   what widens or fixes a swept key, in the sweep's own grammar
    command     the command that acts on the findings

The questions are those of the Deep Learning Tuning Playbook (Godbole, Dahl, Gilmer, Shallue and
Nado 2023, "Extracting insight from experiment results"); each check's docstring says its rule, its
thresholds and its statistics. A healthy study has facts only, and where there are too few trials
the doctor says that something is unknown.
"""

from __future__ import annotations

from sweepstack.analysis.doctor import curves, failures, settings
from sweepstack.analysis.doctor.command import next_command
from sweepstack.analysis.doctor.finding import LEVELS, Finding
from sweepstack.study.view import StudyView

__all__ = ["Finding", "examine", "next_command"]


def examine(view: StudyView) -> list[Finding]:
    """What there is to say of a study, the most important first.

    The texts are plain and hold text of the study (names, values, errors) without its control
    characters; whoever puts them into HTML escapes them.
    """
    checks = (
        *(failures.check, settings.check_edges, curves.check_shapes, curves.check_pruning),
        *(settings.check_seeds, settings.check_idle, failures.check_chaos),
    )
    found = [finding for check in checks for finding in check(view)]
    return sorted(found, key=lambda finding: LEVELS.index(finding.level))
