"""Why something is not sent."""

from __future__ import annotations

from frami_edge.errors import FramiEdgeError


class PushError(FramiEdgeError):
    """A folder that must not be sent, or a hub that does not take it."""
