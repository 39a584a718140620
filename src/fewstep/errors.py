"""Errors. One parent; every message names what was wrong and ends in what to do."""


class FewstepError(Exception):
    """Parent of every error that this package raises on purpose."""


class ArgumentError(FewstepError, ValueError):
    """An argument cannot be used; raised before any work is done."""


class TimesError(ArgumentError):
    """Times that do not go strictly from noisy to clean, or leave the network's range."""


class TableauError(ArgumentError):
    """A table that is not strictly lower triangular, not finite, or not consistent; names row and column."""


class SeedsError(ArgumentError):
    """Calibration, selection and report seeds were mixed."""


class DenoiserError(FewstepError):
    """A network returned something unusable; names the step, the time and the seeds.

    `time` is the model time of the call and `rows` are the samples of the batch at fault, where they are known, so that
    whoever knows the step and the seeds can add them. `sane` says that the states which the network was given were of
    a usual size, so that the fault is its own and not the sampler's.
    """

    def __init__(
        self, message: str, *, time: float | None = None, rows: tuple[int, ...] = (), sane: bool = False
    ) -> None:
        super().__init__(message)
        self.time = time
        self.rows = rows
        self.sane = sane


class NotATable(FewstepError):
    """A foreign sampler is not linear in the network's outputs; carries the largest measured defect and its row."""

    def __init__(self, message: str, *, defect: float = float("nan"), row: int | None = None) -> None:
        super().__init__(message)
        self.defect = defect
        self.row = row


class LossyExport(FewstepError):
    """The target of an export cannot hold the whole table; lists what would be lost."""


class FileFormatError(FewstepError, ValueError):
    """A file is damaged, of an unknown kind, or newer than this version."""


class StudyError(FewstepError):
    """A study cannot go on: another process writes it, the disk is full, its workers or its objective fail."""
