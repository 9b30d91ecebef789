"""sweepstack with Optuna's public API alone, for tests that start processes."""

from sweepstack.__main__ import main
from sweepstack.sweep import studies

studies.bulk_problem = lambda: "tables that are used"  # type: ignore[assignment]

if __name__ == "__main__":
    main()
