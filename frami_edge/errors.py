"""The known errors of the trainer, in one family with those of the runtime."""

from __future__ import annotations

from frami_edge_runtime.errors import AudioError as AudioError
from frami_edge_runtime.errors import FramiEdgeError as FramiEdgeError
from frami_edge_runtime.errors import MelSpecError as MelSpecError
from frami_edge_runtime.errors import ModelFileError as ModelFileError
from frami_edge_runtime.errors import OutputError as OutputError


class ConfigError(FramiEdgeError):
    """A config file, preset name or `--set` value that cannot be used."""


class DataError(FramiEdgeError):
    """A data set that is missing, incomplete or not in its official layout."""


class IncompleteSetError(DataError):
    """A data set with fewer or more clips than its authors published."""


class UnusableClipError(AudioError):
    """One audio file that cannot be used; `message` is the reason, for the manifest."""


class TeacherError(FramiEdgeError):
    """A teacher that cannot be inverted or distilled, with the reason."""


class CheckpointError(FramiEdgeError):
    """A checkpoint that is missing, damaged or belongs to something else."""


class BankError(FramiEdgeError):
    """A synthetic bank that is missing, damaged or made by another teacher."""


class RunError(FramiEdgeError):
    """A run folder that is in use, belongs to another run or cannot be resumed."""


class GateFailed(FramiEdgeError):  # noqa: N818 - a verdict on a model, not a fault of the program
    """A check ran and its result is below the bar."""

    exit_code = 3


class Terminated(KeyboardInterrupt):
    """SIGTERM, which ends a run as Ctrl-C does: finished work stays whole."""
