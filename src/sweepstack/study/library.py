"""Old names of `view`, until every reader uses it."""

from sweepstack.study.view import StudyView as OpenStudy
from sweepstack.study.view import open_study, place

__all__ = ["OpenStudy", "open_study", "place"]
