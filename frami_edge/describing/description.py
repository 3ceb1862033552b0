"""A description: facts in sections, read by people as a table and by programs as one object."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

_SHA256 = re.compile(r"[0-9a-f]{64}")
SHOWN_NAMES = 24
"""Names of a list that people get to see; JSON has all."""


@dataclass(frozen=True)
class Fact:
    """One thing that is so."""

    name: str
    """In snake case: a key of the JSON object, and the words of the table."""
    value: Any
    """As JSON has it."""
    text: str | None = None
    """As people read it, where that differs; empty: only JSON has it."""

    @property
    def label(self) -> str:
        """The name for a table cell; a unit at its end is in the value."""
        return self.name.removesuffix("_ms").replace("_", " ")

    def shown(self) -> str:
        """The value for a table cell."""
        if self.text is not None:
            return self.text
        value = self.value
        if value is None or value == "":
            return "-"
        if isinstance(value, bool):
            return "yes" if value else "no"
        if isinstance(value, float):
            return f"{value:.4g}"
        if isinstance(value, int):
            return thousands(value)
        if isinstance(value, str):
            return short(value)
        if isinstance(value, (list, tuple)):
            return listed([str(item) for item in value])
        return str(value)


@dataclass(frozen=True)
class Section:
    """Facts that belong together."""

    name: str
    """In snake case, like those of the facts."""
    facts: tuple[Fact, ...]


@dataclass(frozen=True)
class Description:
    """Everything that was found in one file or folder."""

    kind: str
    """For programs, such as ``onnx-streaming``."""
    title: str
    """For people: what it is, in a few words."""
    sections: tuple[Section, ...]
    findings: tuple[str, ...] = ()
    """What a user of the file should know: damage, leaks, what is missing."""

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON: one object a section."""
        found: dict[str, Any] = {"kind": self.kind, "title": self.title}
        for section in self.sections:
            found[section.name] = {fact.name: fact.value for fact in section.facts}
        return found | {"findings": list(self.findings)}


def short(text: str) -> str:
    """A hash by its first digits; anything else as it is. JSON has all 64."""
    return f"{text[:16]}..." if _SHA256.fullmatch(text) else text


def thousands(number: int) -> str:
    """51430 -> 51 430: long numbers in groups of three, as the SI brochure sets them."""
    return f"{number:,}".replace(",", " ")


def size_text(count: int) -> str:
    """Bytes for people, in decimal units as on a disk."""
    if count < 1000:
        return f"{count} bytes"
    if count < 1_000_000:
        return f"{count / 1000:.1f} kB"
    return f"{count / 1e6:.1f} MB"


def listed(names: Sequence[str], most: int = SHOWN_NAMES) -> str:
    """Names after commas; beyond ``most`` only their number."""
    more = len(names) - most
    return ", ".join(names[:most]) + (f" and {more} more" if more > 0 else "")
