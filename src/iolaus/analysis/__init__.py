"""Pandas and people: what studies found, as frames, tables, plots and a report.

    library   studies by name, opened for reading
    read      all trials of a study, fast
    frame     one row per trial, one column per swept key
    history   one row per evaluation
    tables    mean, std and n per cell; the best trials
    terminal  the table at the end of a sweep
    listing, cli   the command iolaus-study

Reads studies of iolaus and of any other program; imports neither the engine nor the sweeper, but
for `rerun`, which trains. Import the modules themselves, or use `iolaus.results` and its sisters:
pandas takes most of a second, so that this package loads nothing.
"""
