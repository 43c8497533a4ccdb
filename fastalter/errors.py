"""One exception family.

Every message is one line that says what was wrong, where (file, key, module) and what to do about it. The verbs print
that line and exit with status 2; a library user catches `FastalterError` or one of its kinds.
"""


class FastalterError(Exception):
    """Base of every error this package raises on purpose."""


class CheckpointError(FastalterError):
    """A checkpoint file is missing, damaged, unsafe, or does not fit the model."""


class ModelError(FastalterError):
    """A model cannot be built, recognised, or split into branches."""


class DataError(FastalterError):
    """A dataset, frame or batch is missing something or holds values that cannot be used."""


class ScoringError(FastalterError):
    """A scoring run cannot start, or produced numbers that are not finite."""


class MaskError(FastalterError):
    """A ratio, a mask or a score file does not fit what it is applied to."""


class TrainingError(FastalterError):
    """A training run cannot start, or went wrong."""


class BackendError(FastalterError):
    """An implementation of an op was asked for that is not there."""


class ExportError(FastalterError):
    """A network cannot be exported, or what was exported computes something else."""
