"""What people see of a study: tables, plots, doctor, report, dashboard, rerun."""
