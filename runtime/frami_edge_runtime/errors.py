"""The one family of errors that a user may see; each says what happened and what to do next."""

from __future__ import annotations


class FramiEdgeError(Exception):
    """A known error: shown as one sentence and its fix, never as a traceback.

    Args:
        message: What happened, naming the file or key.
        fix: What the user can do about it; shown on a line of its own.
    """

    exit_code = 1

    def __init__(self, message: str, *, fix: str = "") -> None:
        """Keep both sentences apart, so that a terminal can show the fix on its own line."""
        super().__init__(message)
        self.message = message
        self.fix = fix

    def __str__(self) -> str:
        """Both sentences, for callers who only print the exception."""
        return f"{self.message} {self.fix}".strip()

    def __reduce__(self) -> tuple[object, ...]:
        """Keep ``fix`` across processes: the default would drop it."""
        return _rebuild, (type(self), self.message, self.fix)


def _rebuild(kind: type[FramiEdgeError], message: str, fix: str) -> FramiEdgeError:
    return kind(message, fix=fix)


class MelSpecError(FramiEdgeError):
    """A mel front end that cannot be computed or cannot stream."""


class AudioError(FramiEdgeError):
    """Samples that cannot be used: wrong shape, dtype or rate, or not finite."""


class ModelFileError(FramiEdgeError):
    """A model file that is missing, damaged or of another schema."""


class EngineError(ModelFileError):
    """A TensorRT engine that is missing, damaged, built for another machine, or failed to run."""


class BackendError(FramiEdgeError):
    """A backend that is not installed, has no device here, or was asked for what it cannot do."""


class StreamError(FramiEdgeError):
    """A stream that was asked for something impossible, or a saved state that does not fit it."""
