"""Sending a finished export or run to a model hub: what is sent, what never is."""

from frami_edge.hub.errors import PushError
from frami_edge.hub.plan import Item, LeftOut, Plan, make_plan

__all__ = ["Item", "LeftOut", "Plan", "PushError", "make_plan"]
