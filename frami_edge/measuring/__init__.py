"""How fast a model is here: its graph, its whole stream, its start, its memory."""

from __future__ import annotations

from frami_edge.measuring.fresh import Start, measure_start
from frami_edge.measuring.graphs import graph_latency
from frami_edge.measuring.streams import StreamLoad, measure_streams
from frami_edge.measuring.subject import Subject, open_subject

__all__ = [
    "Start",
    "StreamLoad",
    "Subject",
    "graph_latency",
    "measure_start",
    "measure_streams",
    "open_subject",
]
