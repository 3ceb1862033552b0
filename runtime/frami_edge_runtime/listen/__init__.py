"""What `frami-edge-listen` and `frami-edge listen` share: from a source to a display."""

from frami_edge_runtime.listen.options import ListenOptions
from frami_edge_runtime.listen.program import run

__all__ = ["ListenOptions", "run"]
