"""Pandas and people: what a study found, as a frame and as a table on the terminal.

    frame    one row per trial, one column per swept key
    tables   mean, std and n per cell
    terminal the table at the end of a sweep

Reads studies of iolaus and of any other program; imports neither the engine nor the sweeper. Import
the modules themselves: pandas takes most of a second, so that this package loads nothing.
"""
