"""Every error this application raises on purpose, so that a caller can catch one root class."""


class EdgeFlError(Exception):
    """Root of the application's errors; its message says what, where, and what would be right."""


class ConfigError(EdgeFlError):
    """A configuration key or value that cannot work."""


class DataError(EdgeFlError):
    """Data that is missing, damaged, or does not fit the run."""


class RunDirectoryError(EdgeFlError):
    """A run directory that cannot be created, read or resumed."""


class WorkerError(EdgeFlError):
    """The distillation server's process failed for good."""


DIVERGED_WORDS = "diverged: "  # with which Flower's word of a run's end is told from others


class DivergedError(EdgeFlError):
    """A model that is not finite any more: nothing that comes after can mean anything."""

    def __init__(self, what: str) -> None:
        super().__init__(f"{DIVERGED_WORDS}{what}")


class ExportError(EdgeFlError):
    """A model that could not be exported, or whose export does not compute the same."""
