"""Pandas and people: what studies found, as frames, tables, plots and a report.

    library   studies by name, opened for reading
    read      all trials of a study, fast
    frame     one row per trial, one column per swept key
    history   one row per evaluation
    tables    mean, std and n per cell; the best trials
    terminal  the table at the end of a sweep
    cli       the command iolaus-study, whose rooms are
        listing, overview, export   a line per study; one study; its table as a file
        doctor/, plots/, report/    what there is to say of a study; its pictures; one page of all
        dashboard   optuna-dashboard, with what decorate adds: notes, dashboard_rows
        rerun       a trial trained again: restore, recorded, compare, told
    published the names that a course grid was published with

Reads studies of iolaus and of any other program; imports neither the engine nor the sweeper, but
for `rerun`, which trains. Import the modules themselves, or use `iolaus.results` and its sisters:
pandas takes most of a second, so that this package loads nothing.
"""
