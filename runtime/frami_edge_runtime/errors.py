"""The errors that a user may see: each names what happened and what to do about it."""

from __future__ import annotations


class FramiEdgeError(Exception):
    """A known error: shown as one sentence and its fix, never as a traceback.

    Args:
        message: What happened, naming the file or key.
        fix: What the user can do about it; shown on a line of its own.
    """

    exit_code = 1

    def __init__(self, message: str, *, fix: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.fix = fix

    def __str__(self) -> str:
        return f"{self.message} {self.fix}".strip()


class MelSpecError(FramiEdgeError):
    """A mel front end that cannot be computed or cannot stream."""


class AudioError(FramiEdgeError):
    """Samples that cannot be used: wrong shape, dtype or rate, or not finite."""


class ModelFileError(FramiEdgeError):
    """A model file that is missing, damaged or of another schema."""


class EngineError(ModelFileError):
    """A TensorRT engine that is missing, damaged, built for another machine, or failed to run."""


class BackendError(FramiEdgeError):
    """A backend that is unknown, not installed, has no device here, or cannot run the model."""


class OutputError(FramiEdgeError):
    """A file or folder for results that cannot be written."""


class StreamError(FramiEdgeError):
    """An impossible request to a stream, or a saved state that does not fit it."""
