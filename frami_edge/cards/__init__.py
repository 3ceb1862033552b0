"""Model cards: README.md with the header that hubs read, for every run and export."""

from frami_edge.cards.header import Result, licence_id, model_header, read_header

__all__ = ["Result", "licence_id", "model_header", "read_header"]
