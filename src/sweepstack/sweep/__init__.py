"""Optuna meets Hydra: a sweep from the command line to its last trial.

sweep, plan, dry_run, launch         what is asked, and who does it
worker, own, other, trial            asking, running and telling trials
grammar, parameter, declare, space   what is swept, from Hydra's override grammar
points, constraints, settings        what is checked before
storage, studies, ledger, tally      where trials are kept, and their exact totals
records, live_trial, journal         their rows in the database
samplers, pruners                    what is tried next, and what is cut
order, twins, equal                  what is trained in which order, and what only once
composition                          thousands of configs from a few compositions
scoreboard, trial_folder, reporting  what people see
"""
