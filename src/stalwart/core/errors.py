"""The errors stalwart raises on purpose: each says what was wrong, where, and what to do."""


class StalwartError(Exception):
    """Base of every deliberate error; the command line prints its message and exits with ``exit_code``."""

    exit_code = 1


class UsageError(StalwartError, ValueError):
    """An impossible option, an unknown name or key: the call itself is wrong."""

    exit_code = 2


class InputError(StalwartError, ValueError):
    """Data that cannot be used: NaN, a value out of range, a wrong shape, a label that does not exist."""


class FileError(StalwartError, OSError):
    """A file or folder that is missing, corrupt, truncated, tampered with or cannot be written."""


class BrokenPromiseError(StalwartError, RuntimeError):
    """A result that broke its own contract, such as an adversarial point outside its threat set: always a bug."""


class TrainingError(StalwartError, RuntimeError):
    """Training that cannot go on, such as a loss that is not finite."""


class RunsFailedError(StalwartError, RuntimeError):
    """Runs of a sweep that failed, while the others were finished."""
