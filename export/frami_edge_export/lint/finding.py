"""One thing that TensorRT would refuse, or silently compute otherwise."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Finding:
    """What is wrong, where, and what to do about it."""

    rule: str
    """Short name of the rule, such as ``zero-point``."""
    node: str
    """Name of the node or tensor; "" for the file as a whole."""
    message: str
    """One sentence: what TensorRT does with it."""
    fix: str
    """One sentence: what to change."""

    def __str__(self) -> str:
        """Rule, node, message and fix in one line."""
        where = f" at {self.node}" if self.node else ""
        return f"{self.rule}{where}: {self.message} {self.fix}"
