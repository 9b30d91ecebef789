"""optuna-dashboard with notes, report and the best models."""
