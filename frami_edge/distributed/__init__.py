"""Several processes, one result: what a run needs to know of the others, and how rows are shared.

Without torchrun every function here is the identity, and a run is what it was.
"""

from __future__ import annotations

from frami_edge.distributed.batch_norm import share_batch_norms, shared_layer_moments
from frami_edge.distributed.rows import Rows, sum_gradients
from frami_edge.distributed.world import World, any_process, broadcast, rank_device, world

__all__ = [
    "Rows",
    "World",
    "any_process",
    "broadcast",
    "rank_device",
    "share_batch_norms",
    "shared_layer_moments",
    "sum_gradients",
    "world",
]
