"""Errors that prunetune raises on purpose; every one carries a message meant for a person."""


class PrunetuneError(Exception):
    """Root of all errors raised by prunetune.

    The message is one line: what is wrong, what was received, what is allowed, what to do.
    The command line prints it and exits with status 2.
    """


class ConfigError(PrunetuneError):
    """A pruning config, study spec or command-line value is not valid."""


class UnsupportedModelError(PrunetuneError):
    """The model, or a feature of it, cannot be pruned; the message names the reason."""


class DataError(PrunetuneError):
    """A calibration source cannot be read or holds a sample that cannot be used."""


class StudyError(PrunetuneError):
    """A study cannot be created, resumed or exported."""
