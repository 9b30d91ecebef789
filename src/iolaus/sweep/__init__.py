"""Optuna meets Hydra: the parts of the sweeper to come.

    grammar, parameter, declare, space   what is swept, from Hydra's override grammar
    storage, studies, ledger, records    where trials are kept, and their exact totals
    samplers, pruners                    what is tried next, and what is cut
    composition                          thousands of configs from a few compositions

Nothing calls them yet: the worker and the plugin, which put them behind `iolaus -m`, are to come.
"""
