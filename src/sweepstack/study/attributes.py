"""Names of the user attributes by which studies and trials say what is known of them.

Of a study:

    sweepstack.identity     what makes a sweep the same question: space, objectives, config (JSON)
    sweepstack.sweep        how it was last asked: arguments, hydra, sampler, pruner, total,
                            settings (of `hydra.sweeper`), deadline (seconds since 1970)
    sweepstack.folder       the folder of its trials, in outputs/studies
    sweepstack.keep_models  the most models that any command asked to keep
    sweepstack.heartbeat.WORKER  seconds since 1970 of a worker's last heartbeat, where the storage
                            has no table for it
    sweepstack.artifacts    where its files are for all machines: `storage.artifacts`, place and key
    sweepstack.unfinished   true while it is being copied, in a storage without tables
    sweepstack.workers.WORKER  a worker's entry in the register (`book.register`)
    sweepstack.again        how often a sweep let failed trials of the study wait again
    sweepstack.stop         the last time a person asked all workers to stop, as text
    sweepstack.environment.KEY  versions, git commit and device of a worker (`runs.folder`)

Of a trial:

    sweepstack.worker       the process that runs it (`sweep.book.processes`)
    sweepstack.environment  KEY of where it was trained
    sweepstack.overrides    the overrides of a trial that ended
    sweepstack.point        its grid point as JSON; passed on to its replacement
    sweepstack.enqueued     the point that a person asked to be tried first, as JSON
    sweepstack.lost         why it ended without a result of its own
    sweepstack.retried      true on a FAIL that another trial replaces, so that it is not finished
    sweepstack.retry_of     on a replacement: number of the first trial of the line
    sweepstack.continues    on a replacement: the replaced trial, whose folder it takes over
    sweepstack.retries      on a replacement: how often in a row the line was lost without progress
    sweepstack.progress     on a replacement: last step reported and steps checkpointed by the line
    sweepstack.planned      most steps it may take, where a sweep has a budget of steps
    sweepstack.effect       its effect (`config.effect`), of a trial that is or was to be trained
    sweepstack.data         SHA-256 of its data, where they come from files of the user's
    sweepstack.begun.WORKER  true, a system attribute: a worker of a server's study that began it
    equals              number of the trial of the same effect whose numbers it has

Written by `sweep`, read by `study` and `reporting`. Imports nothing.
"""

from optuna.trial import FrozenTrial, TrialState

PREFIX = "sweepstack."

IDENTITY = "sweepstack.identity"
SWEEP = "sweepstack.sweep"
FOLDER = "sweepstack.folder"
HEARTBEAT = "sweepstack.heartbeat"
WORKERS = "sweepstack.workers"
STOP = "sweepstack.stop"
AGAIN = "sweepstack.again"
KEEP_MODELS = "sweepstack.keep_models"
ARTIFACTS = "sweepstack.artifacts"
UNFINISHED = "sweepstack.unfinished"

WORKER = "sweepstack.worker"
BEGUN = "sweepstack.begun"
ENVIRONMENT = "sweepstack.environment"
OVERRIDES = "sweepstack.overrides"
POINT = "sweepstack.point"
ENQUEUED = "sweepstack.enqueued"
LOST = "sweepstack.lost"
RETRIED = "sweepstack.retried"
RETRY_OF = "sweepstack.retry_of"
CONTINUES = "sweepstack.continues"
RETRIES = "sweepstack.retries"
PROGRESS = "sweepstack.progress"
PLANNED = "sweepstack.planned"
EFFECT = "sweepstack.effect"
DATA_HASH = "sweepstack.data"
EQUALS = "equals"


def is_retried(trial: FrozenTrial) -> bool:
    """Whether another trial ran in its place, so that it does not count."""
    return trial.state == TrialState.FAIL and trial.user_attrs.get(RETRIED) is True
