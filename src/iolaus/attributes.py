"""Names of the user attributes by which studies and trials say what is known of them.

Of a study:

    iolaus.identity     what makes a sweep the same question: space, objectives, config (JSON)
    iolaus.sweep        how it was first asked: arguments, hydra, sampler, pruner, total
    iolaus.folder       the folder of its trials, in outputs/studies
    iolaus.keep_models  the most models that any command asked to keep
    iolaus.environment.KEY  versions, git commit and device of a worker (`environment.py`)

Of a trial:

    iolaus.worker       the process that runs it (`sweep.processes.this_process`)
    iolaus.environment  KEY of where it was trained
    iolaus.overrides    what Hydra was told, of a trial that ended
    iolaus.point        its grid point as JSON; passed on to its replacement
    iolaus.enqueued     the point that a person asked to be tried first, as JSON
    iolaus.lost         why it ended without a result of its own
    iolaus.retried      true on a FAIL that another trial replaces, so that it is not finished
    iolaus.retry_of     on a replacement: number of the first trial of the line
    iolaus.continues    on a replacement: number of the replaced trial, whose folder it takes over
    iolaus.retries      on a replacement: how often in a row the line was lost without progress
    iolaus.progress     on a replacement: last step reported and steps checkpointed by the line
    iolaus.planned      most steps it may take, where a sweep has a budget of steps
    iolaus.effect       what it does (`effect.py`), of a trial that is or was to be trained
    equals              number of the trial of the same effect whose numbers it has

Written by `sweep`, read by `results`. Imports nothing.
"""

PREFIX = "iolaus."

IDENTITY = "iolaus.identity"
SWEEP = "iolaus.sweep"
FOLDER = "iolaus.folder"
KEEP_MODELS = "iolaus.keep_models"

WORKER = "iolaus.worker"
ENVIRONMENT = "iolaus.environment"
OVERRIDES = "iolaus.overrides"
POINT = "iolaus.point"
ENQUEUED = "iolaus.enqueued"
LOST = "iolaus.lost"
RETRIED = "iolaus.retried"
RETRY_OF = "iolaus.retry_of"
CONTINUES = "iolaus.continues"
RETRIES = "iolaus.retries"
PROGRESS = "iolaus.progress"
PLANNED = "iolaus.planned"
EFFECT = "iolaus.effect"
EQUALS = "equals"
